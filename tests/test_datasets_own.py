"""load_image_folder and load_pairs: pictures of the user's own, and errors that help."""

import io
import json
import os
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from sklearn_ape.datasets import load_image_folder, load_pairs

NAMES = ("cats/black_cat-01.jpg", "cats/old_cat.PNG", "dogs/dog.jpg")


def make(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")  # never opened, so that empty files must do
    return folder


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "pictures", *NAMES)


def relative(folder, images):
    return [os.path.relpath(image, folder).replace(os.sep, "/") for image in images]


def test_folder_of_folders(folder):
    """Sub-folders are labels; other and hidden files are no pictures."""
    make(folder, "notes.md", "cats/.hidden.jpg", ".git/x.jpg")
    data = load_image_folder(folder)
    assert relative(folder, data.images) == list(NAMES)
    assert data.other_files == {".md": 1}
    assert data.labels.tolist() == ["cats", "cats", "dogs"]
    assert data.captions is None
    assert str(folder) in data.DESCR


def test_no_labels_for_loose_pictures(folder):
    """A picture outside of all sub-folders has no label, so that there are none."""
    make(folder, "loose.jpg")
    assert "labels" not in load_image_folder(folder)


def test_paths_are_absolute(folder, monkeypatch):
    """Pictures are found after the working directory changes."""
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
    """Text files beside the pictures are found without asking."""
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


def test_bad_sidecars(folder):
    """Pictures without text are named and counted; so are empty and unreadable files."""
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
    """Captions go to their pictures whatever the order, and "NA" is a text like any other."""
    texts = write_metadata(folder, kind, column)
    data = load_image_folder(folder)
    assert relative(folder, data.images) == list(NAMES)
    assert data.captions == texts


def test_several_rows_of_a_picture(folder):
    """Each row of a picture is one more caption of it."""
    write_metadata(folder, "csv")
    with (folder / "metadata.csv").open("a") as stream:
        stream.write("./dogs/dog.jpg,a dog\n")
    captions = load_image_folder(folder, captions="table").captions
    assert captions == [["a cat, black"], ["NA"], ["007", "a dog"]]


def test_table_and_folder_disagree(folder):
    """Rows without a picture and pictures without a row are both named."""
    write_metadata(folder, "csv")
    make(folder, "dogs/new.jpg")
    with pytest.raises(ValueError, match=r"no row for 1 of 4 pictures: 'dogs/new\.jpg'"):
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


# --- load_pairs


@pytest.fixture
def frame():
    return pd.DataFrame({"image": NAMES, "caption": ["NA", "007", "a dog"], "kind": [1, 1, 2]})


def write_table(frame, file):
    kind = file.suffix
    if kind == ".parquet":
        frame.to_parquet(file)
    elif kind == ".jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        frame.to_csv(file, index=False, sep="\t" if kind == ".tsv" else ",")
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_table_files(folder, frame, kind):
    """Every format gives the same; relative paths are those beside the table."""
    data = load_pairs(write_table(frame, folder / f"t.{kind}"), label="kind")
    assert relative(folder, data.images) == list(NAMES)
    assert data.captions == ["NA", "007", "a dog"]
    assert data.labels.tolist() == ["1", "1", "2"]
    assert data.labels.dtype.kind == "U"


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(folder, frame, library, monkeypatch):
    """Data frames of both libraries; paths are relative to `root`, else to where we are."""
    source = frame if library == "pandas" else pl.from_pandas(frame)
    images, captions = load_pairs(source, root=folder, return_X_y=True)
    assert relative(folder, images) == list(NAMES)
    assert captions == ["NA", "007", "a dog"]
    monkeypatch.chdir(folder)
    assert load_pairs(source).images == images


def test_pictures_of_other_kinds(folder):
    """Bytes, PIL images, arrays and Hugging Face dicts pass through; dicts are unpacked."""
    buffer = io.BytesIO()
    picture = Image.new("RGB", (2, 2))
    picture.save(buffer, "PNG")
    content, array = buffer.getvalue(), np.zeros((2, 2, 3), np.uint8)
    cells = [
        content,
        picture,
        array,
        {"bytes": content, "path": "x.png"},
        {"bytes": None, "path": NAMES[0]},
    ]
    images = load_pairs(pd.DataFrame({"image": cells, "caption": list("abcde")}), root=folder)[
        "images"
    ]
    assert images[:2] == [content, picture]
    assert images[2] is array
    assert images[3] == content
    assert images[4] == str(folder / NAMES[0])


def test_hugging_face_parquet(tmp_path):
    """A parquet file with embedded pictures, as datasets are published."""
    frame = pd.DataFrame({"image": [{"bytes": b"png", "path": None}], "text": [["a", "b"]]})
    frame.to_parquet(tmp_path / "t.parquet")
    data = load_pairs(tmp_path / "t.parquet", caption="text")
    assert (data.images, data.captions) == ([b"png"], [["a", "b"]])


def test_repeated_pictures_stay_rows(folder):
    """Two rows of one picture are two pairs."""
    frame = pd.DataFrame({"image": [NAMES[0]] * 2, "caption": ["a", "b"]})
    data = load_pairs(frame, root=folder)
    assert data.captions == ["a", "b"]
    assert data.images[0] == data.images[1]


def test_missing_column(frame):
    """The error names the columns and the nearest."""
    with pytest.raises(ValueError, match=r"'captoin'.*'image', 'caption'.*mean 'caption'"):
        load_pairs(frame, caption="captoin")


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  ", 7, [], ["a", None], pd.NA])
def test_empty_captions(folder, empty):
    """A caption that is none is an error with its row, never a text "nan"."""
    frame = pd.DataFrame({"image": [NAMES[0]] * 9, "caption": ["a", *[empty] * 8]})
    with pytest.raises(ValueError, match=r"8 of 9 rows .* rows 1, 2, 3, 4, 5, \.\.\. \(8 in all"):
        load_pairs(frame, root=folder)


def test_missing_files(folder, frame, tmp_path):
    """Missing pictures are named and counted, with the folder that was searched."""
    file = write_table(frame, tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match=r"3 of 3 pictures.*dog\.jpg.*root=") as error:
        load_pairs(file)
    assert repr(str(tmp_path)) in str(error.value)
    assert len(load_pairs(file, root=folder).images) == 3


@pytest.mark.parametrize("cell", [None, "", float("nan"), b"", {"bytes": None, "path": None}])
def test_missing_picture_cells(cell):
    """A row without a picture is named."""
    with pytest.raises(ValueError, match="1 of 1 rows of the data frame have no picture: rows 0"):
        load_pairs(pd.DataFrame({"image": [cell], "caption": ["a"]}))


def test_wrong_types(frame):
    """What is no table and what is no picture is told so."""
    with pytest.raises(TypeError, match="DataFrame, got list"):
        load_pairs([("a.jpg", "a")])
    with pytest.raises(TypeError, match=r"Row 0 .* holds a int"):
        load_pairs(frame, image="kind")


def test_missing_labels(folder, frame):
    """A missing label is an error, not a class "nan"."""
    frame["kind"] = ["a", None, "b"]
    with pytest.raises(ValueError, match=r"no label in column 'kind': rows 1"):
        load_pairs(frame, label="kind", root=folder)


@pytest.mark.parametrize("empty", ["image,caption\n", ""])
def test_no_rows(tmp_path, empty):
    """An empty table is an error."""
    (tmp_path / "t.csv").write_text(empty)
    with pytest.raises(ValueError, match=r"0 rows|Its columns: none"):
        load_pairs(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image,caption\na.jpg,a cat, black\n", "line 2 has 3 fields.*quotes"),
        ("t.csv", "image,image\na,b\n", "same name: 'image'"),
        ("t.csv", 'image,caption\na.jpg,"a cat', "as csv"),
        ("t.jsonl", '{"image": "a"}\n{"image"\n', "line 2 is not JSON"),
        ("t.jsonl", "[1]\n", "line 1 is not an object"),
        ("t.parquet", "no parquet", "as parquet"),
        ("t.xlsx", "", r"should end in one of \.csv"),
    ],
)
def test_malformed_tables(tmp_path, name, text, message):
    """A comma too many must not cut a caption; other damage is named by line."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / name)


def test_no_such_table(tmp_path):
    """The missing file is named."""
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        load_pairs(tmp_path / "none.csv")


@pytest.mark.parametrize("module", ["pandas", "pyarrow"])
def test_missing_package(folder, frame, monkeypatch, module):
    """Without pandas or pyarrow csv still works, and parquet says how to install them."""
    csv, parquet = (write_table(frame, folder / f"t.{kind}") for kind in ("csv", "parquet"))
    monkeypatch.setitem(sys.modules, module, None)
    assert load_pairs(csv).captions == ["NA", "007", "a dog"]
    with pytest.raises(ImportError, match=r'pip install "sklearn-ape\[tables\]"'):
        load_pairs(parquet)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_spreadsheets(folder, delimiter):
    """A byte order mark and the separators of other countries; a comma in a caption stays."""
    rows = ["image|caption", '"cats/old_cat.PNG"|"a cat, old"']
    text = "\n".join(row.replace("|", delimiter) for row in rows)
    (folder / "t.csv").write_text("\ufeff" + text, encoding="utf-8")
    data = load_pairs(folder / "t.csv")
    assert data.captions == ["a cat, old"]
    assert relative(folder, data.images) == ["cats/old_cat.PNG"]


def test_table_in_another_encoding_says_what_to_do(folder):
    (folder / "t.csv").write_bytes("image,caption\na.jpg,ein \u00e4lterer Kater".encode("cp1252"))
    with pytest.raises(ValueError, match=r"not UTF-8 text.*CSV UTF-8"):
        load_pairs(folder / "t.csv")


def test_absent_pictures_may_be_left_to_the_encoder(folder):
    (folder / "t.csv").write_text("image,caption\ncats/old_cat.PNG,a cat\ngone.jpg,a dog\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        load_pairs(folder / "t.csv")
    data = load_pairs(folder / "t.csv", check_files=False)
    assert relative(folder, data.images) == ["cats/old_cat.PNG", "gone.jpg"]
