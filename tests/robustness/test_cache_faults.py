"""Disk cache in read-only folders, on full disks, with locks, several processes and kills."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache, MemoryFeatureCache
from tests.features.conftest import ENTRIES, WIDTH, assert_equal_to_entries, make_entry
from tests.robustness.child_processes import run_as_nobody, run_in_child


@pytest.mark.parametrize("place", ["file", "below-a-file", "/proc/none", "/dev/null"])
def test_invalid_folder_raises_with_remedy(tmp_path, place):
    """A place where no folder can be made is an OSError with the remedy."""
    (tmp_path / "file").write_text("x")
    names = {"file": tmp_path / "file", "below-a-file": tmp_path / "file" / "sub"}
    folder = names.get(place, place)
    if place.startswith("/") and not os.path.exists("/proc/self"):
        pytest.skip("no /proc here")
    with (
        pytest.raises(OSError, match=r"The feature cache .* cannot be opened") as told,
        DiskFeatureCache(folder),
    ):
        pass
    assert repr(str(DiskFeatureCache(folder).path)) in str(told.value)
    assert str(told.value).endswith(". Pass a writable folder, or cache=None.")


def _as_nobody(work, *args):
    """Call in a child process without the rights of root; return its result and warnings."""

    def recorded():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = work(*args)
        return result, [str(warning.message) for warning in caught]

    return run_in_child(lambda: run_as_nobody(recorded), seconds=30)


@pytest.fixture
def locked():
    """A folder that others than root may enter and read, and nobody else writes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        folder.chmod(0o755)


def _read_and_write(folder):
    with DiskFeatureCache(folder) as cache:
        found = cache.get_many(ENTRIES)
        for _ in range(2):
            cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        return found, cache.get_many([b"new"])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", ["folder", "file", "empty", "damaged", "log"])
def test_read_only_folder_is_read(locked, what):
    """What is there is found, writing is skipped with one warning, and nothing changes."""
    writer = DiskFeatureCache(locked)
    if what != "empty":
        with writer:
            writer.put_many(ENTRIES)
            if what == "log":  # as a killed writer leaves it
                for file in locked.iterdir():
                    shutil.copy(file, locked / f"{file.name}.kept")
        if what == "log":
            for file in locked.glob("*.kept"):
                file.rename(file.with_suffix(""))
    if what == "damaged":
        writer.path.write_bytes(b"garbage " * 5000)
    content = {file.name: file.read_bytes() for file in locked.iterdir() if "shm" not in file.name}
    for file in locked.iterdir():
        file.chmod(0o444)
    locked.chmod(0o777 if what == "file" else 0o555)
    (found, new), told = _as_nobody(_read_and_write, locked)
    assert found.keys() == (set() if what in ("empty", "damaged") else ENTRIES.keys())
    assert_equal_to_entries(found)
    assert new == {}
    assert len([message for message in told if "cannot be written to" in message]) == 1
    assert len(told) == (2 if what == "damaged" else 1)
    assert {name: (locked / name).read_bytes() for name in content} == content


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_folder_that_cannot_be_created_raises(locked):
    """Nobody's cache silently does nothing because of a typing error."""

    def work(folder):
        with pytest.raises(OSError, match="or cache=None"), DiskFeatureCache(folder):
            pass

    locked.chmod(0o555)
    _as_nobody(work, locked / "new")


def _fill(folder, n):
    """Put in entries until well after the disk is full; return those that are then read."""
    with DiskFeatureCache(folder) as cache:
        for number in range(n):
            key = number.to_bytes(32, "little")
            cache.put_many({key: np.full(5000, number, dtype=np.float32)})
            cache._write()
    with DiskFeatureCache(folder) as cache:
        return cache.get_many(number.to_bytes(32, "little") for number in range(n))


def _fill_with_a_limit(folder, n):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    return _fill(folder, n)


def _check_filled(found, told, folder):
    assert 10 < len(found) < 150
    for key, feature in found.items():
        np.testing.assert_array_equal(feature, int.from_bytes(key, "little"))
    assert len(told) == 1
    assert "is no longer written to" in told[0]
    assert not list(folder.glob("*.damaged*"))


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_file_size_limit_warns(locked):
    """The first failing write warns, the work goes on, and what was written is there."""
    locked.chmod(0o777)
    found, told = _as_nobody(_fill_with_a_limit, locked, 150)
    _check_filled(found, told, locked)


def test_full_disk_warns(tmp_path):
    """A file system without room is no damaged file: what was written stays, a warning tells."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = _fill(disk, 150)
        _check_filled(found, [str(warning.message) for warning in caught], disk)
        with DiskFeatureCache(disk) as cache:
            assert cache.get_many(found).keys() == found.keys()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_locked_database_is_not_damage(cache_folder, monkeypatch):
    """Another process's lock, held too long, is waited for, warned of and survived."""
    monkeypatch.setattr("sklearn_ape.features._disk_cache._BUSY_TIMEOUT_S", 0.2)
    other = sqlite3.connect(cache_folder / "features.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with DiskFeatureCache(cache_folder) as cache:
        with pytest.warns(RuntimeWarning, match="locked"):
            cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()
    other.execute("ROLLBACK")
    other.close()
    assert not list(cache_folder.glob("*.damaged*"))


def _write_all(folder, barrier, n_rounds):
    warnings.simplefilter("error")
    barrier.wait()
    keys = list(ENTRIES)
    for start in range(0, len(keys), len(keys) // n_rounds):
        with DiskFeatureCache(folder) as cache:
            some = {key: ENTRIES[key] for key in keys[start : start + len(keys) // n_rounds]}
            cache.put_many(some)
            found = cache.get_many(keys)
            assert some.keys() <= found.keys()
            assert_equal_to_entries(found)


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its writers by fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_processes_start_and_write_at_once(tmp_path):
    """Processes that make the same file at the same moment neither fail nor lose anything."""
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        barrier = context.Barrier(6)
        writers = [
            context.Process(target=_write_all, args=(folder, barrier, 10)) for _ in range(6)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0] * 6
        with DiskFeatureCache(folder) as cache:
            assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()


def test_threads_share_one_memory_cache():
    """Threads that read and write at once never see a torn store."""
    cache = MemoryFeatureCache(max_bytes=50 * WIDTH * 4)
    failures = []

    def work(seed):
        keys = list(ENTRIES)
        np.random.default_rng(seed).shuffle(keys)
        try:
            for key in keys:
                cache.put_many({key: ENTRIES[key]})
                assert_equal_to_entries(cache.get_many(keys[:20]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(cache) == 50


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("pause", [0, 0.05])
def test_killed_writer_keeps_finished_batches(tmp_path, pause):
    """After SIGKILL, all is there but what was put in within the last quarter second, at most."""
    code = (
        "import sys, time, numpy as np\n"
        "from sklearn_ape.features import DiskFeatureCache\n"
        "with DiskFeatureCache(sys.argv[1]) as cache:\n"
        "    for number in range(10**6):\n"
        "        key = number.to_bytes(32, 'little')\n"
        f"        row = np.random.default_rng(number).normal(size={WIDTH}).astype('f4')\n"
        "        cache.put_many({key: row})\n"
        "        print(number, time.time(), flush=True)\n"
        f"        time.sleep({pause})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    put = [writer.stdout.readline().split() for _ in range(30)]
    writer.kill()
    put += [line.split() for line in writer.communicate()[0].split(b"\n")[:-1]]
    last = float(put[-1][1])
    wanted = dict(make_entry(int(number)) for number, at in put if float(at) < last - 0.3)
    with DiskFeatureCache(tmp_path) as cache:
        found = cache.get_many(dict(make_entry(int(number)) for number, _ in put))
    assert found.keys() >= wanted.keys()
    assert len(found) >= (len(put) // 2 if pause else 1)
    for key, feature in found.items():
        np.testing.assert_array_equal(feature, make_entry(int.from_bytes(key, "little"))[1])
