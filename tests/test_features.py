"""The feature cache: never a wrong feature, whatever happens to the file."""

import multiprocessing
import os
import pickle
import re
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
from sklearn.base import clone

from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.features import DiskFeatureCache, MemoryFeatureCache, open_cache

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


# ---------------------------------------------------------------- in memory


def test_memory_keeps_to_its_bound_and_drops_the_least_recently_used():
    """max_bytes holds after every call, and reading an entry saves it."""
    size = WIDTH * 4
    cache = MemoryFeatureCache(max_bytes=3 * size)
    keys = list(TRUTH)
    for key in keys[:3]:
        cache.put_many({key: TRUTH[key]})
    cache.get_many([keys[0]])
    cache.put_many({keys[3]: TRUTH[keys[3]]})
    assert set(cache.get_many(keys)) == {keys[0], keys[2], keys[3]}
    cache.put_many(TRUTH)
    assert len(cache) == 3
    cache.put_many({keys[0]: np.zeros(WIDTH * 4, dtype=np.float32)})
    assert len(cache) == 0


def test_memory_replaces_an_entry_without_counting_it_twice():
    """Putting one key again and again does not push others out."""
    cache = MemoryFeatureCache(max_bytes=2 * WIDTH * 4)
    (first, feature), (second, other), *_ = TRUTH.items()
    cache.put_many({first: feature})
    for _ in range(5):
        cache.put_many({second: other})
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0
    assert cache.get_many([first]) == {}


def test_memory_cannot_be_changed_from_outside():
    """Neither the array put in nor the one handed out is a way to spoil the cache."""
    cache = MemoryFeatureCache()
    mine = np.ones(3, dtype=np.float32)
    cache.put_many({b"a": mine})
    mine[:] = 7
    with pytest.raises(ValueError, match="read-only"):
        cache.get_many([b"a"])[b"a"][:] = 7
    np.testing.assert_array_equal(cache.get_many([b"a"])[b"a"], np.ones(3))


def test_open_cache():
    """ "memory" is one store, None keeps nothing, a wrong type is named."""
    assert open_cache("memory") is open_cache("memory")
    with open_cache(None) as cache:
        cache.put_many(TRUTH)
        assert cache.get_many(TRUTH) == {}
    with pytest.raises(TypeError, match="'memory', a folder, a feature cache or None, not 3"):
        open_cache(3)


# ---------------------------------------------------------------- on disk


def test_disk_round_trip(folder):
    """Everything put in comes back bit for bit, from a new connection, over many queries."""
    with DiskFeatureCache(str(folder)) as cache:
        found = cache.get_many([*TRUTH, b"unknown"])
    assert found.keys() == TRUTH.keys()
    assert_only_true(found)


def test_disk_home_folder_is_expanded(tmp_path, monkeypatch):
    """ "~/features" is in the home folder, not in a folder called "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert DiskFeatureCache("~/features").folder == tmp_path / "features"


def test_disk_is_used_in_a_with_block(tmp_path):
    """Outside it, the error says so."""
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        DiskFeatureCache(tmp_path).get_many([b"a"])


@pytest.mark.parametrize("part", ["header", "schema", "pages", "anywhere"])
@pytest.mark.filterwarnings("ignore:The feature cache")
def test_flipped_bytes_never_give_a_wrong_feature(folder, part):
    """Whatever byte is flipped: right features or none, and the cache can be used again."""
    path = folder / "features.sqlite"
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    ranges = {
        "header": range(100),
        "schema": range(100, 116),
        "pages": [page + offset for page in range(0, len(sound), 16384) for offset in range(12)],
        "anywhere": rng.integers(len(sound), size=120),
    }
    n_lost = 0
    for offset in ranges[part]:
        damaged = bytearray(sound)
        damaged[offset] ^= int(rng.integers(1, 256))
        for file in folder.iterdir():
            file.unlink()
        path.write_bytes(damaged)
        with DiskFeatureCache(folder) as cache:
            found = cache.get_many(TRUTH)
            assert_only_true(found)
            n_lost += len(found) < len(TRUTH)
            cache.put_many(TRUTH)
        with DiskFeatureCache(folder) as cache:
            again = cache.get_many(TRUTH)
        assert_only_true(again)
    assert n_lost, "no flipped byte did any harm: this test tests nothing"


@pytest.mark.parametrize(
    "content",
    [b"garbage " * 5000, b"SQLite format 3\0" + b"\xff" * 9000, 0.3, 0.5, 100],
    ids=["garbage", "header-then-garbage", "30 %", "half", "100 bytes"],
)
def test_damaged_file_is_moved_aside_with_a_warning(folder, content):
    """A file beyond reading is kept under another name, and the cache works at once."""
    path = folder / "features.sqlite"
    sound = path.read_bytes()
    if isinstance(content, float):
        content = sound[: int(content * len(sound))]
    elif isinstance(content, int):
        content = sound[:content]
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught, DiskFeatureCache(folder) as cache:
        assert_only_true(cache.get_many(TRUTH))
        cache.put_many(TRUTH)
        assert cache.get_many(TRUTH).keys() == TRUTH.keys()
    (warning,) = caught
    assert issubclass(warning.category, RuntimeWarning)
    assert re.search(r"is damaged .* it was moved to .*\.damaged", str(warning.message))
    assert (folder / "features.sqlite.damaged").read_bytes() == content
    with DiskFeatureCache(folder) as cache:
        assert cache.get_many(TRUTH).keys() == TRUTH.keys()


@pytest.mark.filterwarnings("ignore:The feature cache")
def test_truncated_file_never_gives_a_wrong_feature(folder):
    """Wherever the file was cut, what comes back is right and the cache works."""
    path = folder / "features.sqlite"
    sound = path.read_bytes()
    for length in np.linspace(1, len(sound) - 1, 40).astype(int):
        for file in folder.iterdir():
            file.unlink()
        path.write_bytes(sound[:length])
        with DiskFeatureCache(folder) as cache:
            assert_only_true(cache.get_many(TRUTH))
            cache.put_many(TRUTH)
            assert cache.get_many(TRUTH).keys() == TRUTH.keys()


def test_a_second_damaged_file_does_not_replace_the_first(folder):
    """Nothing that was moved aside is ever lost."""
    for content in (b"first " * 999, b"second " * 999):
        (folder / "features.sqlite").write_bytes(content)
        with pytest.warns(RuntimeWarning, match="damaged"), DiskFeatureCache(folder):
            pass
    assert (folder / "features.sqlite.damaged").read_bytes().startswith(b"first")
    assert (folder / "features.sqlite.damaged-2").read_bytes().startswith(b"second")


def test_empty_file_is_an_empty_cache(tmp_path):
    """A file of 0 bytes, as a full disk leaves it, is no reason to complain."""
    (tmp_path / "features.sqlite").touch()
    with warnings.catch_warnings(), DiskFeatureCache(tmp_path) as cache:
        warnings.simplefilter("error")
        assert cache.get_many(TRUTH) == {}
        cache.put_many(TRUTH)
        assert_only_true(cache.get_many(TRUTH))


@pytest.mark.parametrize("value", ["a text", 5, 2.5, b"", b"short", None])
def test_entry_of_another_type_is_not_returned(tmp_path, value):
    """What a damaged row may hold instead of numbers is left out, without an exception."""
    key = b"k" * 32
    connection = sqlite3.connect(tmp_path / "features.sqlite")
    connection.execute("CREATE TABLE features (key BLOB PRIMARY KEY, value BLOB)")
    connection.execute("INSERT INTO features VALUES (?, ?)", (key, value))
    connection.commit()
    connection.close()
    with DiskFeatureCache(tmp_path) as cache:
        assert cache.get_many([key]) == {}


def test_two_caches_find_the_same_damage(folder):
    """The second to find it does not move the first one's fresh file aside."""
    first, second = DiskFeatureCache(folder), DiskFeatureCache(folder)
    with first, second:
        error = sqlite3.DatabaseError("malformed")
        with pytest.warns(RuntimeWarning, match="moved"):
            first._start_anew(error)
        first.put_many(TRUTH)
        second._start_anew(error)
        assert second.get_many(TRUTH).keys() == TRUTH.keys()
    assert len(list(folder.glob("*.damaged*"))) == 1


@pytest.mark.parametrize("place", ["file", "below-a-file", "/proc/none", "/dev/null"])
def test_impossible_folder_says_what_to_do(tmp_path, place):
    """A place where no folder can be made is an OSError with the remedy."""
    (tmp_path / "file").write_text("x")
    names = {"file": tmp_path / "file", "below-a-file": tmp_path / "file" / "sub"}
    folder = names.get(place, place)
    if place.startswith("/") and not os.path.exists("/proc/self"):
        pytest.skip("no /proc here")
    with (
        pytest.raises(OSError, match=r"Give a folder that can be written to, or cache=None"),
        DiskFeatureCache(folder),
    ):
        pass


def _as_nobody(work, *args):
    """Call in a child process that may not write what root may; return what it returns."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = work(*args)
            except BaseException as error:
                result = error
        sender.send((result, [str(warning.message) for warning in caught]))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert receiver.poll(30), "the child died"
    result, told = receiver.recv()
    process.join(30)
    if isinstance(result, BaseException):
        raise result
    return result, told


@pytest.fixture
def locked():
    """A folder that others than root may enter and read, and nobody else writes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        folder.chmod(0o755)


def _read_and_write(folder):
    with DiskFeatureCache(folder) as cache:
        found = cache.get_many(TRUTH)
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
            writer.put_many(TRUTH)
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
    assert found.keys() == (set() if what in ("empty", "damaged") else TRUTH.keys())
    assert_only_true(found)
    assert new == {}
    assert len([message for message in told if "cannot be written to" in message]) == 1
    assert len(told) == (2 if what == "damaged" else 1)
    assert {name: (locked / name).read_bytes() for name in content} == content


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_folder_that_cannot_be_made_is_an_error(locked):
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
def test_file_that_can_grow_no_more(locked):
    """The first failing write warns, the work goes on, and what was written is there."""
    locked.chmod(0o777)
    found, told = _as_nobody(_fill_with_a_limit, locked, 150)
    _check_filled(found, told, locked)


def test_full_disk(tmp_path):
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


@pytest.mark.parametrize("message", ["database or disk is full", "database is locked"])
def test_failing_write_warns_once_and_goes_on(folder, monkeypatch, message):
    """A full disk or a lock loses no work, and the file is not taken for damaged."""

    def fails(self):
        raise sqlite3.OperationalError(message)

    monkeypatch.setattr(DiskFeatureCache, "_commit", fails)
    with DiskFeatureCache(folder) as cache:
        with pytest.warns(RuntimeWarning, match=message):
            cache.put_many(TRUTH)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cache.put_many(TRUTH)
        assert cache.get_many(TRUTH).keys() == TRUTH.keys()
        assert cache.get_many([b"new"]) == {}
    assert not list(folder.glob("*.damaged*"))


def test_really_locked_database_is_not_damaged(folder, monkeypatch):
    """Another process's lock, held too long, is waited for, warned of and survived."""
    monkeypatch.setattr("sklearn_ape.features._disk._BUSY_TIMEOUT_S", 0.2)
    other = sqlite3.connect(folder / "features.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with DiskFeatureCache(folder) as cache:
        with pytest.warns(RuntimeWarning, match="locked"):
            cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        assert cache.get_many(TRUTH).keys() == TRUTH.keys()
    other.execute("ROLLBACK")
    other.close()
    assert not list(folder.glob("*.damaged*"))


def test_unreadable_now_is_not_damaged(folder, monkeypatch):
    """A read that fails for a reason outside the file gives no features and moves nothing."""

    class Busy:
        def execute(self, *args):
            raise sqlite3.OperationalError("disk I/O error")

    with DiskFeatureCache(folder) as cache, monkeypatch.context() as patch:
        patch.setattr(DiskFeatureCache, "_open", Busy())
        with pytest.warns(RuntimeWarning, match="cannot be read: disk I/O error"):
            assert cache.get_many(TRUTH) == {}
    assert not list(folder.glob("*.damaged*"))


def _write_all(folder, barrier, n_rounds):
    warnings.simplefilter("error")
    barrier.wait()
    keys = list(TRUTH)
    for start in range(0, len(keys), len(keys) // n_rounds):
        with DiskFeatureCache(folder) as cache:
            some = {key: TRUTH[key] for key in keys[start : start + len(keys) // n_rounds]}
            cache.put_many(some)
            found = cache.get_many(keys)
            assert some.keys() <= found.keys()
            assert_only_true(found)


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
            assert cache.get_many(TRUTH).keys() == TRUTH.keys()


def test_threads_share_one_memory_cache():
    """Threads that read and write at once never see a torn store."""
    cache = MemoryFeatureCache(max_bytes=50 * WIDTH * 4)
    failures = []

    def work(seed):
        keys = list(TRUTH)
        np.random.default_rng(seed).shuffle(keys)
        try:
            for key in keys:
                cache.put_many({key: TRUTH[key]})
                assert_only_true(cache.get_many(keys[:20]))
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
def test_a_killed_writer_keeps_what_it_finished(tmp_path, pause):
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
    wanted = dict(truth(int(number)) for number, at in put if float(at) < last - 0.3)
    with DiskFeatureCache(tmp_path) as cache:
        found = cache.get_many(dict(truth(int(number)) for number, _ in put))
    assert found.keys() >= wanted.keys()
    assert len(found) >= (len(put) // 2 if pause else 1)
    for key, feature in found.items():
        np.testing.assert_array_equal(feature, truth(int.from_bytes(key, "little"))[1])


# ---------------------------------------------------------------- float16


def test_float16_takes_half_the_space_and_gives_float32(tmp_path):
    """Numbers come back rounded to float16, as float32, at half the size on disk."""
    rng = np.random.default_rng(0)
    features = {bytes([i]) * 32: rng.normal(size=2000).astype(np.float32) for i in range(200)}
    for dtype in ("float32", "float16"):
        with DiskFeatureCache(tmp_path / dtype, dtype) as cache:
            cache.put_many(features)
            unwritten = cache.get_many(features)
        with DiskFeatureCache(tmp_path / dtype, dtype) as cache:
            found = cache.get_many(features)
        for key, feature in features.items():
            expected = feature.astype(dtype).astype(np.float32)
            assert found[key].dtype == np.float32
            np.testing.assert_array_equal(found[key], expected)
            np.testing.assert_array_equal(unwritten[key], expected)
    sizes = [
        DiskFeatureCache(tmp_path / dtype).path.stat().st_size for dtype in ("float16", "float32")
    ]
    assert sizes[0] < 0.6 * sizes[1]


def test_float16_never_makes_infinities(tmp_path):
    """A feature beyond float16's range is kept exactly."""
    features = {b"large": np.float32([7e4, 0.1]), b"small": np.float32([6e4, 0.1])}
    with DiskFeatureCache(tmp_path, "float16") as cache, warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put_many(features)
    with DiskFeatureCache(tmp_path, "float16") as cache:
        found = cache.get_many(features)
    np.testing.assert_array_equal(found[b"large"], features[b"large"])
    np.testing.assert_array_equal(found[b"small"], np.float16([6e4, 0.1]).astype(np.float32))


def test_exact_cache_never_gives_rounded_numbers(folder):
    """Both types live in one file; float32 does not see float16, which reads both, rounded."""
    (first, feature), (second, other), *_ = TRUTH.items()
    half = DiskFeatureCache(folder, "float16")
    with half:
        assert half.get_many(TRUTH).keys() == TRUTH.keys()
        np.testing.assert_array_equal(
            half.get_many([first])[first], feature.astype(np.float16).astype(np.float32)
        )
        half.put_many({b"half": other, second: other})
    with DiskFeatureCache(folder) as exact:
        assert exact.get_many([b"half"]) == {}
        assert_only_true(exact.get_many(TRUTH))
        exact.put_many({b"half": other})
        np.testing.assert_array_equal(exact.get_many([b"half"])[b"half"], other)
    with half:
        found = half.get_many([b"half", second])
    for key in found:
        np.testing.assert_array_equal(found[key], other.astype(np.float16).astype(np.float32))


def test_a_wrong_dtype_is_named(tmp_path):
    """Not at the end of the first night of encoding."""
    with pytest.raises(ValueError, match="float32 or float16, not 'int8'"):
        DiskFeatureCache(tmp_path, dtype="int8")


# ---------------------------------------------------------------- as a parameter


def test_a_cache_is_a_parameter(tmp_path):
    """Encoders with a cache object are cloned, pickled and shown; copies are independent."""
    cache = DiskFeatureCache(tmp_path, dtype="float16")
    encoder = TransformersTextEncoder(cache=cache)
    with cache:
        copies = [clone(encoder), pickle.loads(pickle.dumps(encoder))]
        for copy in copies:
            assert repr(copy.get_params()["cache"]) == repr(cache)
            with open_cache(copy.cache) as other:
                other.put_many(TRUTH)
        assert cache.get_many(TRUTH).keys() == TRUTH.keys()
        with open_cache(cache) as nested:
            assert nested.get_many(TRUTH).keys() == TRUTH.keys()
        with pytest.raises(RuntimeError, match="open already"):
            cache.__enter__()
    assert "dtype='float16'" in repr(encoder)


def test_clones_share_a_memory_cache():
    """A store of one's own serves the clones that a search makes; pickles leave it behind."""
    cache = MemoryFeatureCache(max_bytes=10**6)
    encoder = TransformersTextEncoder(cache=cache)
    assert clone(encoder).cache is cache
    assert open_cache(cache) is cache
    cache.put_many(TRUTH)
    received = pickle.loads(pickle.dumps(cache))
    assert (len(received), received.max_bytes) == (0, 10**6)


def test_threads_share_one_disk_cache(tmp_path):
    """Threads that write and read through one open cache neither fail nor lose anything."""
    failures = []
    keys = list(TRUTH)

    def work(start, cache):
        try:
            for key in keys[start::4]:
                cache.put_many({key: TRUTH[key]})
                assert_only_true(cache.get_many(keys[:20]))
        except Exception as error:
            failures.append(error)

    with DiskFeatureCache(tmp_path) as cache:
        threads = [threading.Thread(target=work, args=(start, cache)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    with DiskFeatureCache(tmp_path) as cache:
        assert cache.get_many(TRUTH).keys() == TRUTH.keys()
