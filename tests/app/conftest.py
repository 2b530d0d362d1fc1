"""Fixtures: zip files of images, and a service with fast encoders."""

import gc
import zipfile
from importlib.util import find_spec
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

# Not importorskip, which would import gradio for seconds in each process that collects tests.
if find_spec("gradio") is None:
    pytest.skip('the page needs gradio: pip install "sklearn-ape[serve]"', allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def collect_event_loops():
    """Collect event loops that Gradio leaves open.

    Found by a garbage collection during a later test, for which warnings are errors, they fail it.
    """
    yield
    gc.collect()


def ignore_progress(fraction, step):
    """Progress callback that does nothing."""


class PixelEncoder(TransformerMixin, BaseEstimator):
    """Encoder that returns the pixels of an 8 x 8 image."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        small = [Image.open(path).convert("RGB").resize((8, 8)) for path in X]
        return np.array([np.asarray(image, dtype=np.float32).ravel() / 255 for image in small])

    def __sklearn_is_fitted__(self):
        return True


class TrigramEncoder(TransformerMixin, BaseEstimator):
    """Encoder that returns counts of letter trigrams."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        vectors = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), n_features=128)
        return vectors.transform(list(X)).toarray().astype(np.float32)

    def __sklearn_is_fitted__(self):
        return True


@pytest.fixture(scope="session")
def fast_aligner(captioned_images):
    aligner = KernelAligner(image_encoder=PixelEncoder(), text_encoder=TrigramEncoder())
    return aligner.fit(captioned_images.images[:200], captioned_images.captions[:200])


@pytest.fixture
def limits():
    return Limits()


@pytest.fixture
def service(fast_aligner, captioned_images, limits):
    return AppService(Model(fast_aligner), captioned_images.images[:40], limits)


@pytest.fixture
def make_zip(tmp_path):
    """Return a function that writes a zip of contents (bytes, text or a path) by name."""

    def make(contents, name="images.zip"):
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
    """Return a function that writes a zip of images with sidecar captions."""

    def make(start, stop, name="captioned.zip"):
        contents = {}
        for row in range(start, stop):
            contents[f"set/{row}.png"] = Path(captioned_images.images[row])
            contents[f"set/{row}.txt"] = captioned_images.captions[row]
        return make_zip(contents, name)

    return make
