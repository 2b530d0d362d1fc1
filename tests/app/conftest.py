"""Zips of real images, and encoders that take no time where the claim is not about encoders."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import HashingVectorizer

from sklearn_ape import KernelAligner
from sklearn_ape.app import Limits
from sklearn_ape.app._model import Model
from sklearn_ape.app._session import AppService

pytest.importorskip("gradio", reason='the page needs gradio: pip install "sklearn-ape[serve]"')


class Colours(TransformerMixin, BaseEstimator):
    """An image as an 8 by 8 image."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        small = [Image.open(path).convert("RGB").resize((8, 8)) for path in X]
        return np.array([np.asarray(image, dtype=np.float32).ravel() / 255 for image in small])

    def __sklearn_is_fitted__(self):
        return True


class Letters(TransformerMixin, BaseEstimator):
    """A text as counts of its letters by threes."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        vectors = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), n_features=128)
        return vectors.transform(list(X)).toarray().astype(np.float32)

    def __sklearn_is_fitted__(self):
        return True


@pytest.fixture(scope="session")
def fast_aligner(captioned_images):
    aligner = KernelAligner(image_encoder=Colours(), text_encoder=Letters())
    return aligner.fit(captioned_images.images[:200], captioned_images.captions[:200])


@pytest.fixture
def limits():
    return Limits()


@pytest.fixture
def studio(fast_aligner, captioned_images, limits):
    return AppService(Model(fast_aligner), captioned_images.images[:40], limits)


@pytest.fixture
def make_zip(tmp_path):
    """Write a zip of names and contents (bytes, text or a file's path) and return its path."""

    def make(contents, name="some.zip"):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for inside, content in contents.items():
                if isinstance(content, Path):
                    content = content.read_bytes()
                file.writestr(inside, content)
        return path

    return make


@pytest.fixture
def captioned_zip(make_zip, captioned_images):
    """A zip of real images with their captions beside them."""

    def make(start, stop, name="captioned.zip"):
        contents = {}
        for row in range(start, stop):
            contents[f"set/{row}.png"] = Path(captioned_images.images[row])
            contents[f"set/{row}.txt"] = captioned_images.captions[row]
        return make_zip(contents, name)

    return make
