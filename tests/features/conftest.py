"""Entries with known features, and a disk cache that holds them."""

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache

N_ENTRIES, WIDTH = 200, 64


def truth(number):
    key = number.to_bytes(32, "little")
    return key, np.random.default_rng(number).normal(size=WIDTH).astype(np.float32)


TRUTH = dict(truth(number) for number in range(N_ENTRIES))


def assert_only_true(found):
    for key, feature in found.items():
        np.testing.assert_array_equal(feature, TRUTH[key])


@pytest.fixture
def folder(tmp_path):
    with DiskFeatureCache(tmp_path / "cache") as cache:
        cache.put_many(TRUTH)
    return tmp_path / "cache"
