"""Inputs of encoders, and errors that name row, item and remedy."""

import warnings
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sklearn_ape.encoders import (
    EncodingError,
    TimmImageEncoder,
    TransformersTextEncoder,
)
from sklearn_ape.encoders._engine import TorchEngine
from tests.encoders.conftest import ALL, gained

TEXTS = ["a cat", "two dogs on a long walk through the woods", "a rocket"]


def test_every_form_of_an_image_gives_the_same_feature(paths, truth):
    image = Image.open(paths[0])
    array = np.asarray(image.convert("RGB"))
    forms = [paths[0], Path(paths[0]), Path(paths[0]).read_bytes(), image, array]
    features = TimmImageEncoder(cache=None).transform(forms)
    np.testing.assert_allclose(features, truth[[0] * 5], atol=1e-5)
    stack = np.stack([array, array[::-1]])
    np.testing.assert_allclose(TimmImageEncoder().transform(stack)[0], truth[0], atol=1e-5)
    grey = np.zeros((2, 30, 40), dtype=np.uint8)
    assert TimmImageEncoder().transform(grey).shape == (2, 1280)


def test_members_of_an_enum_of_texts_are_their_values():
    """str() of a member is its name, which would be another text."""
    Kind = Enum("Kind", {"CAT": TEXTS[0], "DOGS": TEXTS[1]}, type=str)
    expected = TransformersTextEncoder(cache=None).transform(TEXTS[:2])
    features = TransformersTextEncoder(cache=None).transform(list(Kind))
    np.testing.assert_array_equal(features, expected)


def test_hugging_face_column_is_accepted(paths, truth):
    """A column of PIL images is accepted, and the dataset raises an error with its columns."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": paths[:3]}).cast_column("image", datasets.Image())
    np.testing.assert_allclose(TimmImageEncoder().transform(data["image"]), truth[:3], atol=1e-5)
    with pytest.raises(ValueError, match="table with the columns 'image'"):
        TimmImageEncoder().transform(data)


@pytest.mark.parametrize("n_valid", [0, 1])
def test_missing_and_unreadable_files_are_in_one_error(paths, tmp_path, n_valid, no_weights):
    """A missing file is found when digests are computed, and a file of text by its header."""
    (tmp_path / "text.png").write_text("not an image")
    items = [*paths[:n_valid], tmp_path / "text.png", "none.png", tmp_path / "text.png"]
    with pytest.raises(EncodingError, match="3 images cannot be encoded") as caught:
        TimmImageEncoder(cache=None).transform(items)
    assert [row - n_valid for row in caught.value.errors] == [0, 1, 2]


def test_hugging_face_dicts_are_accepted(paths, truth):
    """Dicts with bytes or path, as from `datasets.Image(decode=False)`, are images."""
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
        (np.zeros((3, 8, 9), dtype=np.uint8), r"row 0: the array is .*\(3, 8, 9\).*must be last"),
        (np.zeros((1, 300), dtype=np.uint8), r"row 0: the array is too narrow .300 x 1"),
        (torch.zeros(3, 8, 8), r"row 0: tensor\(.* is of type Tensor"),
    ],
)
def test_item_messages_are_sentences(item, message):
    with pytest.raises(EncodingError, match=message):
        TimmImageEncoder(cache=None).transform([item])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("", "'' is an empty text"),
        (" \n", "is an empty text"),
        (None, "None is a missing value, not a text"),
        (float("nan"), "nan is a missing value, not a text"),
        (7, r"7 is of type int\. Pass a str"),
        (b"a cat", r"is of type bytes\. Pass a str"),
        (["a cat"], r"is of type list\. Pass a str"),
        (np.zeros(3), r"the array is of type ndarray\. Pass a str\. .* to the aligner, not as a"),
        ("half a pair \ud800", "not valid Unicode"),
    ],
)
def test_invalid_text_raises(item, message, no_weights):
    """An empty or missing text raises an error before the network is loaded."""
    with pytest.raises(EncodingError, match=f"row 1: .*{message}"):
        TransformersTextEncoder(cache=None).transform(["a cat", item])


def test_pandas_missing_text_raises(no_weights):
    pd = pytest.importorskip("pandas")
    for missing in (pd.NA, pd.NaT):
        with pytest.raises(EncodingError, match="is a missing value"):
            TransformersTextEncoder(cache=None).transform([missing])


def test_image_path_as_text_raises(paths, no_weights):
    """The path of an image raises an error, but a caption that ends like one does not."""
    with pytest.raises(EncodingError, match="Pass captions to the text encoder"):
        TransformersTextEncoder(cache=None).transform([paths[0]])


def test_on_error_nan_gives_nan_rows_and_warns(encoder, paths, truth, tmp_path):
    """Invalid rows are NaN and in `errors_`; valid rows are encoded and cached."""
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


def test_on_error_nan_with_only_invalid_items():
    """If no item is valid, the number of features is still right."""
    with pytest.warns(UserWarning, match="2 images"):
        assert TimmImageEncoder(on_error="nan").transform([None, "x.png"]).shape == (2, 1280)


def test_nan_or_infinite_features_raise(paths, monkeypatch):
    """Features with NaN or infinity raise an error and are not cached."""
    call = TorchEngine.__call__
    monkeypatch.setattr(TorchEngine, "__call__", lambda *args: call(*args) + np.float32("inf"))
    with pytest.raises(EncodingError, match="NaN or infinite"):
        TimmImageEncoder(cache=None, engine="torch").transform(paths[:1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 'auto' or an integer >= 1, not 0"),
        ({"batch_size": True}, "batch_size must be 'auto' or an integer >= 1, not True"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"batch_size": None}, "batch_size"),
        ({"n_jobs": 0}, "n_jobs must be None, a positive integer or -1"),
        ({"n_jobs": 1.5}, "n_jobs must be None, .* not 1.5"),
        ({"n_jobs": "all"}, "n_jobs must be None, .* not 'all'"),
        ({"pooling": "max"}, "pooling must be one of auto, mean, gem, cls, cls.mean, not 'max'"),
        ({"crop": "squash"}, "crop must be one of center, pad"),
        ({"output": "probabilities"}, "output must be one of features, logits"),
        ({"dtype": "float64"}, "dtype must be one of auto, float32, bfloat16, float16"),
        ({"dtype": torch.float32}, "dtype must be one of"),
        ({"device": "gpu"}, "device must be 'auto'"),
        ({"on_error": "ignore"}, "on_error must be one of raise, nan"),
        ({"model_name": None}, "model_name must be a str, not None"),
        ({"model_name": ""}, "model_name must be a str"),
        ({"cache": ""}, "cache must be 'memory', a folder, a feature cache or None, not ''"),
    ],
)
def test_invalid_parameter_raises(parameters, message, no_weights):
    """fit and transform raise an error with the valid choices."""
    for method in ("fit", "transform"):
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(TimmImageEncoder(**parameters), method)(["a.png"])


@pytest.mark.parametrize("cls", ALL)
def test_missing_cuda_raises(cls, monkeypatch, no_weights):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Use device='auto'"):
        cls(device="cuda").fit(["a"])


def test_duplicate_damaged_files_are_reported_per_row(tmp_path, image_encoder):
    paths = [tmp_path / name for name in ("first.jpg", "second.jpg")]
    for path in paths:
        path.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(EncodingError) as raised:
        image_encoder.transform([str(path) for path in paths])
    for row, path in enumerate(paths):
        assert path.name in raised.value.errors[row]
