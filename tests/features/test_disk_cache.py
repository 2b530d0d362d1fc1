"""Disk cache: round trips, damaged and newer files, float16 and unwritten entries."""

import gc
import os
import re
import sqlite3
import warnings

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features import _disk_cache as _disk
from sklearn_ape.features._sqlite import FLOAT32_TABLE, pack, to_float16
from tests.features.conftest import ENTRIES, WIDTH, assert_equal_to_entries


@pytest.mark.parametrize("n_keys", [7, 500])
@pytest.mark.usefixtures("way_of_reading")
def test_disk_cache_returns_bitwise_identical_features(folder, monkeypatch, n_keys):
    """A new connection returns bitwise identical features, in one or several queries."""
    monkeypatch.setattr(_disk, "_KEYS_PER_QUERY", n_keys)
    with DiskFeatureCache(str(folder)) as cache, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cache.get_many([*ENTRIES, b"unknown"])
    assert found.keys() == ENTRIES.keys()
    assert_equal_to_entries(found)


def test_features_of_any_type_are_stored_as_float32(tmp_path):
    features = {b"double": np.array([0.1, 2]), b"int": np.array([1, 2]), b"list": [1, 2]}
    with DiskFeatureCache(tmp_path) as cache:
        cache.put_many(features)
        found = cache.get_many(features)
    for key, feature in features.items():
        np.testing.assert_array_equal(found[key], np.float32(feature))


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    """ "~/features" is in the home folder, not in a folder called "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert DiskFeatureCache("~/features").folder == tmp_path / "features"


def test_missing_folders_are_created(tmp_path):
    with DiskFeatureCache(tmp_path / "one" / "two") as cache:
        cache.put_many(ENTRIES)
        with pytest.raises(
            RuntimeError, match=r"^This DiskFeatureCache is open already\. .* of it\.$"
        ):
            cache.__enter__()
    assert (tmp_path / "one" / "two" / "features.sqlite").is_file()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("part", ["header", "schema", "pages", "anywhere"])
@pytest.mark.filterwarnings("ignore:The feature cache")
@pytest.mark.usefixtures("way_of_reading")
def test_flipped_bytes_never_give_a_wrong_feature(folder, part):
    """For any flipped byte, the cache returns correct features or none, and can be used again."""
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
            found = cache.get_many(ENTRIES)
            assert_equal_to_entries(found)
            n_lost += len(found) < len(ENTRIES)
            cache.put_many(ENTRIES)
        with DiskFeatureCache(folder) as cache:
            again = cache.get_many(ENTRIES)
        assert_equal_to_entries(again)
    assert n_lost, "no flipped byte had an effect, so this test checks nothing"


@pytest.mark.parametrize(
    "content",
    [b"garbage " * 5000, b"SQLite format 3\0" + b"\xff" * 9000, 0.3, 0.5, 100],
    ids=["garbage", "header-then-garbage", "30 %", "half", "100 bytes"],
)
def test_damaged_file_is_renamed_with_a_warning(folder, content):
    """An unreadable file is kept under another name, and the cache starts a new one."""
    path = folder / "features.sqlite"
    sound = path.read_bytes()
    if isinstance(content, float):
        content = sound[: int(content * len(sound))]
    elif isinstance(content, int):
        content = sound[:content]
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught, DiskFeatureCache(folder) as cache:
        assert_equal_to_entries(cache.get_many(ENTRIES))
        cache.put_many(ENTRIES)
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()
    (warning,) = caught
    assert issubclass(warning.category, RuntimeWarning)
    assert re.fullmatch(
        rf"The feature cache {str(path)!r} is damaged \([a-z].*\); it was moved to "
        rf"'{path}\.damaged'\. The features are computed again\.",
        str(warning.message),
    )
    assert (folder / "features.sqlite.damaged").read_bytes() == content
    with DiskFeatureCache(folder) as cache:
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()


def test_name_that_is_not_utf8_is_damage(folder):
    """Python cannot decode SQLite's message about the name, which raised an error in every run."""
    path = folder / "features.sqlite"
    name = b"sqlite_autoindex_features_"
    content = path.read_bytes().replace(name + b"1", name + b"\xff")
    path.write_bytes(content)
    assert DiskFeatureCache(folder).verify() == (0, 0, ["malformed database schema"])
    with pytest.raises(OSError, match=r"is damaged: malformed database schema\. Delete the file"):
        DiskFeatureCache(folder).info()
    with pytest.warns(RuntimeWarning, match=r"is damaged \(malformed d"), DiskFeatureCache(folder):
        pass
    assert (folder / "features.sqlite.damaged").read_bytes() == content
    assert DiskFeatureCache(folder).verify() == (0, 0, [])


@pytest.mark.filterwarnings("ignore:The feature cache")
@pytest.mark.usefixtures("way_of_reading")
def test_truncated_file_never_gives_a_wrong_feature(folder):
    """After truncation at any position, returned features are correct and the cache works."""
    path = folder / "features.sqlite"
    sound = path.read_bytes()
    for length in np.linspace(1, len(sound) - 1, 40).astype(int):
        for file in folder.iterdir():
            file.unlink()
        path.write_bytes(sound[:length])
        with DiskFeatureCache(folder) as cache:
            assert_equal_to_entries(cache.get_many(ENTRIES))
            cache.put_many(ENTRIES)
            assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()


def test_second_damaged_file_does_not_replace_the_first(folder):
    """Each damaged file gets a new name."""
    for content in (b"first " * 999, b"second " * 999):
        (folder / "features.sqlite").write_bytes(content)
        with pytest.warns(RuntimeWarning, match="damaged"), DiskFeatureCache(folder):
            pass
    assert (folder / "features.sqlite.damaged").read_bytes().startswith(b"first")
    assert (folder / "features.sqlite.damaged-2").read_bytes().startswith(b"second")


def test_empty_file_is_an_empty_cache(tmp_path):
    """An empty file, as a full disk leaves it, does not warn."""
    (tmp_path / "features.sqlite").touch()
    with warnings.catch_warnings(), DiskFeatureCache(tmp_path) as cache:
        warnings.simplefilter("error")
        assert cache.get_many(ENTRIES) == {}
        cache.put_many(ENTRIES)
        assert_equal_to_entries(cache.get_many(ENTRIES))


@pytest.mark.parametrize("value", ["a text", 5, 2.5, b"", b"short", None])
@pytest.mark.usefixtures("way_of_reading")
def test_entry_of_another_type_is_not_returned(tmp_path, value):
    """Damaged rows that hold another type are skipped without an exception."""
    key = b"k" * 32
    connection = sqlite3.connect(tmp_path / "features.sqlite")
    connection.execute("CREATE TABLE features (key BLOB PRIMARY KEY, value BLOB)")
    connection.execute("INSERT INTO features VALUES (?, ?)", (key, value))
    connection.commit()
    connection.close()
    with DiskFeatureCache(tmp_path) as cache:
        assert cache.get_many([key]) == {}


def test_two_caches_rename_a_damaged_file_once(folder):
    """The second cache must not rename the new file that the first cache has started."""
    first, second = DiskFeatureCache(folder), DiskFeatureCache(folder)
    with first, second:
        logs = [folder / f"features.sqlite{suffix}" for suffix in ("-wal", "-shm")]
        first.put_many(ENTRIES)
        old_logs = [os.stat(log).st_ino for log in logs]
        error = sqlite3.DatabaseError("malformed")
        with pytest.warns(RuntimeWarning, match=r"is damaged \(malformed\); it was moved"):
            first._replace_damaged_file(error)
        first.put_many(ENTRIES)
        first._write()
        # The second cache still has the files of the damaged one open.
        assert all(os.stat(log).st_ino not in old_logs for log in logs)
        second._replace_damaged_file(error)
        assert second.get_many(ENTRIES).keys() == ENTRIES.keys()
    assert len(list(folder.glob("*.damaged*"))) == 1


@pytest.mark.usefixtures("way_of_reading")
def test_float16_takes_half_the_space_and_gives_float32(tmp_path):
    """Features are rounded to float16, returned as float32 and stored in half the space."""
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


@pytest.mark.usefixtures("way_of_reading")
def test_float16_never_returns_infinity(tmp_path):
    """Features outside the range of float16 are stored as float32."""
    features = {b"large": np.float32([7e4, 0.1]), b"small": np.float32([6e4, 0.1])}
    with DiskFeatureCache(tmp_path, "float16") as cache, warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put_many(features)
    with DiskFeatureCache(tmp_path, "float16") as cache:
        found = cache.get_many(features)
    np.testing.assert_array_equal(found[b"large"], features[b"large"])
    np.testing.assert_array_equal(found[b"small"], np.float16([6e4, 0.1]).astype(np.float32))


@pytest.mark.usefixtures("way_of_reading")
def test_exact_cache_never_gives_rounded_numbers(folder):
    """Both types are in one file: float32 ignores float16 entries, and float16 reads both."""
    (first, feature), (second, other), *_ = ENTRIES.items()
    half = DiskFeatureCache(folder, "float16")
    with half:
        assert half.get_many(ENTRIES).keys() == ENTRIES.keys()
        found = half.get_many([first])[first]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, feature.astype(np.float16).astype(np.float32))
        half.put_many({b"half": other, second: other})
    with DiskFeatureCache(folder) as exact:
        assert exact.get_many([b"half"]) == {}
        assert_equal_to_entries(exact.get_many(ENTRIES))
        exact.put_many({b"half": other})
        np.testing.assert_array_equal(exact.get_many([b"half"])[b"half"], other)
    with half:
        found = half.get_many([b"half", second])
    for key in found:
        np.testing.assert_array_equal(found[key], other.astype(np.float16).astype(np.float32))


def test_invalid_dtype_raises(tmp_path):
    """The constructor raises, not the first write after hours of encoding."""
    with pytest.raises(ValueError, match="float32 or float16, not 'int8'"):
        DiskFeatureCache(tmp_path, dtype="int8")


@pytest.mark.parametrize("number", [1, 1000])
def test_file_of_newer_version_is_not_changed(folder, number):
    """Entries of a newer format may have another meaning; the error suggests an upgrade."""
    connection = sqlite3.connect(folder / "features.sqlite")
    connection.execute(f"PRAGMA user_version = {number}")
    connection.close()
    content = (folder / "features.sqlite").read_bytes()
    cache = DiskFeatureCache(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cache:
            assert cache.get_many(ENTRIES) == {}
            cache.put_many(ENTRIES)
    (told,) = caught
    pattern = f"format {number}; this version supports 0.* Upgrade sklearn-ape"
    assert re.search(pattern, str(told.message))
    assert (folder / "features.sqlite").read_bytes() == content
    assert {file.name for file in folder.iterdir()} == {"features.sqlite"}


def test_invalid_format_number_is_damage(folder):
    """A flipped byte in the format number must not make the file unusable for ever."""
    connection = sqlite3.connect(folder / "features.sqlite")
    connection.execute(f"PRAGMA user_version = {2**24}")
    connection.close()
    with DiskFeatureCache(folder) as cache:
        assert_equal_to_entries(cache.get_many(ENTRIES))
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()


def test_to_float16_returns_mask_of_rows_in_range():
    with np.errstate(all="raise"):
        half, fits = to_float16(np.array([[0.1, 2.0], [1e6, 3.0], [-3.0, 1e-9]]))
    assert half.dtype == np.float16
    assert fits.tolist() == [True, False, True]
    assert to_float16(np.array([7.0, 1e6]))[1].shape == ()


class TestUnwrittenEntries:
    """Entries of calls in quick succession are written in one transaction."""

    @pytest.fixture
    def simulated_time(self, monkeypatch):
        """Simulate a clock that advances by 0.1 s per reading, so that only writing takes time."""
        times = iter(np.arange(1, 9999) * 0.1)
        monkeypatch.setattr(_disk.time, "monotonic", lambda: next(times))

    @pytest.fixture
    def cache(self, tmp_path, simulated_time):
        with DiskFeatureCache(tmp_path) as cache:
            yield cache

    def entries(self, start):
        return dict(list(ENTRIES.items())[start : start + 50])

    def count_written(self, cache):
        with sqlite3.connect(f"file:{cache.path}?mode=ro", uri=True) as other:
            return other.execute("SELECT COUNT(*) FROM features").fetchone()[0]

    def test_unwritten_features_are_returned(self, cache):
        for start in (0, 50):
            cache.put_many(self.entries(start))
        assert self.count_written(cache) == 50
        found = cache.get_many(ENTRIES)
        assert found.keys() == (self.entries(0) | self.entries(50)).keys()
        assert_equal_to_entries(found)

    def test_features_are_written_after_a_pause(self, cache):
        cache.put_many(self.entries(0))
        for _ in range(4):
            cache.put_many({})
        assert self.count_written(cache) == 50
        cache.put_many(self.entries(50))
        for _ in range(4):
            cache.put_many({})
        assert self.count_written(cache) == 100

    def test_pause_is_four_times_the_duration_of_writing(self, tmp_path, monkeypatch):
        """Writing takes at most one fifth of the time."""
        times = iter(np.arange(1, 9999) * 0.01)
        monkeypatch.setattr(_disk.time, "monotonic", lambda: next(times))
        with DiskFeatureCache(tmp_path) as cache:
            cache.put_many(self.entries(0))
            seen = []
            for _ in range(6):
                cache.put_many(self.entries(50))
                seen.append(self.count_written(cache))
        assert seen == [50, 50, 50, 50, 100, 100]

    def test_unwritten_features_are_bounded(self, cache, monkeypatch):
        """The bound applies to the entries of all calls together."""
        (value,) = pack(
            FLOAT32_TABLE, {b"key": np.zeros(WIDTH, dtype=np.float32).tobytes()}
        ).values()
        size = len(value)
        monkeypatch.setattr(_disk, "_MAX_UNWRITTEN_BYTES", 60 * size)
        monkeypatch.setattr(_disk, "_MAX_PAUSE_S", 1e9)
        monkeypatch.setattr(_disk, "_PAUSE_RATIO", 1e9)
        cache.put_many(self.entries(0))
        cache.put_many(self.entries(50))
        assert self.count_written(cache) == 50
        cache.put_many(self.entries(100))
        assert self.count_written(cache) == 150
        cache.put_many(self.entries(150))
        assert self.count_written(cache) == 150


def test_closed_cache_raises(tmp_path):
    cache = DiskFeatureCache(tmp_path)
    for _ in range(2):  # before and after it is open
        for use in (cache.put_many, cache.get_many):
            with pytest.raises(RuntimeError, match="outside its `with` block"):
                use(ENTRIES)
        with cache:
            pass


@pytest.mark.usefixtures("way_of_reading")
def test_blocks_show_one_state_of_the_file(folder, monkeypatch):
    """Features that another process removes during an iteration are returned."""
    monkeypatch.setattr(_disk, "_KEYS_PER_QUERY", 7)
    with DiskFeatureCache(folder) as cache:
        blocks = cache.iter_blocks(ENTRIES)
        keys, block = next(blocks)
        with sqlite3.connect(cache.path) as other:
            assert other.execute("DELETE FROM features").rowcount == len(ENTRIES)
        other.close()
        features = dict(zip(keys, block, strict=True))
        for keys, block in blocks:
            features.update(zip(keys, block, strict=True))
        assert features.keys() == ENTRIES.keys()
        assert_equal_to_entries(features)
        assert cache.get_many(ENTRIES) == {}


@pytest.mark.usefixtures("way_of_reading")
def test_abandoned_iteration_ends_its_transaction(folder):
    with DiskFeatureCache(folder) as cache:
        blocks = cache.iter_blocks(ENTRIES)
        next(blocks)
        blocks.close()
        cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        cache._write()
        assert cache.get_many([b"new"]).keys() == {b"new"}


def test_blocks_are_in_the_order_of_the_file(tmp_path, monkeypatch):
    """Each page is read once, for all orders of the requested keys."""
    monkeypatch.setattr(_disk, "_KEYS_PER_QUERY", 7)
    keys = sorted(ENTRIES)
    with DiskFeatureCache(tmp_path) as cache:
        for part in (keys[1::2], keys[::2]):
            cache.put_many({key: ENTRIES[key] for key in part})
            cache._write()
        requested = np.random.default_rng(0).permutation(len(keys))
        blocks = list(cache.iter_blocks(keys[row] for row in requested))
    assert [key for block_keys, _ in blocks for key in block_keys] == keys[1::2] + keys[::2]


@pytest.mark.parametrize(("n_keys", "is_scanned"), [(1, False), (50, False), (51, True)])
def test_a_quarter_of_the_table_is_read_by_a_scan(folder, monkeypatch, n_keys, is_scanned):
    """Only the features of the requested keys are returned."""
    monkeypatch.setattr(_disk, "_MIN_KEYS_TO_SCAN", 1)
    statements = []
    with DiskFeatureCache(folder) as cache:
        cache._connection.set_trace_callback(statements.append)
        keys = [b"unknown", *list(ENTRIES)[: n_keys - 1]]
        found = cache.get_many(keys)
    assert found.keys() == {*keys[1:]}
    assert_equal_to_entries(found)
    assert ("SELECT key, value FROM features" in statements) is is_scanned


def test_index_with_rows_that_do_not_exist_is_damage(folder, monkeypatch):
    """Otherwise their features would be computed in every run."""
    select = _disk._select

    def select_one_less(connection, query, values):
        batches = list(select(connection, query, values))
        return [batches[0][1:], *batches[1:]] if query.startswith("SELECT key") else batches

    monkeypatch.setattr(_disk, "_KEYS_PER_QUERY", 150)
    with DiskFeatureCache(folder) as cache:
        monkeypatch.setattr(_disk, "_select", select_one_less)
        with pytest.warns(RuntimeWarning, match=r"is damaged \(the index contains rows that do"):
            assert len(cache.get_many(ENTRIES)) == len(ENTRIES) - 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_child_opens_its_own_connection(tmp_path):
    """SQLite does not allow a child to use or close a connection of its parent."""
    feature = np.ones(3, dtype=np.float32)
    with DiskFeatureCache(tmp_path) as cache:
        cache.put_many({b"parent": feature})
        connection = cache._connection
        child = os.fork()
        if child == 0:
            status = 1
            try:
                cache.put_many({b"child": feature})
                features = cache.get_many([b"parent", b"child"])
                is_own = cache._connection is not connection
                cache.__exit__()
                status = 0 if is_own and len(features) == 2 and cache._connection is None else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert cache._connection is connection
        assert cache.get_many([b"parent", b"child"]).keys() == {b"parent", b"child"}
    with DiskFeatureCache(tmp_path) as cache:
        assert len(cache.get_many([b"parent", b"child"])) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_child_does_not_close_the_connection_of_its_parent(tmp_path):
    """Even if the child ends the `with` block without using the cache."""

    def count_connections():
        gc.collect()
        return sum(isinstance(each, sqlite3.Connection) for each in gc.get_objects())

    with DiskFeatureCache(tmp_path) as cache:
        n_connections = count_connections()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                cache.__exit__()
                status = 0 if count_connections() == n_connections > 0 else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
