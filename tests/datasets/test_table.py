"""load_pairs: formats, images, captions, labels and errors."""

import io
import os
import sys
import tracemalloc
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from sklearn_ape.datasets import load_image_folder, load_pairs
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
def test_table_formats_give_equal_pairs(folder, frame, kind):
    """All formats give equal pairs, with paths relative to the table."""
    data = load_pairs(write_table(frame, folder / f"t.{kind}"), label="kind")
    assert relative(folder, data.images) == list(NAMES)
    assert data.captions == ["NA", "007", "a dog"]
    assert data.labels.tolist() == ["1", "1", "2"]
    assert data.labels.dtype.kind == "U"


def test_named_index_is_a_column(folder, frame):
    """Also if the index is a copy of a column."""
    for drop in (True, False):
        indexed = frame.set_index("image", drop=drop)
        write_table(indexed, folder / "t.parquet")
        for source in (folder / "t.parquet", indexed):
            data = load_pairs(source, root=folder, check_files=False)
            assert relative(folder, data.images) == list(NAMES)
            assert data.captions == ["NA", "007", "a dog"]
    frame.index = pd.MultiIndex.from_product([range(3), [0]], names=["row", "row"])
    assert load_pairs(frame, root=folder).captions == ["NA", "007", "a dog"]


def test_integer_labels_of_a_column_of_floats(folder, frame):
    """pandas converts integers to floats if a value is missing."""
    frame = frame.assign(kind=[1, None, 2])[["image", "kind"]].dropna()
    assert load_pairs(frame, label="kind", root=folder).labels.tolist() == ["1", "2"]
    frame["kind"] += 0.5
    assert load_pairs(frame, label="kind", root=folder).labels.tolist() == ["1.5", "2.5"]


def test_captions_are_optional_with_labels(folder, frame):
    """But a wrong name of the column is an error."""
    write_table(frame.drop(columns="caption"), folder / "t.csv")
    data = load_pairs(folder / "t.csv", label="kind")
    assert data.captions is None
    assert data.labels.tolist() == ["1", "1", "2"]
    write_table(frame, folder / "t.csv")
    assert load_pairs(folder / "t.csv", caption=None, label="kind").captions is None
    with pytest.raises(ValueError, match=r"no column 'captions'.*'image', 'caption'"):
        load_pairs(folder / "t.csv", caption="captions", label="kind")
    with pytest.raises(ValueError, match="a column as caption to load_pairs, or return_X"):
        load_pairs(folder / "t.csv", caption=None, label="kind", return_X_y=True)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_are_accepted(folder, frame, library, monkeypatch):
    """Paths of data frames are relative to `root` or the current folder."""
    source = frame if library == "pandas" else pl.from_pandas(frame)
    images, captions = load_pairs(source, root=folder, return_X_y=True)
    assert relative(folder, images) == list(NAMES)
    assert captions == ["NA", "007", "a dog"]
    monkeypatch.chdir(folder)
    assert load_pairs(source).images == images


def test_image_types_pass_through(folder):
    """Bytes, PIL images and arrays pass through, and dicts are unwrapped."""
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


def test_hugging_face_parquet_is_read(tmp_path):
    """A parquet file with embedded images, as datasets are published."""
    frame = pd.DataFrame({"image": [{"bytes": b"png", "path": None}], "text": [["a", "b"]]})
    frame.to_parquet(tmp_path / "t.parquet")
    data = load_pairs(tmp_path / "t.parquet", caption="text")
    assert (data.images, data.captions) == ([b"png"], [["a", "b"]])


def test_repeated_images_are_separate_pairs(folder):
    frame = pd.DataFrame({"image": [NAMES[0]] * 2, "caption": ["a", "b"]})
    data = load_pairs(frame, root=folder)
    assert data.captions == ["a", "b"]
    assert data.images[0] == data.images[1]


@pytest.mark.parametrize(
    "empty", [None, float("nan"), "", "  ", "\u200b", 7, [], ["a", None], ["a", "\ufeff"], pd.NA]
)
def test_missing_captions_raise(folder, empty):
    frame = pd.DataFrame({"image": [NAMES[0]] * 9, "caption": ["a", *[empty] * 8]})
    with pytest.raises(ValueError, match=r"8 of 9 rows: rows 1, 2, 3, 4, 5, \.\.\."):
        load_pairs(frame, root=folder)


def test_missing_image_files_raise(folder, frame, tmp_path):
    file = write_table(frame, tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match=r"3 of 3 images.*dog\.jpg.*root=") as error:
        load_pairs(file)
    assert repr(str(tmp_path)) in str(error.value)
    assert len(load_pairs(file, root=folder).images) == 3


@pytest.mark.parametrize("cell", [None, "", float("nan"), b"", {"bytes": None, "path": None}])
def test_rows_without_image_raise(cell):
    with pytest.raises(ValueError, match="the data frame has no image in 1 of 1 rows: rows 0"):
        load_pairs(pd.DataFrame({"image": [cell], "caption": ["a"]}))


@pytest.mark.parametrize("library", [pd, pl])
def test_column_may_be_named_like_an_attribute_of_pyarrow(library, frame, folder):
    columns = {**frame.to_dict("list"), "column_names": ["a"] * len(frame)}
    data = load_pairs(library.DataFrame(columns), root=folder)
    assert data.captions == load_pairs(frame, root=folder).captions


def test_pyarrow_table_is_read(frame, folder):
    data, expected = (load_pairs(t, root=folder) for t in (pa.Table.from_pandas(frame), frame))
    assert (data.images, data.captions) == (expected.images, expected.captions)
    repeated = pa.table([["a.jpg"], ["a"], ["b"]], names=["image", "caption", "caption"])
    with pytest.raises(ValueError, match="the table has repeated columns: 'caption'"):
        load_pairs(repeated)


def test_dataset_with_columns_suggests_its_columns():
    """A Hugging Face dataset has columns that can be passed to fit."""
    with pytest.raises(TypeError, match=r"not SimpleNamespace\. .*Pass dataset\['image'\] to fit"):
        load_pairs(SimpleNamespace(column_names=["image"]))


def test_invalid_types_raise(frame):
    with pytest.raises(TypeError, match=r"DataFrame, not list\. Pass pandas\.DataFrame\(source\)"):
        load_pairs([("a.jpg", "a")])
    with pytest.raises(TypeError, match=r"not LazyFrame\. Pass source\.collect\(\)"):
        load_pairs(pl.LazyFrame({"image": ["a.jpg"], "caption": ["a"]}))
    with pytest.raises(TypeError, match=r"Row 0 .* has an image of type int"):
        load_pairs(frame, image="kind")


@pytest.mark.parametrize(
    "empty", [None, np.float32("nan"), np.datetime64("NaT"), Decimal("NaN"), Decimal("sNaN")]
)
def test_missing_labels_raise(frame, folder, empty):
    frame["kind"] = pd.Series(["a", empty, "b"], dtype=object)
    with pytest.raises(ValueError, match=r"'kind' of 1 of 3 rows \(numbered from 0\): 1\."):
        load_pairs(frame, label="kind", root=folder)


@pytest.mark.parametrize(
    "cells",
    [["a", "b", "['a', 'b']"], *([kind("a")] * 3 for kind in (list, tuple, set, frozenset))],
)
def test_lists_of_labels_raise(folder, frame, cells):
    """They became labels such as "['a', 'b']"."""
    frame["kind"] = cells
    with pytest.raises(ValueError, match=r"For several labels per image, .*Classifier\.fit"):
        load_pairs(frame, label="kind", root=folder)


@pytest.mark.parametrize("cells", [[b"a", b"b", b"a"], [{"name": "a"}] * 3])
def test_labels_that_are_bytes_or_records_raise(folder, frame, cells):
    """They became labels such as "b'a'"."""
    frame["kind"] = cells
    with pytest.raises(ValueError, match=r"in column 'kind', row 0 .* Convert the labels to text"):
        load_pairs(frame, label="kind", root=folder)


def test_labels_of_an_enum_of_texts_are_their_values(folder, frame):
    """Labels were the names of the members, such as "Kind.CAT"."""
    Kind = Enum("Kind", {"CAT": "cat", "DOG": "dog", "COW": "cow"}, type=str)
    frame["kind"] = pd.Series(list(Kind), dtype=object)
    assert load_pairs(frame, label="kind", root=folder).labels.tolist() == ["cat", "dog", "cow"]


def test_labels_that_differ_in_a_trailing_nul_are_different(folder, frame):
    """NumPy cuts off NUL, which merged them."""
    frame["kind"] = ["cat", "cat\0", "cat"]
    labels = load_pairs(frame, label="kind", root=folder).labels
    assert labels.tolist() == ["cat", "cat\0", "cat"]


def test_lists_written_as_text_raise(folder, frame):
    """pandas writes lists of captions to csv like this, and each became one caption."""
    frame["text"] = ["['a cat', 'a pet']", '["it\'s a dog"]', "['x']"]
    frame.to_csv(folder / "lists.csv")
    with pytest.raises(ValueError, match=r"lists written as text.*ast\.literal_eval"):
        load_pairs(folder / "lists.csv", caption="text")
    frame.loc[0, "text"] = "[untitled]"
    assert len(load_pairs(frame, caption="text", root=folder).captions) == 3


@pytest.mark.parametrize("cell", ['"big" cat', '"big cat', "a" * 200_000])
def test_damaged_lines_of_csv_are_numbered(folder, cell):
    (folder / "p.csv").write_text(f"image,caption\ncats/1.jpg,a cat\ncats/1.jpg,{cell}\n")
    with pytest.raises(ValueError, match=r"read as csv: line 3: .*double the quotes within it"):
        load_pairs(folder / "p.csv")


def test_several_columns_raise(folder, frame):
    """The first column was used alone."""
    frame["text"] = "a cat"
    with pytest.raises(ValueError, match=r"caption must be the name of one column"):
        load_pairs(frame, caption=["caption", "text"], root=folder)
    with pytest.raises(ValueError, match=r"label must be the name of one column.* one of them\.$"):
        load_pairs(frame, label=["caption", "text"], root=folder)


def test_missing_column_names_the_parameter(folder, frame):
    """An error about a column lists the columns, the parameter and the option of commands."""
    message = r"no column 'text'\. Its columns are 'image', 'caption', 'kind'\..* or --caption"
    with pytest.raises(ValueError, match=message):
        load_pairs(frame, caption="text", root=folder)
    (folder / "captions.csv").write_text("photo,caption\na.jpg,a cat\n")
    with pytest.raises(ValueError, match=r"no column 'file_name'.* Rename one of its columns\."):
        load_image_folder(folder)


@pytest.mark.parametrize("empty", ["image,caption\n", ""])
def test_empty_table_raises(tmp_path, empty):
    (tmp_path / "t.csv").write_text(empty)
    with pytest.raises(ValueError, match=r"0 rows|is empty"):
        load_pairs(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image,caption\na.jpg,a cat, black\n", "line 2 has 3 fields.*quotes"),
        ("t.csv", "image,image\na,b\n", "repeated columns: 'image'"),
        ("t.csv", "image,,\na,b,c\n", "repeated columns: ''"),
        ("t.csv", 'image,caption\na.jpg,"a cat', "as csv"),
        ("t.jsonl", '{"image": "a"}\n{"image"\n', "line 2 is not valid JSON"),
        ("t.jsonl", "[1]\n", "line 1 is not an object"),
        ("t.parquet", "no parquet", "as parquet"),
        ("t.xlsx", "", r"name ends in \.csv.*pandas\.read_excel"),
        ("t.json", "[]", r"name ends in \.csv.* Save it as \.jsonl.*pandas\.read_json"),
    ],
)
def test_malformed_table_raises(tmp_path, name, text, message):
    """An extra comma raises an error, and other damage is reported with its line."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / name)


def test_missing_table_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        load_pairs(tmp_path / "none.csv")


@pytest.mark.parametrize("module", ["pandas", "pyarrow"])
def test_missing_package_raises(folder, frame, monkeypatch, module):
    """csv works without pandas and pyarrow; parquet raises an error with the command."""
    csv, parquet = (write_table(frame, folder / f"t.{kind}") for kind in ("csv", "parquet"))
    monkeypatch.setitem(sys.modules, module, None)
    assert load_pairs(csv).captions == ["NA", "007", "a dog"]
    with pytest.raises(ImportError, match=r'pip install "sklearn-ape\[tables\]"'):
        load_pairs(parquet)


def test_blank_lines_before_the_header(folder):
    """They were taken for a header without columns."""
    (folder / "t.csv").write_text(f"\n\nimage;caption\n{NAMES[0]};a, b\n")
    assert load_pairs(folder / "t.csv").captions == ["a, b"]


@pytest.mark.parametrize("first_line", [[], ["sep=|"]], ids=["", "sep"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheet_csv_is_read(folder, delimiter, first_line):
    """Byte order marks and semicolons are accepted, and quoted commas are kept.

    A first line that tells Excel the delimiter was taken for the header.
    """
    rows = [*first_line, "image|caption", '"cats/old_cat.PNG"|"a cat, old"']
    text = "\n".join(row.replace("|", delimiter) for row in rows)
    (folder / "t.csv").write_text("\ufeff" + text, encoding="utf-8")
    data = load_pairs(folder / "t.csv")
    assert data.captions == ["a cat, old"]
    assert relative(folder, data.images) == ["cats/old_cat.PNG"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_unused_columns_of_a_spreadsheet_are_ignored(folder, delimiter):
    """They have no names, which were reported as repeated names."""
    rows = ["image|caption||", f"{NAMES[0]}|a cat||", f"{NAMES[1]}|a dog||"]
    text = "\n".join(rows).replace("|", delimiter)
    (folder / "t.csv").write_text(text, encoding="utf-8")
    assert load_pairs(folder / "t.csv").captions == ["a cat", "a dog"]


def test_table_in_wrong_encoding_raises(folder):
    (folder / "t.csv").write_bytes("image,caption\na.jpg,ein \u00e4lterer Kater".encode("cp1252"))
    with pytest.raises(ValueError, match=r"not UTF-8 text.*CSV UTF-8"):
        load_pairs(folder / "t.csv")


def test_check_files_false_accepts_missing_images(folder):
    (folder / "t.csv").write_text("image,caption\ncats/old_cat.PNG,a cat\ngone.jpg,a dog\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 .*gone\.jpg.* check_files=False"):
        load_pairs(folder / "t.csv")
    data = load_pairs(folder / "t.csv", check_files=False)
    assert relative(folder, data.images) == ["cats/old_cat.PNG", "gone.jpg"]


def test_swapped_columns_raise(folder, frame):
    with pytest.raises(FileNotFoundError, match=r"3 of 3 images .*/a dog'"):
        load_pairs(frame, image="caption", caption="image", root=folder)
    frame["caption"] = [f"{name} of the cat" for name in NAMES]
    assert load_pairs(frame, root=folder).captions == list(frame["caption"])


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_apostrophes_before_formulas_are_removed(folder, kind):
    """Tables of this package have apostrophes before formulas, except in paths."""
    captions = ["'=1+1", "''-5 degrees", "'tis a cat", "-0.5", "=1+1"]
    frame = pd.DataFrame({"image": "'=x.jpg", "caption": captions, "label": captions})
    data = load_pairs(write_table(frame, folder / f"t.{kind}"), label="label", check_files=False)
    assert data.captions == ["=1+1", "'-5 degrees", "'tis a cat", "-0.5", "=1+1"]
    assert data.labels.tolist() == data.captions
    assert set(relative(folder, data.images)) == {"'=x.jpg"}


def test_apostrophes_in_other_formats_are_kept(folder):
    """Only csv and tsv have formulas."""
    frame = pd.DataFrame({"image": NAMES[0], "caption": ["'=1+1"]})
    assert load_pairs(frame, root=folder).captions == ["'=1+1"]
    assert load_pairs(write_table(frame, folder / "t.jsonl")).captions == ["'=1+1"]


def test_file_names_may_be_bytes(folder):
    """File names in csv may have bytes that are not UTF-8; other cells may not."""
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


def test_repeated_json_keys_raise(tmp_path):
    """A repeated key raises an error instead of losing a value."""
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


def test_delimiters_within_quotes_do_not_count(folder):
    file = folder / "export.csv"
    file.write_text('image;"caption, short";label\na.jpg;a cat;cat \n', encoding="utf-8")
    data = load_pairs(file, caption="caption, short", label="label", check_files=False)
    assert (data.captions, data.labels.tolist()) == (["a cat"], ["cat"])


def test_urls_and_repeated_columns_raise(frame):
    urls = pd.DataFrame({"image": ["https://example.com/a.jpg"], "caption": ["a cat"]})
    with pytest.raises(ValueError, match=r"URL 'https://example.com/a.jpg'.* Download"):
        load_pairs(urls)
    repeated = pd.concat([frame, frame[["caption"]]], axis=1)
    with pytest.raises(ValueError, match=r"repeated columns: 'caption'\."):
        load_pairs(repeated)


def test_columns_whose_names_are_equal_as_texts_raise():
    """The second column was read."""
    frame = pd.DataFrame({0: ["a.jpg"], "0": ["b.jpg"], "caption": ["a cat"]})
    with pytest.raises(ValueError, match="the data frame has repeated columns: '0'"):
        load_pairs(frame, image=0, check_files=False)


def test_columns_may_be_numbers(folder):
    frame = pd.DataFrame({0: ["cats/1.jpg"], 1: ["a cat"]})
    assert load_pairs(frame, image=0, caption=1, root=folder, check_files=False).captions == [
        "a cat"
    ]


def test_objects_with_different_keys_need_linear_memory(tmp_path):
    """A file of 16 MB, which the web app accepts, filled the memory."""
    table = tmp_path / "t.jsonl"
    table.write_text("".join(f'{{"{name}.jpg": "a cat"}}\n' for name in range(3000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"no column 'image'.* '0\.jpg', .*'19\.jpg', "):
        load_pairs(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20  # all columns together have 72 MB
