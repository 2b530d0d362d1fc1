"""load_image_folder: a folder of the user's own, and errors that help."""

import json
import os

import pandas as pd
import pytest

from sklearn_ape.datasets import load_image_folder
from tests.datasets.conftest import NAMES, make, relative


def test_folder_of_folders(folder):
    """Sub-folders are labels; other and hidden files are no images."""
    make(folder, "notes.md", "cats/.hidden.jpg", ".git/x.jpg")
    data = load_image_folder(folder)
    assert relative(folder, data.images) == list(NAMES)
    assert data.other_files == {".md": 1}
    assert data.labels.tolist() == ["cats", "cats", "dogs"]
    assert data.captions is None
    assert str(folder) in data.DESCR


def test_no_labels_for_loose_images(folder):
    """An image outside of all sub-folders has no label, so that there are none."""
    make(folder, "loose.jpg")
    assert "labels" not in load_image_folder(folder)


def test_paths_are_absolute(folder, monkeypatch):
    """Images are found after the working directory changes."""
    monkeypatch.chdir(folder)
    assert all(os.path.isabs(image) for image in load_image_folder(".").images)


def test_not_recursive(folder):
    """recursive=False looks at the folder alone, and says so if it finds nothing."""
    with pytest.raises(ValueError, match="recursive=False"):
        load_image_folder(folder, recursive=False)
    make(folder, "loose.jpg")
    assert relative(folder, load_image_folder(folder, recursive=False).images) == ["loose.jpg"]


def test_extensions(folder):
    """With or without a dot, in any case."""
    make(folder, "cats/raw.HEIC")
    for extension in ("heic", ".HEIC", "*.heic"):
        data = load_image_folder(folder, extensions=[extension])
        assert relative(folder, data.images) == ["cats/raw.HEIC"]
    with pytest.raises(ValueError, match="sequence"):
        load_image_folder(folder, extensions=".png")


def test_links_in_a_circle(folder):
    """A link to a folder above does not make an endless list."""
    try:
        os.symlink(folder, folder / "cats" / "again", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    assert len(load_image_folder(folder).images) == 3


def test_captions_from_names(folder):
    """Folder names and file names can serve as captions."""
    assert load_image_folder(folder, captions="folder").captions == ["cats", "cats", "dogs"]
    images, captions = load_image_folder(folder, captions="filename", return_X_y=True)
    assert captions == ["black cat", "old cat", "dog"]
    assert len(images) == 3


def test_numbered_folders_stay_apart(tmp_path):
    """Numbers of folders tell classes apart, unlike those of files."""
    make(tmp_path, "road_sign_1/a.jpg", "road_sign_2/b.jpg")
    captions = load_image_folder(tmp_path, captions="folder").captions
    assert captions == ["road sign 1", "road sign 2"]


def test_names_without_words(folder):
    """Names that give no caption are an error, not empty captions."""
    make(folder, "cats/0001.jpg", "loose.jpg")
    with pytest.raises(ValueError, match=r"no words: 'cats/0001\.jpg'"):
        load_image_folder(folder, captions="filename")
    with pytest.raises(ValueError, match=r"sub-folder.*'loose\.jpg'"):
        load_image_folder(folder, captions="folder")


def write_sidecars(folder):
    (folder / "cats" / "black_cat-01.txt").write_text("\ufeffa black  cat\n", encoding="utf-8")
    (folder / "cats" / "old_cat.caption").write_text("ein älterer Kater", encoding="utf-8")
    (folder / "dogs" / "dog.txt").write_text("\na dog\n\n")


def test_sidecars(folder):
    """Text files beside the images are found without asking."""
    write_sidecars(folder)
    data = load_image_folder(folder)
    assert data.captions == ["a black cat", "ein älterer Kater", "a dog"]
    assert load_image_folder(folder, captions=None).captions is None


def test_sidecars_of_several_lines(folder):
    """Several lines are several captions; then all are lists."""
    write_sidecars(folder)
    (folder / "dogs" / "dog.txt").write_text("a dog\na brown dog\n")
    captions = load_image_folder(folder).captions
    assert captions == [["a black cat"], ["ein älterer Kater"], ["a dog", "a brown dog"]]


@pytest.mark.parametrize("mark", ["\u2028", "\x0c", "\x85", "\x1e"])
def test_marks_within_a_caption_do_not_end_its_line(folder, mark):
    """`str.splitlines` would make two captions of one."""
    write_sidecars(folder)
    text = f"a dog{mark}of ours\r\na brown dog\r"
    (folder / "dogs" / "dog.txt").write_bytes(text.encode())
    assert load_image_folder(folder).captions[2] == ["a dog of ours", "a brown dog"]


def test_bad_sidecars(folder):
    """Images without text are named and counted; so are empty and unreadable files."""
    write_sidecars(folder)
    make(folder, *(f"birds/{i}.jpg" for i in range(7)))
    with pytest.raises(ValueError, match=r"7 of 10 .*'birds/0\.jpg'.*'birds/4\.jpg', \.\.\."):
        load_image_folder(folder)
    make(folder, *(f"birds/{i}.txt" for i in range(7)))
    with pytest.raises(ValueError, match=r"birds.0\.txt' is empty"):
        load_image_folder(folder)
    (folder / "birds" / "0.txt").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match=r"birds.0\.txt' is not UTF-8"):
        load_image_folder(folder)


def write_metadata(folder, kind, column="caption"):
    texts = ["a cat, black", "NA", "007"]
    rows = [{"file_name": name, column: text} for name, text in zip(NAMES, texts, strict=True)]
    file = folder / f"metadata.{kind}"
    if kind == "csv":
        pd.DataFrame(rows[::-1]).to_csv(file, index=False)
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows[::-1])) + "\n")
    else:
        pd.DataFrame(rows[::-1]).to_parquet(file)
    return texts


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["caption", "text"])
def test_metadata_tables(folder, kind, column):
    """Captions go to their images whatever the order, and "NA" is a text like any other."""
    texts = write_metadata(folder, kind, column)
    data = load_image_folder(folder)
    assert relative(folder, data.images) == list(NAMES)
    assert data.captions == texts


def test_several_rows_of_an_image(folder):
    """Each row of an image is one more caption of it."""
    write_metadata(folder, "csv")
    with (folder / "metadata.csv").open("a") as stream:
        stream.write("./dogs/dog.jpg,a dog\n")
    captions = load_image_folder(folder, captions="table").captions
    assert captions == [["a cat, black"], ["NA"], ["007", "a dog"]]


def test_table_and_folder_disagree(folder):
    """Rows without an image and images without a row are both named."""
    write_metadata(folder, "csv")
    make(folder, "dogs/new.jpg")
    with pytest.raises(ValueError, match=r"no row for 1 of 4 images: 'dogs/new\.jpg'"):
        load_image_folder(folder)
    (folder / "dogs" / "new.jpg").unlink()
    (folder / "dogs" / "dog.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 1 files.*'dogs/dog\.jpg'"):
        load_image_folder(folder)


def test_no_table_or_several(folder):
    """The tables looked for are named; of two, none is taken by chance."""
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv, metadata\.jsonl"):
        load_image_folder(folder, captions="table")
    write_metadata(folder, "csv")
    write_metadata(folder, "jsonl")
    with pytest.raises(ValueError, match="several tables"):
        load_image_folder(folder)


def test_bad_folders(tmp_path, folder):
    """Errors say what was looked for and what was found."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_image_folder(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_image_folder(folder / NAMES[0])
    make(tmp_path / "texts", "a.md", "b.md", "c.pdf")
    with pytest.raises(ValueError, match=r"\.png.*found files with 2 '\.md', 1 '\.pdf'"):
        load_image_folder(tmp_path / "texts")
    with pytest.raises(ValueError, match="captions must be one of"):
        load_image_folder(folder, captions="txt")
    with pytest.raises(ValueError, match='captions="folder"'):
        load_image_folder(folder, return_X_y=True)


def test_sidecars_are_split_at_line_ends_alone(folder):
    """Form feeds and Unicode's separators are within a caption, and are spaces there."""
    for name in NAMES:
        sidecar = (folder / name).with_suffix(".txt")
        sidecar.write_bytes("a cat\u2028in\x0ca\x85hat\r\na dog\ra bird".encode())
    captions = load_image_folder(folder, captions="sidecar").captions
    assert captions == [["a cat in a hat", "a dog", "a bird"]] * 3
