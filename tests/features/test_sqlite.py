"""Connections to the SQLite database of the disk cache, with simulated errors."""

import sqlite3
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features import _sqlite as _connection
from sklearn_ape.features._sqlite import (
    connect,
    connect_to_existing,
    connect_to_nothing,
    connect_to_read,
    is_damage,
    is_read_only,
    list_tables,
    retry_while_busy,
)
from tests.features.conftest import ENTRIES


def error(kind, code=None):
    exception = kind("simulated")
    if code is not None:
        exception.sqlite_errorcode = code
    return exception


class TestRetryWhileBusy:
    def failing(self, errors):
        """Return a function that raises one of the errors per call, and then returns."""
        calls = iter(errors)

        def make():
            for problem in calls:
                raise problem
            return "connected"

        return make

    @pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY | 2 << 8])
    def test_busy_file_is_retried(self, code):
        """The last eight bits of an extended code are the primary code."""
        busy = [error(sqlite3.OperationalError, code)] * 3
        assert retry_while_busy(self.failing(busy)) == "connected"

    @pytest.mark.parametrize("code", [None, 0, sqlite3.SQLITE_FULL, sqlite3.SQLITE_LOCKED, 1])
    def test_other_errors_are_not_retried(self, code):
        calls = self.failing([error(sqlite3.DatabaseError, code)])
        with pytest.raises(sqlite3.DatabaseError, match="simulated"):
            retry_while_busy(calls)
        assert calls() == "connected"  # the failing call was not repeated

    def test_retry_stops_at_the_timeout(self, monkeypatch):
        monkeypatch.setattr(_connection, "_BUSY_TIMEOUT_S", 0.2)

        def always():
            raise error(sqlite3.OperationalError, sqlite3.SQLITE_BUSY)

        durations = []

        def wait():
            start = time.monotonic()
            with pytest.raises(sqlite3.OperationalError):
                retry_while_busy(always)
            durations.append(time.monotonic() - start)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        thread.join(30)
        assert durations
        assert durations[0] >= 0.2


class TestDamage:
    @pytest.mark.parametrize(
        "code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT | 1 << 8]
    )
    def test_damage_codes_are_damage(self, tmp_path, code):
        assert is_damage(error(sqlite3.DatabaseError, code), tmp_path / "a")

    @pytest.mark.parametrize(
        "name",
        [
            "PERM",
            "BUSY",
            "LOCKED",
            "NOMEM",
            "INTERRUPT",
            "IOERR",
            "FULL",
            "CANTOPEN",
            "PROTOCOL",
            "AUTH",
        ],
    )
    def test_transient_errors_are_not_damage(self, tmp_path, name):
        code = getattr(sqlite3, f"SQLITE_{name}")
        for extended in (code, code | 3 << 8):
            assert not is_damage(error(sqlite3.OperationalError, extended), tmp_path / "a")

    def test_error_without_code_is_judged_by_its_class(self, tmp_path):
        assert is_damage(error(sqlite3.DatabaseError), tmp_path / "a")
        assert not is_damage(error(sqlite3.OperationalError), tmp_path / "a")

    def test_readonly_error_of_writable_file_is_damage(self, tmp_path):
        """SQLite reports some damaged headers as read-only."""
        (tmp_path / "a").write_bytes(b"")
        told = error(sqlite3.OperationalError, sqlite3.SQLITE_READONLY)
        assert is_damage(told, tmp_path / "a")
        assert not is_damage(told, tmp_path / "gone" / "a")
        assert not is_damage(told, tmp_path / "gone")


def test_connections_wait_a_minute(tmp_path):
    for made in (connect(tmp_path / "a", ["numbers"]), connect_to_read(tmp_path / "a")):
        assert made.execute("PRAGMA busy_timeout").fetchone() == (60_000,)
        made.close()


class TestConnectToRead:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "a file.sqlite"
        connection = connect(path, ["numbers"])
        with connection:
            connection.execute("INSERT INTO numbers VALUES (x'01', x'02')")
        connection.close()
        return path

    def read(self, connection):
        return connection.execute("SELECT key, value FROM numbers").fetchall()

    def test_file_is_read(self, path):
        connection = connect_to_read(path)
        assert list_tables(connection) == {"numbers"}
        assert self.read(connection) == [(b"\1", b"\2")]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM numbers")
        connection.close()

    def test_file_with_a_writer_is_read(self, path):
        """Entries that are only in the write-ahead log are read."""
        writer = connect(path, ["numbers"])
        with writer:
            writer.execute("INSERT INTO numbers VALUES (x'03', x'04')")
        connection = connect_to_read(path)
        assert len(self.read(connection)) == 2
        with writer:
            writer.execute("INSERT INTO numbers VALUES (x'05', x'06')")
        assert len(self.read(connection)) == 3
        connection.close()
        writer.close()

    def test_missing_file_is_empty_and_not_created(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for connection in (connect_to_read(tmp_path / "none.sqlite"), connect_to_nothing()):
            assert list_tables(connection) == set()
            with ThreadPoolExecutor(1) as another:
                assert another.submit(list_tables, connection).result() == set()
            connection.close()
        assert list(tmp_path.iterdir()) == []

    def test_existing_file_is_written_only_if_it_is_writable(self, path, monkeypatch):
        """A missing file is not created."""
        connection = connect_to_existing(path)
        connection.execute("INSERT INTO numbers VALUES (x'03', x'04')")
        connection.rollback()
        connection.close()
        with pytest.raises(sqlite3.OperationalError):
            connect_to_existing(path.with_name("missing"))
        assert not path.with_name("missing").exists()
        # Root may write to all files, so the permission is simulated.
        monkeypatch.setattr(_connection, "is_read_only", lambda path: True)
        connection = connect_to_existing(path)
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (60_000,)
        assert self.read(connection) == [(b"\1", b"\2")]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("INSERT INTO numbers VALUES (x'03', x'04')")
        connection.close()

    @pytest.mark.parametrize("n_failing", [1, 2])
    def test_file_that_cannot_be_shared_is_read_as_immutable(self, path, monkeypatch, n_failing):
        """The folder is read-only without an index of the log; else the last error is raised."""
        options = []
        path.with_name(f"{path.name}-wal").touch()
        bad = path.with_name("bad")
        bad.write_bytes(b"no database at all " * 99)
        open_file = _connection._open

        def opened(place, option):
            options.append(option)
            return open_file(place if len(options) > n_failing else bad, option)

        monkeypatch.setattr(_connection, "_open", opened)
        if n_failing == 1:
            connection = connect_to_read(path)
            assert self.read(connection) == [(b"\1", b"\2")]
            connection.close()
        else:
            with pytest.raises(sqlite3.DatabaseError, match="not a database"):
                connect_to_read(path)
        assert options == ["?mode=ro", "?immutable=1"]


def test_link_into_a_read_only_folder_is_read_only(tmp_path, monkeypatch):
    """The log cannot be written there. The cache was treated as damaged, and its link renamed."""
    folder, link = tmp_path / "shared", tmp_path / "cache"
    folder.mkdir()
    (folder / "features.sqlite").touch()
    link.symlink_to(folder / "features.sqlite")
    assert not is_read_only(link)
    monkeypatch.setattr(_connection.os, "access", lambda file, mode: file != folder)
    assert is_read_only(link)


def test_loop_of_links_is_not_used(tmp_path):
    """It ended the run with RuntimeError."""
    (tmp_path / "features.sqlite").symlink_to(tmp_path / "features.sqlite")
    message = "cannot be written to: unable to open database file"
    with pytest.warns(RuntimeWarning, match=message), DiskFeatureCache(tmp_path) as cache:
        cache.put_many(ENTRIES)


def test_log_that_is_removed_meanwhile_is_not_read_only(tmp_path, monkeypatch):
    """Caches of concurrent processes were not written to."""
    log = tmp_path / "cache-wal"
    log.touch()

    def access(file, mode):
        log.unlink(missing_ok=True)
        return file.exists()

    monkeypatch.setattr(_connection.os, "access", access)
    assert not is_read_only(tmp_path / "cache")
    assert not log.exists()


@pytest.mark.parametrize("message", ["database or disk is full", "database is locked"])
def test_failing_write_warns_once_and_keeps_features_in_memory(folder, monkeypatch, message):
    """A full disk or a lock loses no features, and the file does not count as damaged."""

    attempts = []

    def fails(self):
        attempts.append(1)
        raise sqlite3.OperationalError(message)

    monkeypatch.setattr(DiskFeatureCache, "_commit", fails)
    with DiskFeatureCache(folder) as cache:
        with pytest.warns(RuntimeWarning, match=message):
            cache.put_many(ENTRIES)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cache.put_many(ENTRIES)
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()
        assert cache.get_many([b"new"]) == {}
    assert len(attempts) == 1  # otherwise each batch would wait for the lock
    assert not list(folder.glob("*.damaged*"))


@pytest.mark.parametrize(
    ("code", "is_damaged"), [("IOERR", False), ("CANTOPEN", False), ("READONLY", True)]
)
def test_file_that_cannot_be_opened_for_writing_is_read(folder, monkeypatch, code, is_damaged):
    """The file is kept unless it is damaged: reported as read-only in a writable folder."""
    failing = [sqlite3.OperationalError("simulated error")]
    failing[0].sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
    original_connect = _connection.connect

    def connect(*args):
        if failing:
            raise failing.pop()
        return original_connect(*args)

    monkeypatch.setattr(_connection, "connect", connect)
    with warnings.catch_warnings(record=True) as caught, DiskFeatureCache(folder) as cache:
        warnings.simplefilter("always")
        found = cache.get_many(ENTRIES)
        cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        again = cache.get_many([b"new"])
    (message,) = [str(warning.message) for warning in caught]
    if is_damaged:
        assert "is damaged (simulated error); it was moved to" in message
        assert (len(found), len(again)) == (0, 1)
    else:
        start = f"The feature cache {str(cache.path)!r} "
        assert (
            message
            == f"{start}cannot be written to: simulated error. The features are computed again."
        )
        assert (len(found), len(again)) == (len(ENTRIES), 0)
    assert len(list(folder.glob("*.damaged*"))) == is_damaged


@pytest.mark.parametrize("is_damaged", [True, False])
def test_read_only_file_is_not_changed(folder, monkeypatch, is_damaged):
    monkeypatch.setattr(_connection, "is_read_only", lambda path: True)
    path = folder / "features.sqlite"
    if is_damaged:
        path.write_bytes(b"garbage " * 5000)
    before = path.read_bytes()
    with warnings.catch_warnings(record=True) as caught, DiskFeatureCache(folder) as cache:
        warnings.simplefilter("always")
        assert len(cache.get_many(ENTRIES)) == (0 if is_damaged else len(ENTRIES))
        for _ in range(2):
            cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        assert cache.get_many([b"new"]) == {}
    start = f"The feature cache {str(path)!r} "
    expected = [f"{start}is damaged (file is not a database)"] if is_damaged else []
    expected.append(f"{start}cannot be written to")
    assert [str(warning.message) for warning in caught] == [
        f"{message}. The features are computed again." for message in expected
    ]
    assert path.read_bytes() == before


def test_file_that_is_temporarily_unreadable_is_kept(folder, monkeypatch):
    """A read error outside the file gives no features and does not move the file."""

    class Busy:
        def execute(self, *args):
            raise sqlite3.OperationalError("disk I/O error")

    with DiskFeatureCache(folder) as cache, monkeypatch.context() as patch:
        patch.setattr(DiskFeatureCache, "_get_connection", lambda _: Busy())
        with pytest.warns(RuntimeWarning, match="cannot be read: disk I/O error"):
            assert cache.get_many(ENTRIES) == {}
    assert not list(folder.glob("*.damaged*"))


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY])
def test_damage_found_while_reading_warns_with_its_reason(folder, monkeypatch, code):
    damage = sqlite3.DatabaseError("malformed")
    damage.sqlite_errorcode = code

    class Damaged:
        def execute(self, *args):
            raise damage

    with DiskFeatureCache(folder) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(DiskFeatureCache, "_get_connection", lambda _: Damaged())
            with pytest.warns(RuntimeWarning, match=r"is damaged \(malformed\); it was moved"):
                assert cache.get_many(ENTRIES) == {}
        cache.put_many(ENTRIES)
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY])
def test_damage_found_while_writing_keeps_written_features(folder, monkeypatch, code):
    errors = [error(sqlite3.DatabaseError, code)]
    original_commit = DiskFeatureCache._commit

    def commit(self):
        if errors:
            raise errors.pop()
        original_commit(self)

    monkeypatch.setattr(DiskFeatureCache, "_commit", commit)
    new = {b"new": np.ones(3, dtype=np.float32)}
    with DiskFeatureCache(folder) as cache:
        with pytest.warns(RuntimeWarning, match=r"is damaged \(simulated\); it was moved"):
            cache.put_many(new)
        assert cache.get_many(new).keys() == new.keys()
    assert len(list(folder.glob("*.damaged*"))) == 1
