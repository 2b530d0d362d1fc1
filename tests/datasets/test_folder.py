"""load_image_folder: images, captions, labels and errors."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from sklearn_ape.datasets import load_image_folder, load_pairs
from tests.datasets.conftest import NAMES, make, relative


def test_subfolders_are_labels(folder):
    """Subfolders are labels; hidden and other files are skipped."""
    make(folder, "notes.md", "cats/.hidden.jpg", ".git/x.jpg")
    data = load_image_folder(folder)
    assert relative(folder, data.images) == list(NAMES)
    assert data.other_files == {".md": 1}
    assert data.labels.tolist() == ["cats", "cats", "dogs"]
    assert data.captions is None
    assert str(folder) in data.DESCR


def test_folder_of_heic_images_names_the_remedy(tmp_path):
    make(tmp_path, "1.HEIC", "2.heic")
    with pytest.raises(ValueError, match=r"2 '\.heic'.*Convert HEIC images to JPEG\.$"):
        load_image_folder(tmp_path)


def test_unsupported_formats_name_the_remedy(tmp_path):
    """Wallpapers in JPEG XL, drawings in SVG and raw photographs were counted without advice."""
    make(tmp_path, "1.jxl", "2.SVG", "3.nef", "4.CR2", "notes.md")
    with pytest.raises(ValueError, match=r"Convert JPEG XL, SVG and raw images to JPEG\.$"):
        load_image_folder(tmp_path)


def test_archive_of_images_names_the_remedy(tmp_path):
    make(tmp_path, "photos.zip")
    with pytest.raises(ValueError, match=r"1 '\.zip'.* Unpack archives first\.$"):
        load_image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has an unknown format.* Unpack archives first\.$"):
        load_pairs(tmp_path / "photos.zip")


def test_images_outside_subfolders_have_no_labels(folder):
    make(folder, "loose.jpg")
    assert "labels" not in load_image_folder(folder)


def test_few_images_outside_subfolders_are_named(folder):
    """A single image outside must not remove the labels of all others in silence."""
    make(folder, "loose.jpg", *(f"birds/{i}.jpg" for i in range(7)))
    with pytest.warns(UserWarning, match=r"1 of 11 images are not in a subfolder .*'loose\.jpg'"):
        assert "labels" not in load_image_folder(folder)


def test_few_text_files_are_not_captions(folder):
    """A note next to one of many images does not make the others lack a caption."""
    make(folder, "birds/0.txt", *(f"birds/{i}.jpg" for i in range(9)))
    with pytest.warns(UserWarning, match=r"1 of 12 images .*'birds/0\.jpg'"):
        data = load_image_folder(folder)
    assert data.captions is None
    assert len(data.labels) == 12
    with pytest.raises(ValueError, match="11 of 12 images"):
        load_image_folder(folder, captions="sidecar")


def test_paths_are_absolute(folder, monkeypatch):
    """Paths are valid after the working directory changes."""
    monkeypatch.chdir(folder)
    assert all(os.path.isabs(image) for image in load_image_folder(".").images)


def test_not_recursive_skips_subfolders(folder):
    with pytest.raises(ValueError, match="recursive=True to include subfolders"):
        load_image_folder(folder, recursive=False)
    make(folder, "loose.jpg")
    assert relative(folder, load_image_folder(folder, recursive=False).images) == ["loose.jpg"]


def test_extensions_select_files(folder):
    """Extensions have any case, with or without a dot."""
    make(folder, "cats/raw.HEIC")
    for extension in ("heic", ".HEIC", "*.heic"):
        data = load_image_folder(folder, extensions=[extension])
        assert relative(folder, data.images) == ["cats/raw.HEIC"]
    with pytest.raises(ValueError, match="sequence"):
        load_image_folder(folder, extensions=".png")


def test_cyclic_links_are_followed_once(folder):
    try:
        os.symlink(folder, folder / "cats" / "link", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    assert len(load_image_folder(folder).images) == 3


def test_links_do_not_name_images_of_the_same_folder(folder, tmp_path_factory):
    """Labels are the names of folders; a link names images only if they are elsewhere."""
    other = tmp_path_factory.mktemp("other")
    make(other, "bird.jpg")
    expected = load_image_folder(folder)
    try:
        os.symlink(folder / "dogs", folder / "a link", target_is_directory=True)
        os.symlink(folder / "dogs", folder / "cats" / "link", target_is_directory=True)
        os.symlink(other, folder / "birds", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    data = load_image_folder(folder)
    assert data.images == [str(folder / "birds" / "bird.jpg"), *expected.images]
    assert data.labels.tolist() == ["birds", *expected.labels]


def test_captions_can_be_names(folder):
    assert load_image_folder(folder, captions="folder").captions == ["cats", "cats", "dogs"]
    images, captions = load_image_folder(folder, captions="filename", return_X_y=True)
    assert captions == ["black cat", "old cat", "dog"]
    assert len(images) == 3


def test_all_suffixes_of_images_are_left_out(tmp_path):
    make(tmp_path, "red.apple.PNG.jpg")
    assert load_image_folder(tmp_path, captions="filename").captions == ["red.apple"]


def test_numbered_folders_are_distinct(tmp_path):
    """Numbers in folder names are kept, unlike those in file names."""
    make(tmp_path, "road_sign_1/a.jpg", "road_sign_2/b.jpg")
    captions = load_image_folder(tmp_path, captions="folder").captions
    assert captions == ["road sign 1", "road sign 2"]


def test_names_without_words_raise(folder):
    make(folder, "cats/0001.jpg", "loose.jpg")
    with pytest.raises(ValueError, match=r"1 of 5 have none: 'cats/0001\.jpg'\. Rename"):
        load_image_folder(folder, captions="filename")
    with pytest.raises(ValueError, match=r"in subfolders .*'loose\.jpg'"):
        load_image_folder(folder, captions="folder")


def write_sidecars(folder):
    (folder / "cats" / "black_cat-01.txt").write_text("\ufeffa black  cat\n", encoding="utf-8")
    (folder / "cats" / "old_cat.caption").write_text("ein älterer Kater", encoding="utf-8")
    (folder / "dogs" / "dog.txt").write_text("\na dog\n\n")


def test_sidecar_files_are_detected(folder):
    write_sidecars(folder)
    data = load_image_folder(folder)
    assert data.captions == ["a black cat", "ein älterer Kater", "a dog"]
    assert load_image_folder(folder, captions=None).captions is None


def test_sidecar_lines_are_several_captions(folder):
    """Several lines are several captions, and captions become lists."""
    write_sidecars(folder)
    (folder / "dogs" / "dog.txt").write_text("a dog\n\u200b\na brown dog\n", encoding="utf-8")
    captions = load_image_folder(folder).captions
    assert captions == [["a black cat"], ["ein älterer Kater"], ["a dog", "a brown dog"]]


def test_extensions_of_sidecars_may_be_in_upper_case(tmp_path):
    """They were ignored without a warning, although images in upper case were read."""
    make(tmp_path, "CAT.JPG", "dog.jpg")
    (tmp_path / "CAT.TXT").write_text("a cat")
    (tmp_path / "dog.CAPTION").write_text("a dog")
    for source in ("auto", "sidecar"):
        assert load_image_folder(tmp_path, captions=source).captions == ["a cat", "a dog"]


@pytest.mark.parametrize("mark", ["\u2028", "\x0c", "\x85", "\x1e"])
def test_unicode_line_separators_stay_in_caption(folder, mark):
    """`str.splitlines` would split one caption into two."""
    write_sidecars(folder)
    text = f"a dog{mark}of ours\r\na brown dog\ra pet\r"
    (folder / "dogs" / "dog.txt").write_bytes(text.encode())
    assert load_image_folder(folder).captions[2] == ["a dog of ours", "a brown dog", "a pet"]


def test_sidecars_may_be_named_after_the_whole_image_file(tmp_path):
    """Export tools write photo.jpg.txt, which was not found."""
    make(tmp_path, "a.jpg", "a.png")
    (tmp_path / "a.jpg.txt").write_text("a photograph")
    (tmp_path / "a.png.CAPTION").write_text("a drawing")
    for source in ("auto", "sidecar"):
        data = load_image_folder(tmp_path, captions=source)
        assert data.captions == ["a photograph", "a drawing"]
    (tmp_path / "a.txt").write_text("both")
    assert load_image_folder(tmp_path).captions == ["both", "both"]


def test_missing_or_empty_sidecars_raise(folder):
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
def test_metadata_tables_give_captions(folder, kind, column):
    """Captions are assigned to their images in any order, and "NA" is a text."""
    texts = write_metadata(folder, kind, column)
    data = load_image_folder(folder)
    assert relative(folder, data.images) == list(NAMES)
    assert data.captions == texts


def test_table_may_have_the_form_of_curated_pairs(folder):
    """`sklearn-ape curate` writes absolute paths into the column `image`."""
    rows = [(str(folder / name), name, "a label") for name in NAMES]
    frame = pd.DataFrame(rows, columns=["image", "caption", "label"])
    frame.to_csv(folder / "captions.csv", index=False)
    assert load_image_folder(folder).captions == list(NAMES)


def test_rows_of_one_image_are_several_captions(folder):
    write_metadata(folder, "csv")
    with (folder / "metadata.csv").open("a") as stream:
        stream.write("./dogs/dog.jpg,a dog\n")
    captions = load_image_folder(folder, captions="table").captions
    assert captions == [["a cat, black"], ["NA"], ["007", "a dog"]]


def test_table_that_differs_from_folder_raises(folder):
    write_metadata(folder, "csv")
    make(folder, "dogs/new.jpg")
    with pytest.raises(ValueError, match=r"no row for 1 of 4 images: 'dogs/new\.jpg'"):
        load_image_folder(folder)
    (folder / "dogs" / "new.jpg").unlink()
    (folder / "dogs" / "dog.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists 1 files.*'dogs/dog\.jpg'"):
        load_image_folder(folder)


def test_table_with_composed_accents_names_file_with_decomposed_accents(folder):
    """Archives of macOS have decomposed accents, which look the same."""
    make(folder, "dogs/a\u0308.jpg")
    rows = [f"{name},a dog" for name in (*NAMES, "dogs/\u00e4.jpg")]
    (folder / "captions.csv").write_text("\n".join(["file_name,caption", *rows]), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"A file 'a\u0308\.jpg' exists, whose name"):
        load_image_folder(folder)


def test_missing_or_ambiguous_tables_raise(folder):
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv or metadata\.jsonl"):
        load_image_folder(folder, captions="table")
    write_metadata(folder, "csv")
    write_metadata(folder, "jsonl")
    with pytest.raises(ValueError, match="several tables"):
        load_image_folder(folder)


def test_invalid_folders_raise(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image_folder(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_image_folder(folder / NAMES[0])
    with pytest.raises(TypeError, match=r"must be a path, not list\. Pass a folder with images"):
        load_image_folder([folder / name for name in NAMES])
    make(tmp_path / "texts", "a.md", "b.md", "c.pdf")
    with pytest.raises(ValueError, match=r"no images .2 '\.md', 1 '\.pdf'.*\.png"):
        load_image_folder(tmp_path / "texts")
    with pytest.raises(ValueError, match="captions must be one of"):
        load_image_folder(folder, captions="txt")
    with pytest.raises(ValueError, match='captions="folder"'):
        load_image_folder(folder, return_X_y=True)


def test_parts_of_a_split_are_not_labels(tmp_path):
    make(tmp_path, "train/cats/1.jpg", "val/dogs/1.jpg", "__MACOSX/._1.jpg/1.jpg")
    make(tmp_path, "@eaDir/1.jpg/SYNOPHOTO_THUMB_S.jpg")
    with pytest.warns(UserWarning, match=r"parts of a split: 'train', 'val'\. Pass one of them"):
        assert "labels" not in load_image_folder(tmp_path)
    assert load_image_folder(tmp_path / "train").labels.tolist() == ["cats"]
    make(tmp_path, "dogs/1.jpg")
    assert set(load_image_folder(tmp_path).labels) == {"train", "val", "dogs"}
    make(tmp_path, "flat/train/1.jpg", "flat/test/2.jpg")
    with pytest.warns(UserWarning, match=r"parts of a split: 'test', 'train'"):
        assert "labels" not in load_image_folder(tmp_path / "flat")


def test_text_files_of_numbers_are_not_captions(folder):
    """Annotations of boxes lie beside the images, as captions do."""
    for image in load_image_folder(folder).images:
        Path(image).with_suffix(".txt").write_text("0 0.808 0.489 0.989 0.183\n1 .5 .5 1e-1 .2\n")
    with pytest.warns(UserWarning, match="hold only numbers"):
        data = load_image_folder(folder)
    assert data.captions is None
    assert data.labels.tolist() == ["cats", "cats", "dogs"]
    assert load_image_folder(folder, captions="sidecar").captions[0][0].startswith("0 0.808")


def test_table_of_other_data_is_not_used(folder):
    """Collections often have a table of their own, such as one of patients."""
    (folder / "metadata.csv").write_text("image_id,dx\n1,mel\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"has no captions and is not used, .* 'image_id', 'dx'"):
        data = load_image_folder(folder)
    assert data.captions is None
    assert data.labels.tolist() == ["cats", "cats", "dogs"]
    with pytest.raises(ValueError, match="has no column 'file_name'"):
        load_image_folder(folder, captions="table")


def test_empty_table_is_not_used(folder):
    (folder / "captions.csv").write_text("")
    with pytest.warns(UserWarning, match="is not used, as it is empty. Name its columns"):
        assert load_image_folder(folder).captions is None


def test_table_of_labels_names_its_loader(folder):
    """The format of labelled images on the Hugging Face hub."""
    rows = [f"{name},{name.split('/')[0]}" for name in NAMES]
    table = folder / "metadata.csv"
    table.write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"load_pairs\(.*metadata.csv', image='file_name'"):
        load_image_folder(folder)
    data = load_pairs(table, image="file_name", label="label", caption=None)
    assert data.labels.tolist() == ["cats", "cats", "dogs"]
