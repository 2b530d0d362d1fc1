"""load_pairs: a table of the user's own, and errors that help."""

import io
import os
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from sklearn_ape.datasets import load_pairs
from tests.datasets.conftest import NAMES, relative


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


def test_images_of_other_kinds(folder):
    """Bytes, PIL images, arrays and Hugging Face dicts pass through; dicts are unpacked."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (2, 2))
    image.save(buffer, "PNG")
    content, array = buffer.getvalue(), np.zeros((2, 2, 3), np.uint8)
    cells = [
        content,
        image,
        array,
        {"bytes": content, "path": "x.png"},
        {"bytes": None, "path": NAMES[0]},
    ]
    images = load_pairs(pd.DataFrame({"image": cells, "caption": list("abcde")}), root=folder)[
        "images"
    ]
    assert images[:2] == [content, image]
    assert images[2] is array
    assert images[3] == content
    assert images[4] == str(folder / NAMES[0])


def test_hugging_face_parquet(tmp_path):
    """A parquet file with embedded images, as datasets are published."""
    frame = pd.DataFrame({"image": [{"bytes": b"png", "path": None}], "text": [["a", "b"]]})
    frame.to_parquet(tmp_path / "t.parquet")
    data = load_pairs(tmp_path / "t.parquet", caption="text")
    assert (data.images, data.captions) == ([b"png"], [["a", "b"]])


def test_repeated_images_stay_rows(folder):
    """Two rows of one image are two pairs."""
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
    """Missing images are named and counted, with the folder that was searched."""
    file = write_table(frame, tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match=r"3 of 3 images.*dog\.jpg.*root=") as error:
        load_pairs(file)
    assert repr(str(tmp_path)) in str(error.value)
    assert len(load_pairs(file, root=folder).images) == 3


@pytest.mark.parametrize("cell", [None, "", float("nan"), b"", {"bytes": None, "path": None}])
def test_missing_image_cells(cell):
    """A row without an image is named."""
    with pytest.raises(ValueError, match="1 of 1 rows of the data frame have no image: rows 0"):
        load_pairs(pd.DataFrame({"image": [cell], "caption": ["a"]}))


def test_wrong_types(frame):
    """What is no table and what is no image is told so."""
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


def test_absent_images_may_be_left_to_the_encoder(folder):
    (folder / "t.csv").write_text("image,caption\ncats/old_cat.PNG,a cat\ngone.jpg,a dog\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        load_pairs(folder / "t.csv")
    data = load_pairs(folder / "t.csv", check_files=False)
    assert relative(folder, data.images) == ["cats/old_cat.PNG", "gone.jpg"]


def test_swapped_columns(folder, frame):
    """Captions as images are no missing files: the message names the other order."""
    with pytest.raises(ValueError, match="Try image='image', caption='caption'"):
        load_pairs(frame, image="caption", caption="image", root=folder, check_files=False)
    with pytest.raises(ValueError, match="columns swapped"):
        load_pairs(frame, image="caption", caption="image", root=folder)
    frame["caption"] = [f"{name} of the cat" for name in NAMES]
    assert load_pairs(frame, root=folder).captions == list(frame["caption"])


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_apostrophes_in_front_of_formulas_are_removed(folder, kind):
    """Our own tables have them so that no spreadsheet computes a caption; paths have none."""
    captions = ["'=1+1", "''-5 degrees", "'tis a cat", "-0.5", "=1+1"]
    frame = pd.DataFrame({"image": "'=x.jpg", "caption": captions, "label": captions})
    data = load_pairs(write_table(frame, folder / f"t.{kind}"), label="label", check_files=False)
    assert data.captions == ["=1+1", "'-5 degrees", "'tis a cat", "-0.5", "=1+1"]
    assert data.labels.tolist() == data.captions
    assert set(relative(folder, data.images)) == {"'=x.jpg"}


def test_apostrophes_of_other_formats_stay(folder):
    """Only spreadsheets' formats have formulas."""
    frame = pd.DataFrame({"image": NAMES[0], "caption": ["'=1+1"]})
    assert load_pairs(frame, root=folder).captions == ["'=1+1"]
    assert load_pairs(write_table(frame, folder / "t.jsonl")).captions == ["'=1+1"]


def test_names_of_files_need_not_be_text(folder):
    """A csv may name a file by bytes that are not UTF-8; other cells may not hold such bytes."""
    name = os.fsdecode(b"caf\xe9.jpg")
    (folder / name).write_bytes(b"")
    table = folder / "t.csv"
    table.write_bytes(b"image,caption\ncaf\xe9.jpg,a\n")
    assert relative(folder, load_pairs(table).images) == [name]
    for content in (
        b"image,caption\ngone\xe9.jpg,a\n",
        b"image,caption\na.jpg,caf\xe9\n",
        b"image,caption,\xe9\na.jpg,b,c\n",
    ):
        table.write_bytes(content)
        for check_files in (True, False):
            with pytest.raises(ValueError, match=r"not UTF-8 text.*xe9|not UTF-8 text.*dce9"):
                load_pairs(table, check_files=check_files)


def test_repeated_keys_in_json_lines(tmp_path):
    """A key that is given twice would lose one of its values without a word."""
    table = tmp_path / "t.jsonl"
    first = '{"image": "a.jpg", "caption": "a"}\n'
    for line in (
        '{"image": "b.jpg", "caption": "b", "caption": "c"}',
        '{"image": {"path": "b.jpg", "path": "c.jpg"}, "caption": "b"}',
    ):
        table.write_text(first + line)
        with pytest.raises(
            ValueError, match=r"line 2 has the key '(caption|path)' more than once"
        ):
            load_pairs(table, check_files=False)
