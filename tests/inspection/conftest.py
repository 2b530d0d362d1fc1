"""Fixtures of display tests, which draw without a window."""

import matplotlib
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_ape import KernelAligner

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.fixture(scope="session")
def model(captioned_images, features, image_encoder, text_encoder):
    """Return a model that is fitted on the first 200 images; the last 100 are for testing."""
    aligner = KernelAligner(text_encoder=text_encoder)
    return make_pipeline(image_encoder, aligner).fit(
        captioned_images.images[:200], captioned_images.captions[:200]
    )


@pytest.fixture(scope="session")
def held_out(captioned_images):
    return (
        captioned_images.images[200:],
        captioned_images.captions[200:],
        captioned_images.categories[200:],
    )


@pytest.fixture
def ax():
    from matplotlib import pyplot

    return pyplot.subplots()[1]


@pytest.fixture
def forbid_computation(monkeypatch):
    """Return a function that makes encoders and aligners raise an error from then on."""

    def forbid():
        from sklearn_ape.aligners._base import BaseAligner
        from sklearn_ape.encoders.base import FrozenEncoder

        def fail(*args, **kwargs):
            raise AssertionError("computed again")

        for owner, name in (
            (BaseAligner, "transform"),
            (BaseAligner, "transform_text"),
            (BaseAligner, "similarity"),
            (BaseAligner, "_make_scored_pairs"),
            (FrozenEncoder, "transform"),
        ):
            monkeypatch.setattr(owner, name, fail)

    return forbid
