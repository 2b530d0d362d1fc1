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
    """A path where no folder can be created raises an OSError with the remedy."""
    (tmp_path / "file").write_text("x")
    names = {"file": tmp_path / "file", "below-a-file": tmp_path / "file" / "sub"}
    folder = names.get(place, place)
    if place.startswith("/") and not os.path.exists("/proc/self"):
        pytest.skip("no /proc here")
    with (
        pytest.raises(OSError, match=r"The feature cache .* cannot be opened") as error_info,
        DiskFeatureCache(folder),
    ):
        pass
    assert repr(str(DiskFeatureCache(folder).path)) in str(error_info.value)
    assert str(error_info.value).endswith(". Pass a writable folder, or cache=None.")


def _run_as_nobody(work, *args):
    """Call `work` in a child without the rights of root; return its result and warnings."""

    def call_and_record():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = work(*args)
        return result, [str(warning.message) for warning in caught]

    return run_in_child(lambda: run_as_nobody(call_and_record), seconds=30)


@pytest.fixture
def readable_folder():
    """Return a folder that every user can read; tests change its permissions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        folder.chmod(0o755)


def _read_and_write(folder):
    with DiskFeatureCache(folder) as cache:
        features = cache.get_many(ENTRIES)
        for _ in range(2):
            cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        return features, cache.get_many([b"new"])


def _leave_log_of_killed_writer(writer, folder):
    with writer:
        writer.put_many(ENTRIES)
        for file in folder.iterdir():
            shutil.copy(file, folder / f"{file.name}.kept")
    for file in folder.glob("*.kept"):
        file.rename(file.with_suffix(""))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("state", ["folder", "file", "empty", "damaged", "log", "log of another"])
def test_read_only_folder_is_read(readable_folder, state):
    """Entries are read, writing is skipped with one warning, and no file changes.

    No log is created, to which the owner of the file could not write.
    """
    writer = DiskFeatureCache(readable_folder)
    if "log" in state:
        _leave_log_of_killed_writer(writer, readable_folder)
    elif state != "empty":
        with writer:
            writer.put_many(ENTRIES)
    if state == "damaged":
        writer.path.write_bytes(b"garbage " * 5000)
    names = {file.name for file in readable_folder.iterdir()}
    content = {name: (readable_folder / name).read_bytes() for name in names if "shm" not in name}
    for file in readable_folder.iterdir():
        file.chmod(0o666 if state == "log of another" and file == writer.path else 0o444)
    readable_folder.chmod(0o777 if state in ("file", "log of another") else 0o555)
    (features, new), messages = _run_as_nobody(_read_and_write, readable_folder)
    assert features.keys() == (set() if state in ("empty", "damaged") else ENTRIES.keys())
    assert_equal_to_entries(features)
    assert new == {}
    assert len([text for text in messages if "cannot be written to" in text]) == 1
    assert len(messages) == (2 if state == "damaged" else 1)
    assert {name: (readable_folder / name).read_bytes() for name in content} == content
    assert {file.name for file in readable_folder.iterdir()} == names


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_folder_that_cannot_be_created_raises(readable_folder):
    """A misspelt folder must not silently disable the cache."""

    def work(folder):
        with pytest.raises(OSError, match="or cache=None"), DiskFeatureCache(folder):
            pass

    readable_folder.chmod(0o555)
    _run_as_nobody(work, readable_folder / "new")


def _fill(folder, n):
    """Put entries until well after the disk is full, and return those that can be read."""
    with DiskFeatureCache(folder) as cache:
        for number in range(n):
            key = number.to_bytes(32, "little")
            cache.put_many({key: np.full(5000, number, dtype=np.float32)})
            cache._write()
    with DiskFeatureCache(folder) as cache:
        return cache.get_many(number.to_bytes(32, "little") for number in range(n))


def _fill_with_size_limit(folder, n):
    import resource

    sys.dont_write_bytecode = True  # Python would cut compiled modules off at the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    return _fill(folder, n)


def _check_filled(features, messages, folder):
    assert 10 < len(features) < 150
    for key, feature in features.items():
        np.testing.assert_array_equal(feature, int.from_bytes(key, "little"))
    assert len(messages) == 1
    assert "is no longer written to" in messages[0]
    assert not list(folder.glob("*.damaged*"))


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_file_size_limit_warns(readable_folder):
    """The first failing write warns, computing continues, and written entries are kept."""
    readable_folder.chmod(0o777)
    features, messages = _run_as_nobody(_fill_with_size_limit, readable_folder, 150)
    _check_filled(features, messages, readable_folder)


def test_full_disk_warns(tmp_path):
    """On a full disk, written entries are kept, and the file does not count as damaged."""
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
            features = _fill(disk, 150)
        _check_filled(features, [str(warning.message) for warning in caught], disk)
        with DiskFeatureCache(disk) as cache:
            assert cache.get_many(features).keys() == features.keys()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_locked_database_is_not_damage(cache_folder, monkeypatch):
    """If another process holds the lock too long, a warning is raised and reading continues."""
    monkeypatch.setattr("sklearn_ape.features._sqlite._BUSY_TIMEOUT_S", 0.2)
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
            batch = {key: ENTRIES[key] for key in keys[start : start + len(keys) // n_rounds]}
            cache.put_many(batch)
            features = cache.get_many(keys)
            assert batch.keys() <= features.keys()
            assert_equal_to_entries(features)


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its writers by fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_that_create_one_cache_lose_no_entries(tmp_path):
    """Processes that create the same file at the same time neither fail nor lose entries."""
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


def test_threads_that_share_memory_cache_read_correct_entries():
    """Threads that read and write at the same time get only correct entries."""
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


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("pause", [0, 0.05])
def test_killed_writer_keeps_finished_batches(tmp_path, pause):
    """After SIGKILL, only entries of the last quarter of a second may be missing."""
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
    required = dict(make_entry(int(number)) for number, at in put if float(at) < last - 0.3)
    with DiskFeatureCache(tmp_path) as cache:
        features = cache.get_many(dict(make_entry(int(number)) for number, _ in put))
    assert features.keys() >= required.keys()
    assert len(features) >= (len(put) // 2 if pause else 1)
    for key, feature in features.items():
        np.testing.assert_array_equal(feature, make_entry(int.from_bytes(key, "little"))[1])
