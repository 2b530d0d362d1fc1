"""Error handling of the disk cache, with simulated SQLite errors."""

import sqlite3
import warnings

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features import _disk_cache as _disk
from tests.features.entries import TRUTH


@pytest.mark.parametrize("message", ["database or disk is full", "database is locked"])
def test_failing_write_warns_once_and_continues(folder, monkeypatch, message):
    """A full disk or a lock loses no work, and the file is not taken for damaged."""

    tried = []

    def fails(self):
        tried.append(1)
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
    assert len(tried) == 1  # a lock would be waited for at every batch
    assert not list(folder.glob("*.damaged*"))


@pytest.mark.parametrize(
    ("code", "is_damaged"), [("IOERR", False), ("CANTOPEN", False), ("READONLY", True)]
)
def test_file_that_cannot_be_opened_for_writing_is_read(folder, monkeypatch, code, is_damaged):
    """It is left as it is, unless it is the file that says so where one can write."""
    failing = [sqlite3.OperationalError("no such luck")]
    failing[0].sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
    really_connect = _disk.connect

    def connect(*args):
        if failing:
            raise failing.pop()
        return really_connect(*args)

    monkeypatch.setattr(_disk, "connect", connect)
    with warnings.catch_warnings(record=True) as told, DiskFeatureCache(folder) as cache:
        warnings.simplefilter("always")
        found = cache.get_many(TRUTH)
        cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        again = cache.get_many([b"new"])
    (message,) = [str(warning.message) for warning in told]
    if is_damaged:
        assert "is damaged (no such luck); it was moved to" in message
        assert (len(found), len(again)) == (0, 1)
    else:
        start = f"The feature cache {str(cache.path)!r} "
        assert (
            message
            == f"{start}cannot be written to: no such luck. The features are computed again."
        )
        assert (len(found), len(again)) == (len(TRUTH), 0)
    assert len(list(folder.glob("*.damaged*"))) == is_damaged


@pytest.mark.parametrize("is_damaged", [True, False])
def test_read_only_file_is_not_changed(folder, monkeypatch, is_damaged):
    monkeypatch.setattr(_disk, "is_read_only", lambda path: True)
    path = folder / "features.sqlite"
    if is_damaged:
        path.write_bytes(b"garbage " * 5000)
    before = path.read_bytes()
    with warnings.catch_warnings(record=True) as told, DiskFeatureCache(folder) as cache:
        warnings.simplefilter("always")
        assert len(cache.get_many(TRUTH)) == (0 if is_damaged else len(TRUTH))
        for _ in range(2):
            cache.put_many({b"new": np.ones(3, dtype=np.float32)})
        assert cache.get_many([b"new"]) == {}
    start = f"The feature cache {str(path)!r} "
    expected = [f"{start}is damaged (file is not a database)"] if is_damaged else []
    expected.append(f"{start}cannot be written to")
    assert [str(warning.message) for warning in told] == [
        f"{message}. The features are computed again." for message in expected
    ]
    assert path.read_bytes() == before


def test_transient_read_error_is_not_damage(folder, monkeypatch):
    """A read that fails for a reason outside the file gives no features and moves nothing."""

    class Busy:
        def execute(self, *args):
            raise sqlite3.OperationalError("disk I/O error")

    with DiskFeatureCache(folder) as cache, monkeypatch.context() as patch:
        patch.setattr(DiskFeatureCache, "_open", Busy())
        with pytest.warns(RuntimeWarning, match="cannot be read: disk I/O error"):
            assert cache.get_many(TRUTH) == {}
    assert not list(folder.glob("*.damaged*"))


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY])
def test_damage_while_reading_warns_with_reason(folder, monkeypatch, code):
    told = sqlite3.DatabaseError("malformed")
    told.sqlite_errorcode = code

    class Damaged:
        def execute(self, *args):
            raise told

    with DiskFeatureCache(folder) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(DiskFeatureCache, "_open", Damaged())
            with pytest.warns(RuntimeWarning, match=r"is damaged \(malformed\); it was moved"):
                assert cache.get_many(TRUTH) == {}
        cache.put_many(TRUTH)
        assert cache.get_many(TRUTH).keys() == TRUTH.keys()


def test_damage_while_writing_loses_no_new_features(folder, monkeypatch):
    told = [sqlite3.DatabaseError("malformed")]
    really_commit = DiskFeatureCache._commit

    def commit(self):
        if told:
            raise told.pop()
        really_commit(self)

    monkeypatch.setattr(DiskFeatureCache, "_commit", commit)
    new = {b"new": np.ones(3, dtype=np.float32)}
    with DiskFeatureCache(folder) as cache:
        with pytest.warns(RuntimeWarning, match=r"is damaged \(malformed\); it was moved"):
            cache.put_many(new)
        assert cache.get_many(new).keys() == new.keys()
    assert len(list(folder.glob("*.damaged*"))) == 1
