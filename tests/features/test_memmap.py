"""Memory-mapped features, tiles of rows and lazily read rows."""

import resource
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import coo_array, csr_array

from sklearn_ape.features import memmap as _feature_tiles
from sklearn_ape.features import memmap as _stored
from sklearn_ape.features.memmap import (
    feature_tiles,
    find_memmap,
    is_table,
    release_pages,
    row_tiles,
)
from sklearn_ape.training import PairBatches, PairDataset, StoredRows, stays_stored
from sklearn_ape.training import select as select_rows


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "X.npy", np.ones((4_000, 1_000), dtype=np.float32))  # 16 MB
    return np.load(tmp_path / "X.npy", mmap_mode="r")


def test_a_map_is_found_behind_its_views(mapped):
    for view in (mapped, mapped[3:], np.asarray(mapped), np.asarray(mapped)[:, 2:][::2]):
        owner = find_memmap(view)
        assert owner is not None
        assert owner.filename == mapped.filename
    others = (np.ones(3), np.ones(3)[1:], [1.0], np.array(mapped[:2]), mapped[[0, 2]], None)
    for other in others:
        assert find_memmap(other) is None
        release_pages(other)  # does nothing


@pytest.mark.parametrize("make", [lambda X: X.copy(), np.sort, lambda X: X.astype("f8")])
def test_a_copy_in_memory_is_no_map(mapped, make):
    """numpy calls some of them one."""
    copy = make(mapped[:3])
    assert find_memmap(copy) is None
    release_pages(copy)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the system's count of pages")
class TestForget:
    def test_a_map_that_has_been_read_is_not_in_memory(self, mapped):
        """Else a file of any size would seem to be in memory, page by page."""
        before = resident()
        mapped.sum()
        held = resident() - before
        release_pages(mapped[:])
        assert held > 12e6
        assert resident() - before < 4e6
        assert mapped.sum() == 4e6

    @pytest.mark.parametrize("view", [np.asarray, lambda mapped: mapped[:, 10:990]])
    def test_only_the_rows_given(self, mapped, view):
        """The others may be in use."""
        mapped.sum()
        before = resident()
        # A system may drop pages of 2 MiB whole.
        for _ in range(2):
            release_pages(view(mapped)[1_000:2_000])
            assert 3.8e6 < before - resident() < 8.5e6
        release_pages(view(mapped)[3_000:])
        assert 7.6e6 < before - resident() < 13e6
        assert (mapped == 1).all()

    def test_other_orders_do_no_harm(self, mapped):
        for view in (mapped[::-1], mapped.T, mapped[:0], mapped[5]):
            release_pages(view)
        assert (mapped == 1).all()


def test_what_was_written_to_a_private_map_stays(tmp_path):
    np.save(tmp_path / "X.npy", np.zeros((4_000, 4), dtype=np.float32))
    for mode in ("c", "r+"):
        mapped = np.load(tmp_path / "X.npy", mmap_mode=mode)
        mapped[:] = 7
        release_pages(mapped[:])
        assert (mapped == 7).all()


def test_where_the_system_takes_no_advice(mapped, monkeypatch):
    monkeypatch.delattr("mmap.MADV_DONTNEED")
    release_pages(mapped[:])
    assert (mapped[:10] == 1).all()


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
    with pytest.raises(ValueError, match=r"In rows 40 to 49 of X, counted from .*: row 3 is bad"):
        list(feature_tiles(X, 1, refuse))


@pytest.fixture
def make_memmap(tmp_path):
    def make(array):
        np.save(tmp_path / "features.npy", array)
        return np.load(tmp_path / "features.npy", mmap_mode="r")

    return make


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16)


class TestStoredRows:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
    def test_gives_rows_of_any_order_as_float32(self, make_memmap, features, dtype):
        stored = StoredRows(make_memmap(features.astype(dtype)))
        expected = features.astype(np.float32)
        rows = np.array([7, 3, 3, 49, 0])
        for index in (rows, slice(3, 9), slice(None, None, 7), np.array([], dtype=int)):
            found = stored[index]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected[index])

    def test_some_rows_of_some_rows_with_others_behind_them(self, features):
        stored = StoredRows(features, missing=np.arange(50) == 9)
        more = np.full((2, 4), 5.0)
        some = stored.append(more).append(2 * more)
        assert len(some) == 54
        expected = np.concatenate([features.astype(np.float32), more, 2 * more])
        rows = np.array([53, 9, 50, 0, 51])
        np.testing.assert_array_equal(some[rows], expected[rows])
        assert some.missing.sum() == 1

    def test_a_few_rows_come_to_memory_and_many_stay(self, features, monkeypatch):
        stored = StoredRows(features, missing=np.arange(50) == 9)
        assert isinstance(select_rows(stored, np.arange(5)), np.ndarray)
        monkeypatch.setattr(_stored, "_LEAST_BYTES", 0)
        rows = np.array([9, 30, 2])
        some = select_rows(stored, rows)
        assert isinstance(some, StoredRows)
        assert some.missing.tolist() == [True, False, False]
        np.testing.assert_array_equal(
            select_rows(some, np.array([2, 0]))[:], features[[2, 9]].astype(np.float32)
        )


def test_what_was_written_to_a_map_that_is_a_copy_stays(tmp_path, features):
    """Pages that were read are let go of; those of a copy on write hold the only copy."""
    np.save(tmp_path / "features.npy", features)
    copied = np.load(tmp_path / "features.npy", mmap_mode="c")
    copied[3] = 8
    stored = StoredRows(copied)
    for _ in range(2):
        assert stored[np.array([3, 4])][0].tolist() == [8] * 4
        assert stored[3:5][0].tolist() == [8] * 4


def test_only_large_maps_and_large_half_precision_stay(make_memmap, features, monkeypatch):
    single = make_memmap(features.astype(np.float32))
    assert not stays_stored(single)
    assert not stays_stored(features)
    monkeypatch.setattr(_stored, "_LEAST_BYTES", 4 * features.size - 1)
    assert stays_stored(single)
    assert stays_stored(np.asarray(single))  # a view of a map
    assert stays_stored(features)
    assert not stays_stored(single[:-1])
    assert not stays_stored(features.astype(np.float32))
    assert not stays_stored(make_memmap(features.astype(int)))
    assert not stays_stored(features.tolist())


class TestReadingAhead:
    def datasets(self, features):
        pairs = np.column_stack([np.arange(50)] * 2)
        image = features.astype(np.float32)
        text = torch.arange(50.0)[:, None]
        return (
            PairDataset(torch.from_numpy(image), text, pairs),
            PairDataset(StoredRows(features), text, pairs),
        )

    @pytest.mark.parametrize("mixup", [0.0, 1.0])
    def test_batches_are_those_of_memory(self, features, mixup):
        """Where features lie must not change what is learned."""
        both = [
            PairBatches(data, 16, shuffle=True, seed=1, mixup=mixup)
            for data in self.datasets(features)
        ]
        for _ in range(2):
            for (one, _), (other, _) in zip(*both, strict=True):
                for side in one:
                    assert torch.equal(one[side], other[side])

    def test_is_done_by_a_thread_that_ends_with_the_loop(self, features):
        """Two batches are under way at most, also of an epoch that is broken off."""
        seen = []

        class Noted(StoredRows):
            def __getitem__(self, index):
                seen.append(threading.current_thread().name)
                return super().__getitem__(index)

        data = self.datasets(features)[1]
        data.image = Noted(features)
        batches = iter(PairBatches(data, 5))
        next(batches)
        batches.close()
        assert 1 <= len(seen) <= 3
        assert all(name.startswith("sklearn_ape") for name in seen)
        assert not any(t.name.startswith("sklearn_ape") for t in threading.enumerate())

    def test_an_error_of_reading_is_raised(self, features):
        class Torn(StoredRows):
            def __getitem__(self, index):
                raise OSError("the disk is gone")

        data = self.datasets(features)[1]
        data.image = Torn(features)
        with pytest.raises(OSError, match="the disk is gone"):
            list(PairBatches(data, 5))
