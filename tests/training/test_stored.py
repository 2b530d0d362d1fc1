"""Features on disk: which stay there, what is read of them, and batches read ahead."""

import threading

import numpy as np
import pytest
import torch

from sklearn_ape.features import memmap as _stored
from sklearn_ape.training import PairBatches, PairDataset, StoredRows, stays_stored
from sklearn_ape.training import select as select_rows


@pytest.fixture
def mapped(tmp_path):
    def make(array):
        np.save(tmp_path / "features.npy", array)
        return np.load(tmp_path / "features.npy", mmap_mode="r")

    return make


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16)


class TestStoredRows:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
    def test_gives_rows_of_any_order_as_float32(self, mapped, features, dtype):
        stored = StoredRows(mapped(features.astype(dtype)))
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
        monkeypatch.setattr(_stored, "_MIN_STORED_BYTES", 0)
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


def test_only_large_maps_and_large_half_precision_stay(mapped, features, monkeypatch):
    single = mapped(features.astype(np.float32))
    assert not stays_stored(single)
    assert not stays_stored(features)
    monkeypatch.setattr(_stored, "_MIN_STORED_BYTES", 4 * features.size - 1)
    assert stays_stored(single)
    assert stays_stored(np.asarray(single))  # a view of a map
    assert stays_stored(features)
    assert not stays_stored(single[:-1])
    assert not stays_stored(features.astype(np.float32))
    assert not stays_stored(mapped(features.astype(int)))
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
