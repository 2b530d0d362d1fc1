"""Fixtures for the tests of encoders."""

import pytest

from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
)
from sklearn_ape.encoders.base import FrozenEncoder

ALL = [
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
]


def gained(encoder, X):
    """Return the hits and misses of one transform."""
    before = encoder.cache_info()
    encoder.transform(X)
    after = encoder.cache_info()
    return after.hits - before.hits, after.misses - before.misses


@pytest.fixture(scope="module")
def paths():
    return load_openmoji().images[:12]


@pytest.fixture(scope="module")
def truth(paths):
    return TimmImageEncoder(cache=None).transform(paths)


@pytest.fixture
def encoder(tmp_path):
    return TimmImageEncoder(cache=tmp_path / "cache")


@pytest.fixture
def no_weights(monkeypatch):
    def fails(self, *args):
        raise AssertionError("the network was called for")

    monkeypatch.setattr(FrozenEncoder, "_get_network", fails)
