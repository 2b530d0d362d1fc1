"""Fixtures of cache tests: entries with reproducible features, and a disk cache of them."""

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache, _disk_cache

N_ENTRIES, WIDTH = 200, 64


def make_entry(number):
    key = number.to_bytes(32, "little")
    return key, np.random.default_rng(number).normal(size=WIDTH).astype(np.float32)


ENTRIES = dict(make_entry(number) for number in range(N_ENTRIES))


def assert_equal_to_entries(features):
    for key, feature in features.items():
        np.testing.assert_array_equal(feature, ENTRIES[key])


@pytest.fixture
def folder(tmp_path):
    with DiskFeatureCache(tmp_path / "cache") as cache:
        cache.put_many(ENTRIES)
    return tmp_path / "cache"


@pytest.fixture(params=["queries", "scan"])
def way_of_reading(request, monkeypatch):
    """Read by queries of keys, or by a scan of the whole table."""
    if request.param == "scan":
        monkeypatch.setattr(_disk_cache, "_MIN_KEYS_TO_SCAN", 0)
