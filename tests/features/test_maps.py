"""Memory maps: found behind their views, and out of memory once read."""

import resource
import sys

import numpy as np
import pytest

from sklearn_ape.features.memmap import find_memmap, release_pages


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "X.npy", np.ones((4_000, 1_000), dtype=np.float32))  # 16 MB
    return np.load(tmp_path / "X.npy", mmap_mode="r")


def test_find_memmap_of_views(mapped):
    for view in (mapped, mapped[3:], np.asarray(mapped), np.asarray(mapped)[:, 2:][::2]):
        owner = find_memmap(view)
        assert owner is not None
        assert owner.filename == mapped.filename
    others = (np.ones(3), np.ones(3)[1:], [1.0], np.array(mapped[:2]), mapped[[0, 2]], None)
    for other in others:
        assert find_memmap(other) is None
        release_pages(other)  # does nothing


@pytest.mark.parametrize("make", [lambda X: X.copy(), np.sort, lambda X: X.astype("f8")])
def test_copy_in_memory_is_not_a_memmap(mapped, make):
    """numpy calls some of them one."""
    copy = make(mapped[:3])
    assert find_memmap(copy) is None
    release_pages(copy)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the system's count of pages")
class TestForget:
    def test_released_pages_are_not_in_memory(self, mapped):
        """Else a file of any size would seem to be in memory, page by page."""
        before = resident()
        mapped.sum()
        held = resident() - before
        release_pages(mapped[:])
        assert held > 12e6
        assert resident() - before < 4e6
        assert mapped.sum() == 4e6

    @pytest.mark.parametrize("view", [np.asarray, lambda mapped: mapped[:, 10:990]])
    def test_only_the_given_rows_are_released(self, mapped, view):
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

    def test_other_memory_orders_are_released(self, mapped):
        for view in (mapped[::-1], mapped.T, mapped[:0], mapped[5]):
            release_pages(view)
        assert (mapped == 1).all()


def test_copy_on_write_map_keeps_changes(tmp_path):
    np.save(tmp_path / "X.npy", np.zeros((4_000, 4), dtype=np.float32))
    for mode in ("c", "r+"):
        mapped = np.load(tmp_path / "X.npy", mmap_mode=mode)
        mapped[:] = 7
        release_pages(mapped[:])
        assert (mapped == 7).all()


def test_release_without_madvise_does_nothing(mapped, monkeypatch):
    monkeypatch.delattr("mmap.MADV_DONTNEED")
    release_pages(mapped[:])
    assert (mapped[:10] == 1).all()
