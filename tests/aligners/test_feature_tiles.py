"""Rows of features a few at a time, from memory, files and tables."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_array, csr_array

from sklearn_ape.features import memmap as _feature_tiles
from sklearn_ape.features.memmap import feature_tiles, is_table, row_tiles


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(_feature_tiles, "TILE_BYTES", 20 * 4 * 8)


def test_tiles_are_all_rows_in_order_and_small(small_tiles):
    rows = list(row_tiles(50, width=8))
    assert [(some.start, some.stop) for some in rows] == [(0, 20), (20, 40), (40, 50)]
    assert list(row_tiles(0, width=8)) == [slice(0, 0)]
    widths = [some.stop - some.start for some in row_tiles(10**6, width=10**9)]
    assert max(widths) == 16  # wide rows are not taken one by one


def test_features_of_any_kind_come_as_they_are(small_tiles, tmp_path):
    X = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float16)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    kinds = X, mapped, np.asarray(mapped), mapped[:, :], mapped.copy(), pd.DataFrame(X)
    for table in kinds:
        parts = list(feature_tiles(table, 1, lambda some: some))
        assert len(parts) == 3
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), X)
        assert [rows.start for rows, _ in parts] == [0, 20, 40]
    sparse = csr_array(X.astype(np.float32))
    parts = [part for _, part in feature_tiles(sparse, 1, lambda some: some.toarray())]
    np.testing.assert_array_equal(np.concatenate(parts), X)


def test_what_is_no_table_of_numbers():
    assert all(is_table(X) for X in (np.ones((2, 3)), csr_array(np.eye(2))))
    others = [["a.png"], [[1.0, 2.0]], np.ones(3), np.ones((2, 3, 3)), np.array([["a"]])]
    assert not any(is_table(X) for X in [*others, coo_array(np.eye(2)), pd.Series([1.0])])


def test_an_error_says_in_which_rows(small_tiles):
    def refuse(some):
        if some[0, 0] == 40:
            raise ValueError("row 3 is bad")
        return some

    X = np.arange(50.0)[:, None] * np.ones(8)
    with pytest.raises(ValueError, match=r"rows 40 to 49 of X .*relative to row 40.*: row 3 is"):
        list(feature_tiles(X, 1, refuse))
