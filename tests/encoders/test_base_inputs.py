"""What encoders take, and how they refuse the rest: errors name the row, the item, the remedy."""

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sklearn_ape.encoders import (
    EncodingError,
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
)
from sklearn_ape.encoders._engines._base import TorchEngine
from sklearn_ape.encoders.items import summarize_errors
from tests.encoders.counting import gained

ALL = [
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
]
TEXTS = ["a cat", "two dogs on a long walk through the woods", "a rocket"]


def test_every_form_of_an_image_gives_the_same_feature(paths, truth):
    """Path, str, bytes, PIL image and array of one image; lists and arrays of them."""
    image = Image.open(paths[0])
    array = np.asarray(image.convert("RGB"))
    forms = [paths[0], Path(paths[0]), Path(paths[0]).read_bytes(), image, array]
    features = TimmImageEncoder(cache=None).transform(forms)
    np.testing.assert_allclose(features, truth[[0] * 5], atol=1e-5)
    stack = np.stack([array, array[::-1]])
    np.testing.assert_allclose(TimmImageEncoder().transform(stack)[0], truth[0], atol=1e-5)
    grey = np.zeros((2, 30, 40), dtype=np.uint8)
    assert TimmImageEncoder().transform(grey).shape == (2, 1280)


def test_columns(paths, truth):
    """Object arrays, pandas with an odd index, polars, pyarrow, a column of Hugging Face."""
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    few = paths[:3]
    columns = [
        tuple(few),
        np.array(few),
        np.array(few, dtype=object),
        pd.Series(few, index=[9, 9, 3]),
        pl.Series(few),
        pa.array(few),
        pa.chunked_array([few[:1], few[1:]]),
    ]
    for column in columns:
        np.testing.assert_allclose(TimmImageEncoder().transform(column), truth[:3], atol=1e-5)
    texts = TransformersTextEncoder().transform(TEXTS)
    for column in (pd.Series(TEXTS, index=[5, 5, 1]), pl.Series(TEXTS), pa.array(TEXTS)):
        np.testing.assert_array_equal(TransformersTextEncoder().transform(column), texts)


def test_hugging_face_column(paths, truth):
    """A column of `datasets` holds PIL images; the dataset itself is refused with its columns."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": paths[:3]}).cast_column("image", datasets.Image())
    np.testing.assert_allclose(TimmImageEncoder().transform(data["image"]), truth[:3], atol=1e-5)
    with pytest.raises(ValueError, match=r"table with the columns \['image'\]"):
        TimmImageEncoder().transform(data)


@pytest.mark.parametrize("method", ["fit", "transform"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a.png", r"single image, not a sequence of images. Pass a list: \[X\]"),
        (b"abc", "single image"),
        (bytearray(b"abc"), "single image"),
        (Path("a.png"), "single image"),
        (Image.new("RGB", (2, 2)), "single image"),
        (np.zeros((20, 30, 3), dtype=np.uint8), r"pass a single image as \[X\]"),
        (np.zeros((20, 30), dtype=np.uint8), r"pass a single image as \[X\]"),
        (np.zeros((20, 1280)), "features need no image encoder"),
        ([], "X is empty: 0 images"),
        (None, "must be a sequence of images, .* not NoneType"),
        ({"a": "a.png"}, "must be a sequence of images, .* not dict"),
        ({"a.png"}, "must be a sequence of images, .* not set"),
        ((path for path in "ab"), "must be a sequence of images, .* not generator"),
        (np.array("a.png"), "not an array without dimensions"),
    ],
)
def test_what_is_no_sequence(method, X, message, no_weights):
    """Each has its own error, in fit as in transform, before any weights are loaded."""
    with pytest.raises(ValueError, match=message):
        getattr(TimmImageEncoder(), method)(X)


def test_tables_are_refused_by_the_names_of_their_columns(no_weights):
    """pandas, polars and pyarrow tables: the error lists the columns to choose from."""
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    content = {"path": ["a.png"], "caption": ["a cat"]}
    for table in (pd.DataFrame(content), pl.DataFrame(content), pa.table(content)):
        with pytest.raises(ValueError, match=r"table with the columns \['path', 'caption'\]"):
            TimmImageEncoder().transform(table)


def test_error_names_rows_items_and_remedy(paths, no_weights):
    """Every bad row is in `errors`, five in the message, and no network was loaded."""
    bad = [f"missing{number}.png" for number in range(7)]
    with pytest.raises(EncodingError, match="7 images cannot be encoded") as caught:
        TimmImageEncoder(cache=None).transform([paths[0], *bad])
    message = str(caught.value)
    assert "row 1: 'missing0.png' does not exist" in message
    assert "and 2 more" in message
    assert "pass on_error='nan' to TimmImageEncoder" in message
    assert list(caught.value.errors) == list(range(1, 8))
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.errors == caught.value.errors
    assert str(again) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda image, n: (image, n), r"each is of type tuple: .*\[image for image, \*_ in"),
        (lambda image, n: torch.full((3, 8, 8), n), "each is of type Tensor: .*to_pil_image"),
        (lambda image, n: np.full((8, 8, 3), n / 9), "each is an array of float64: .*255"),
        (lambda image, n: {"image": image}, "each is of type dict: .*'bytes' or 'path'"),
        (lambda image, n: n, "each is of type int"),
    ],
)
def test_one_reason_of_all_rows_is_said_once(make, message, no_weights):
    """With how many rows it is the reason of, and what to do."""
    image = Image.new("RGB", (8, 8))
    with pytest.raises(EncodingError) as caught:
        TimmImageEncoder(cache=None).transform([make(image, n) for n in range(100)])
    first, line, remedy = str(caught.value).splitlines()
    assert first == "100 images cannot be encoded:"
    assert re.search(rf"rows 0, 1, 2, 3, 4, \.\.\. \(100 in all\): {message}", line)
    assert remedy.startswith("Remove them")
    assert list(caught.value.errors) == list(range(100))


def test_several_reasons_have_a_line_each(tmp_path, no_weights):
    """Files are named, rows of one reason are together, and pickling keeps the lines."""
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


def test_data_sets_of_torch(tmp_path, no_weights):
    """A data set of tuples is refused before its images are read; one of images is taken."""
    read = []

    class Labelled(torch.utils.data.Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, row):
            read.append(row)
            return Image.new("RGB", (8, 8)), row

    encoder = TimmImageEncoder(cache=None)
    with pytest.raises(ValueError, match=r"data set \(Labelled\) of tuples.*image, \*_ in X"):
        encoder.fit(Labelled())
    assert read == [0]
    with pytest.raises(ValueError, match="X is a DataLoader, which yields batches"):
        encoder.fit(torch.utils.data.DataLoader(Labelled()))
    encoder.fit(torch.utils.data.Subset([Image.new("RGB", (8, 8))] * 3, [0, 2]))


def test_undecoded_images_of_hugging_face(paths, truth):
    """A dict of bytes and path, as `datasets.Image(decode=False)` and parquet files give it."""
    content = Path(paths[0]).read_bytes()
    dicts = [
        {"bytes": content, "path": None},
        {"bytes": content, "path": "name-only.png"},
        {"bytes": None, "path": paths[1]},
    ]
    features = TimmImageEncoder(cache=None).transform(dicts)
    np.testing.assert_allclose(features, truth[[0, 0, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, "row 0: None is of type NoneType"),
        (float("nan"), "row 0: nan is of type float"),
        (b"", r"row 0: the bytes object is empty"),
        (np.zeros((3, 8, 9), dtype=np.uint8), r"row 0: the array is .*\(3, 8, 9\).*come last"),
        (np.zeros((1, 300), dtype=np.uint8), r"row 0: the array is too narrow: 300 x 1"),
        (torch.zeros(3, 8, 8), r"row 0: tensor\(.* is of type Tensor"),
    ],
)
def test_messages_read_well(item, message):
    """Row, item and what is wrong with it make one sentence."""
    with pytest.raises(EncodingError, match=message):
        TimmImageEncoder(cache=None).transform([item])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("", "'' is empty: expected a text"),
        (" \n", "is empty: expected a text"),
        (None, "None is no text .a missing caption"),
        (float("nan"), "nan is no text .a missing caption"),
        (7, "7 is of type int: expected a str"),
        (b"a cat", "is of type bytes: expected a str"),
        (["a cat"], "is of type list: expected a str"),
        (np.zeros(3), "the array is of type ndarray: expected a str"),
        ("half a pair \ud800", "no valid Unicode"),
    ],
)
def test_bad_texts(item, message, no_weights):
    """An empty or missing caption is named, before the network is loaded."""
    with pytest.raises(EncodingError, match=f"row 1: .*{message}"):
        TransformersTextEncoder(cache=None).transform(["a cat", item])


def test_pandas_missing_texts(no_weights):
    """pandas' own missing value is one, too."""
    pd = pytest.importorskip("pandas")
    for missing in (pd.NA, pd.NaT):
        with pytest.raises(EncodingError, match="is no text"):
            TransformersTextEncoder(cache=None).transform([missing])


def test_image_given_as_text(paths, no_weights):
    """A path to an image in place of a caption is a mix-up; a caption with a dot is not."""
    with pytest.raises(EncodingError, match="captions go to the text encoder"):
        TransformersTextEncoder(cache=None).transform([paths[0]])


def test_on_error_nan(encoder, paths, truth, tmp_path):
    """Bad rows are NaN, good ones right and cached; one warning, and `errors_` names all."""
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[3]).read_bytes()[:200])
    X = [paths[0], "none.png", paths[1], cut, None, paths[2]]
    encoder.set_params(on_error="nan", batch_size=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = encoder.transform(X)
    (warning,) = caught
    assert warning.filename == __file__
    assert "3 images cannot be encoded" in str(warning.message)
    assert list(encoder.errors_) == [1, 3, 4]
    np.testing.assert_array_equal(np.isnan(features).all(axis=1), [0, 1, 0, 1, 1, 0])
    np.testing.assert_allclose(features[[0, 2, 5]], truth[:3], atol=1e-5)
    assert gained(encoder, paths[:3]) == (3, 0)
    assert encoder.errors_ == {}


def test_on_error_nan_with_nothing_good():
    """All rows bad is still an array of the right width."""
    with pytest.warns(UserWarning, match="2 images"):
        assert TimmImageEncoder(on_error="nan").transform([None, "x.png"]).shape == (2, 1280)


def test_numbers_that_are_not_finite_are_an_error(paths, monkeypatch):
    """A network that overflows gives an error, not a feature, and nothing is cached."""
    call = TorchEngine.__call__
    monkeypatch.setattr(TorchEngine, "__call__", lambda *args: call(*args) + np.float32("inf"))
    with pytest.raises(EncodingError, match="not finite in float32"):
        TimmImageEncoder(cache=None, engine="torch").transform(paths[:1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 'auto' or an integer >= 1, not 0"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"batch_size": None}, "batch_size"),
        ({"pooling": "max"}, "pooling must be one of auto, mean, gem, cls, cls.mean, not 'max'"),
        ({"crop": "squash"}, "crop must be one of center, pad"),
        ({"output": "probabilities"}, "output must be one of features, logits"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16"),
        ({"dtype": torch.float32}, "dtype must be one of"),
        ({"device": "gpu"}, "device must be 'auto'"),
        ({"on_error": "ignore"}, "on_error must be one of raise, nan"),
        ({"model_name": None}, "model_name must be a str, not None"),
        ({"model_name": ""}, "model_name must be a str"),
    ],
)
def test_bad_parameters(parameters, message, no_weights):
    """A wrong parameter is named with its choices, in fit as in transform."""
    for method in ("fit", "transform"):
        with pytest.raises(ValueError, match=message):
            getattr(TimmImageEncoder(**parameters), method)(["a.png"])


@pytest.mark.parametrize("cls", ALL)
def test_no_cuda(cls, monkeypatch, no_weights):
    """device="cuda" on a machine without it names device="auto"."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Use device='auto'"):
        cls(device="cuda").fit(["a"])


def test_equal_broken_files_are_each_named_in_their_own_row(tmp_path, image_encoder):
    """Content is encoded once, but an error names the file of its row."""
    paths = [tmp_path / name for name in ("first.jpg", "second.jpg")]
    for path in paths:
        path.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(EncodingError) as raised:
        image_encoder.transform([str(path) for path in paths])
    for row, path in enumerate(paths):
        assert path.name in raised.value.errors[row]
