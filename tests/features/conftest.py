"""Fixture: a disk cache with known entries."""

import pytest

from sklearn_ape.features import DiskFeatureCache
from tests.features.entries import TRUTH


@pytest.fixture
def folder(tmp_path):
    with DiskFeatureCache(tmp_path / "cache") as cache:
        cache.put_many(TRUTH)
    return tmp_path / "cache"
