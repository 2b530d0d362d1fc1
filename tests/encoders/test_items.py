"""Checks of sequences of items, and errors that list items that cannot be encoded."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sklearn_ape.encoders import EncodingError, TimmImageEncoder
from sklearn_ape.encoders.items import as_items, summarize_errors


@pytest.mark.parametrize("method", ["fit", "transform"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((20, 30, 3), dtype=np.uint8), r"Pass a single image as \[X\]"),
        (np.zeros((20, 30), dtype=np.uint8), r"Pass a single image as \[X\]"),
        (np.zeros((20, 1280)), "in a Pipeline, leave out that encoder"),
        ([], "X is empty: 0 images"),
    ],
)
def test_array_or_empty_list_raises(method, X, message, no_weights):
    """fit and transform raise an error before weights are loaded."""
    with pytest.raises(ValueError, match=message):
        getattr(TimmImageEncoder(), method)(X)


def test_table_raises_with_column_names(no_weights):
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    content = {"path": ["a.png"], "caption": ["a cat"]}
    for table in (pd.DataFrame(content), pl.DataFrame(content), pa.table(content)):
        with pytest.raises(ValueError, match="table with the columns 'path', 'caption'"):
            TimmImageEncoder().transform(table)
    with pytest.raises(ValueError, match=r"columns 0, 1, 2, 3, 4, \.\.\.\. .* are features"):
        TimmImageEncoder().transform(pd.DataFrame(np.zeros((2, 1280))))


def test_error_lists_rows_items_and_remedy(paths, no_weights):
    """`errors` has all invalid rows, and the message has five of them."""
    bad = [f"missing{number}.png" for number in range(7)]
    with pytest.raises(EncodingError, match="7 images cannot be encoded") as caught:
        TimmImageEncoder(cache=None).transform([paths[0], *bad])
    message = str(caught.value)
    assert "row 1: 'missing0.png' does not exist" in message
    assert "and 2 more" in message
    assert "pass on_error='nan' to TimmImageEncoder" in message
    assert list(caught.value.errors) == list(range(1, 8))
    restored = pickle.loads(pickle.dumps(caught.value))
    assert restored.errors == caught.value.errors
    assert str(restored) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda image, n: (image, n), r"each is of type tuple\. .*\[image for image, \*_ in"),
        (lambda image, n: torch.full((3, 8, 8), n), r"each is of type Tensor\. .*to_pil_image"),
        (lambda image, n: np.full((8, 8, 3), n / 9), r"each is an array of float64, .*\+ 1\)\)"),
        (lambda image, n: np.full((8, 8), n, "u2"), r"each is an array of uint16, .*// 16\)"),
        (lambda image, n: np.full((8, 8), n > 9), r"each is an array of bool, .*\(255 \* array\)"),
        (
            lambda image, n: {"image": image},
            r"each is of type dict\. .*'bytes' or 'path', .*\[row\['image'\]",
        ),
        (lambda image, n: n, "each is of type int"),
        (lambda image, n: np.int64(n), r"each is of type int64\. [^.]*\.$"),
    ],
)
def test_common_reason_is_reported_once(make, message, no_weights):
    """The message has the rows, their number and the remedy."""
    image = Image.new("RGB", (8, 8))
    with pytest.raises(EncodingError) as caught:
        TimmImageEncoder(cache=None).transform([make(image, n) for n in range(100)])
    first, line, remedy = str(caught.value).splitlines()
    assert first == "100 images cannot be encoded:"
    assert re.search(rf"rows 0, 1, 2, 3, 4, \.\.\. \(100 in all\): {message}", line)
    assert remedy.startswith("Remove them")
    assert list(caught.value.errors) == list(range(100))


def test_each_reason_has_its_own_line(tmp_path, no_weights):
    """Rows with the same reason share a line, also after pickling."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    items = [tmp_path / "a.png", None, tmp_path / "b.png", "none.png", None, tmp_path / "a.png"]
    with pytest.raises(EncodingError) as caught:
        TimmImageEncoder(cache=None).transform(items)
    lines = str(caught.value).splitlines()
    assert re.match(
        r"  rows 0, 2, 5 \(3 in all\): each of '.*a.png', '.*b.png' is an empty", lines[1]
    )
    assert re.match(r"  rows 1, 4 \(2 in all\): each is of type NoneType", lines[2])
    assert re.match(r"  row 3: 'none.png' does not exist", lines[3])
    errors = pickle.loads(pickle.dumps(caught.value)).errors
    assert summarize_errors(errors, "image") == summarize_errors(caught.value.errors, "image")
    assert (
        summarize_errors({1: "is bad", 3: "is bad"}, "text")
        .splitlines()[1]
        .endswith("all): is bad")
    )


def test_torch_dataset_of_tuples_raises(tmp_path, no_weights):
    """A dataset of tuples raises an error before images are read; one of images is accepted."""
    read = []

    class Labelled(torch.utils.data.Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, row):
            read.append(row)
            return Image.new("RGB", (8, 8)), row

    encoder = TimmImageEncoder(cache=None)
    with pytest.raises(ValueError, match=r"dataset \(Labelled\) of tuples.*image, \*_ in X"):
        encoder.fit(Labelled())
    assert read == [0]
    with pytest.raises(ValueError, match="X is a DataLoader, which yields batches"):
        encoder.fit(torch.utils.data.DataLoader(Labelled()))
    encoder.fit(torch.utils.data.Subset([Image.new("RGB", (8, 8))] * 3, [0, 2]))


def test_length_of_torch_dataset_is_the_number_of_images():
    """A dataset that raises no IndexError would be read forever."""

    class Repeated(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, row):
            assert row < 3
            return Image.new("RGB", (8, 8))

    assert len(as_items(Repeated(), "image")) == 3
