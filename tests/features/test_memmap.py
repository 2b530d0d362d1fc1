"""Memory-mapped features, tiles of rows and lazily read rows."""

import re
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import coo_array, csr_array

from sklearn_ape.features import matrix
from sklearn_ape.features.matrix import (
    StoredRows,
    find_memmap,
    is_table,
    iter_feature_tiles,
    iter_row_tiles,
    release_pages,
    row_blocks,
    stays_stored,
)
from sklearn_ape.features.matrix import select as select_rows
from sklearn_ape.training import PairBatches, PairDataset


@pytest.fixture
def memmap(tmp_path):
    np.save(tmp_path / "X.npy", np.ones((4_000, 1_000), dtype=np.float32))  # 16 MB
    return np.load(tmp_path / "X.npy", mmap_mode="r")


def test_memmap_is_found_behind_its_views(memmap):
    for view in (memmap, memmap[3:], np.asarray(memmap), np.asarray(memmap)[:, 2:][::2]):
        owner = find_memmap(view)
        assert owner is not None
        assert owner.filename == memmap.filename
    others = (np.ones(3), np.ones(3)[1:], [1.0], np.array(memmap[:2]), memmap[[0, 2]], None)
    for other in others:
        assert find_memmap(other) is None
        release_pages(other)  # does nothing


@pytest.mark.parametrize("make", [lambda X: X.copy(), np.sort, lambda X: X.astype("f8")])
def test_copy_in_memory_is_not_a_memmap(memmap, make):
    """NumPy returns some copies as instances of `np.memmap`."""
    copy = make(memmap[:3])
    assert find_memmap(copy) is None
    release_pages(copy)


def resident(memmap):
    """Return how many bytes of the file are in memory, which does not count other threads."""
    with open("/proc/self/smaps") as file:
        lines = file.read().partition(f" {memmap.filename}\n")[2]
    return 1024 * int(re.search(r"^Rss: +(\d+) kB$", lines, flags=re.MULTILINE)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the system's count of pages")
class TestReleasePages:
    def test_released_pages_are_not_in_memory(self, memmap):
        """Otherwise the resident memory would grow to the size of the file."""
        before = resident(memmap)
        memmap.sum()
        held = resident(memmap) - before
        release_pages(memmap[:])
        assert held > 12e6
        assert resident(memmap) - before < 4e6
        assert memmap.sum() == 4e6

    @pytest.mark.parametrize("view", [np.asarray, lambda memmap: memmap[:, 10:990]])
    def test_only_pages_of_given_rows_are_released(self, memmap, view):
        """The other rows may be in use."""
        memmap.sum()
        before = resident(memmap)
        # The system may release huge pages of 2 MiB as a whole.
        for _ in range(2):
            release_pages(view(memmap)[1_000:2_000])
            assert 3.8e6 < before - resident(memmap) < 8.5e6
        release_pages(view(memmap)[3_000:])
        assert 7.6e6 < before - resident(memmap) < 13e6
        assert (memmap == 1).all()

    @pytest.mark.parametrize("convert", [lambda rows: rows, lambda rows: np.r_[rows]])
    def test_rows_that_were_read_are_not_in_memory(self, memmap, convert):
        before = resident(memmap)
        stored = StoredRows(memmap)
        for start in range(0, 4_000, 500):
            assert (stored[convert(slice(start, start + 500))] == 1).all()
        assert resident(memmap) - before < 8e6

    def test_tiles_that_were_read_are_not_in_memory(self, memmap, small_tiles):
        before = resident(memmap)
        for _, means in iter_feature_tiles(memmap, 1, lambda tile: tile.mean(axis=1)):
            assert (means == 1).all()
        assert resident(memmap) - before < 8e6

    def test_file_of_any_size_is_released(self, make_memmap):
        """The size is not a multiple of that of a float64."""
        rows = make_memmap(np.ones((3, 1), dtype=np.float32))
        release_pages(rows)
        assert (rows == 1).all()

    def test_views_in_other_orders_keep_their_content(self, memmap):
        for view in (memmap[::-1], memmap.T, memmap[:0], memmap[5]):
            release_pages(view)
        assert (memmap == 1).all()


def test_changes_of_private_memmap_are_kept(tmp_path):
    np.save(tmp_path / "X.npy", np.zeros((4_000, 4), dtype=np.float32))
    for mode in ("c", "r+"):
        memmap = np.load(tmp_path / "X.npy", mmap_mode=mode)
        memmap[:] = 7
        release_pages(memmap[:])
        assert (memmap == 7).all()


def test_release_pages_without_madvise_does_nothing(memmap, monkeypatch):
    monkeypatch.delattr("mmap.MADV_DONTNEED")
    release_pages(memmap[:])
    assert (memmap[:10] == 1).all()


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(matrix, "TILE_BYTES", 20 * 4 * 8)


def test_tiles_cover_all_rows_in_order_and_are_small(small_tiles):
    rows = list(iter_row_tiles(50, width=8))
    assert [(tile.start, tile.stop) for tile in rows] == [(0, 20), (20, 40), (40, 50)]
    assert list(iter_row_tiles(0, width=8)) == [slice(0, 0)]
    widths = [tile.stop - tile.start for tile in iter_row_tiles(10**6, width=10**9)]
    assert max(widths) == 16  # a minimum for wide rows


def test_tiles_of_every_kind_of_table_equal_its_rows(small_tiles, tmp_path):
    X = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float16)
    np.save(tmp_path / "X.npy", X)
    memmap = np.load(tmp_path / "X.npy", mmap_mode="r")
    # The index of the data frame is not that of its rows.
    frame = pd.DataFrame(X, index=np.arange(50.0)[::-1])
    kinds = X, memmap, np.asarray(memmap), memmap[:, :], memmap.copy(), frame
    for table in kinds:
        parts = list(iter_feature_tiles(table, 1, lambda block: block))
        assert len(parts) == 3
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), X)
        assert [rows.start for rows, _ in parts] == [0, 20, 40]
    sparse = csr_array(X.astype(np.float32))
    parts = [part for _, part in iter_feature_tiles(sparse, 1, lambda block: block.toarray())]
    np.testing.assert_array_equal(np.concatenate(parts), X)


def test_table_of_a_single_tile_is_not_copied():
    X = np.ones((5, 8))
    ((rows, embeddings),) = iter_feature_tiles(X, 1, lambda tile: tile)
    assert rows == slice(0, 5)
    assert embeddings is X


def test_only_two_dimensional_numeric_arrays_are_tables():
    tables = (np.ones((2, 3)), csr_array(np.eye(2)), pd.DataFrame({"a": ["b"]}), np.eye(2) > 0)
    assert all(is_table(X) for X in tables)
    others = [["a.png"], [[1.0, 2.0]], np.ones(3), np.ones((2, 3, 3)), np.array([["a"]])]
    assert not any(is_table(X) for X in [*others, coo_array(np.eye(2)), pd.Series([1.0])])
    assert not any(is_table(X) for X in (torch.ones(2, 3), memoryview(np.ones((2, 3)))))


def test_error_names_rows_of_tile(small_tiles):
    def raise_for_40(block):
        if block[0, 0] == 40:
            raise ValueError("row 3 is bad")
        return block

    def raise_other_error(block):
        if block[0, 0] == 40:
            raise UnicodeError("bad text")
        return block

    X = np.arange(50.0)[:, None] * np.ones(8)
    with pytest.raises(ValueError, match=r"^row 3 is bad$"):  # row numbers are those of X
        list(iter_feature_tiles(np.vstack([X[40:], X]), 1, raise_for_40))
    with pytest.raises(UnicodeError, match=r"^bad text$"):
        list(iter_feature_tiles(X, 1, raise_other_error))
    with pytest.raises(
        ValueError,
        match=r"In rows 40 to 49 of X .row numbers below are relative to row 40.: row 3 is bad",
    ):
        list(iter_feature_tiles(X, 1, raise_for_40))


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
    def test_rows_in_any_order_are_float32(self, make_memmap, features, dtype):
        stored = StoredRows(make_memmap(features.astype(dtype)))
        expected = features.astype(np.float32)
        rows = np.array([7, 3, 3, 49, 0])
        for index in (rows, slice(3, 9), slice(None, None, 7), np.array([], dtype=int)):
            found = stored[index]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected[index])

    def test_appended_rows_follow_stored_rows(self, features, monkeypatch):
        stored = StoredRows(features, missing=np.arange(50) == 9)
        more = np.full((2, 4), 5.0)
        longer = stored.append(more).append(2 * more)
        assert len(longer) == 54
        expected = np.concatenate([features.astype(np.float32), more, 2 * more])
        rows = np.array([53, 9, 50, 0, 51])
        np.testing.assert_array_equal(longer[rows], expected[rows])
        np.testing.assert_array_equal(longer.missing, np.arange(54) == 9)
        assert longer.missing.dtype == bool
        assert longer.more.dtype == np.float32
        monkeypatch.setattr(matrix, "_MIN_STORED_BYTES", 0)
        np.testing.assert_array_equal(longer.select(rows)[:], expected[rows])

    def test_few_selected_rows_are_loaded_and_many_stay_stored(self, features, monkeypatch):
        stored = StoredRows(features, missing=np.arange(50) == 9)
        assert isinstance(select_rows(stored, np.arange(5)), np.ndarray)
        np.testing.assert_array_equal(select_rows(features, np.array([7, 2])), features[[7, 2]])
        monkeypatch.setattr(matrix, "_MIN_STORED_BYTES", 0)
        rows = np.array([9, 30, 2])
        selected = select_rows(stored, rows)
        assert isinstance(selected, StoredRows)
        assert selected.missing.tolist() == [True, False, False]
        np.testing.assert_array_equal(
            select_rows(selected, np.array([2, 0]))[:], features[[2, 9]].astype(np.float32)
        )


def test_only_stored_rows_are_divided_into_blocks(features, monkeypatch):
    """Reading all of them would fill the memory; arrays are in memory already."""
    monkeypatch.setattr(matrix, "_BLOCK_SIZE", 20)
    blocks = [(0, 20), (20, 40), (40, 50)]
    assert [(rows.start, rows.stop) for rows in row_blocks(StoredRows(features))] == blocks
    for n_rows in (1, 50):
        assert list(row_blocks(features[:n_rows])) == [slice(0, n_rows)]


def test_changes_of_copy_on_write_memmap_are_kept(tmp_path, features):
    """Read pages are released, but changed pages of a copy-on-write memmap are only in memory."""
    np.save(tmp_path / "features.npy", features)
    copied = np.load(tmp_path / "features.npy", mmap_mode="c")
    copied[3] = 8
    stored = StoredRows(copied)
    for _ in range(2):
        assert stored[np.array([3, 4])][0].tolist() == [8] * 4
        assert stored[3:5][0].tolist() == [8] * 4


def test_only_large_memmaps_and_large_half_precision_stay_stored(
    make_memmap, features, monkeypatch
):
    single = make_memmap(features.astype(np.float32))
    assert not stays_stored(single)
    assert not stays_stored(features)
    monkeypatch.setattr(matrix, "_MIN_STORED_BYTES", 4 * features.size - 1)
    assert stays_stored(single)
    assert stays_stored(np.asarray(single))  # a view of a map
    assert stays_stored(features)
    assert not stays_stored(single[:-1])
    assert not stays_stored(features.astype(np.float32))
    assert not stays_stored(make_memmap(features.astype(int)))
    assert not stays_stored(features.tolist())


class TestReadAhead:
    def datasets(self, features):
        pairs = np.column_stack([np.arange(50)] * 2)
        image = features.astype(np.float32)
        text = torch.arange(50.0)[:, None]
        return (
            PairDataset(torch.from_numpy(image), text, pairs),
            PairDataset(StoredRows(features), text, pairs),
        )

    @pytest.mark.parametrize("mixup", [0.0, 1.0])
    def test_batches_equal_those_in_memory(self, features, mixup):
        """Training must not depend on where the features are stored."""
        both = [
            PairBatches(data, 16, shuffle=True, seed=1, mixup=mixup)
            for data in self.datasets(features)
        ]
        for _ in range(2):
            for (one, _), (other, _) in zip(*both, strict=True):
                for side in one:
                    assert torch.equal(one[side], other[side])

    def test_read_ahead_thread_ends_with_the_loop(self, features):
        """At most two batches are read ahead, also if the epoch is interrupted."""
        seen = []

        class RecordingRows(StoredRows):
            def __getitem__(self, index):
                seen.append(threading.current_thread().name)
                return super().__getitem__(index)

        data = self.datasets(features)[1]
        data.image = RecordingRows(features)
        batches = iter(PairBatches(data, 5))
        next(batches)
        batches.close()
        assert 1 <= len(seen) <= 3
        assert all(name.startswith("sklearn_ape") for name in seen)
        assert not any(t.name.startswith("sklearn_ape") for t in threading.enumerate())

    def test_read_error_is_raised(self, features):
        class FailingRows(StoredRows):
            def __getitem__(self, index):
                raise OSError("the disk is gone")

        data = self.datasets(features)[1]
        data.image = FailingRows(features)
        with pytest.raises(OSError, match="the disk is gone"):
            list(PairBatches(data, 5))
