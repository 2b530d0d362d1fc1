"""What SQLite's errors mean: who waits, who gives up, and what is called damage."""

import sqlite3
import threading
import time

import pytest

from sklearn_ape.features._connection import is_damage, retried


def error(kind, code=None):
    made = kind("told")
    if code is not None:
        made.sqlite_errorcode = code
    return made


class TestRetried:
    def failing(self, errors):
        """Raise some errors, one a call, then return."""
        calls = iter(errors)

        def make():
            for problem in calls:
                raise problem
            return "connected"

        return make

    @pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY | 2 << 8])
    def test_waits_while_another_process_is_in_the_way(self, code):
        """Extended codes mean the same in their last eight bits."""
        busy = [error(sqlite3.OperationalError, code)] * 3
        assert retried(self.failing(busy), timeout=60) == "connected"

    @pytest.mark.parametrize("code", [None, 0, sqlite3.SQLITE_FULL, sqlite3.SQLITE_LOCKED, 1])
    def test_anything_else_is_raised_at_once(self, code):
        calls = self.failing([error(sqlite3.DatabaseError, code)])
        with pytest.raises(sqlite3.DatabaseError, match="told"):
            retried(calls, timeout=60)
        assert calls() == "connected"  # it was called once

    def test_gives_up_in_time(self):
        def always():
            raise error(sqlite3.OperationalError, sqlite3.SQLITE_BUSY)

        found = []

        def wait():
            start = time.monotonic()
            with pytest.raises(sqlite3.OperationalError):
                retried(always, timeout=0.2)
            found.append(time.monotonic() - start)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        thread.join(30)
        assert found
        assert found[0] >= 0.2


class TestDamage:
    @pytest.mark.parametrize(
        "code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT | 1 << 8]
    )
    def test_damage(self, tmp_path, code):
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
    def test_what_passes_or_is_of_the_machine_is_none(self, tmp_path, name):
        code = getattr(sqlite3, f"SQLITE_{name}")
        for extended in (code, code | 3 << 8):
            assert not is_damage(error(sqlite3.OperationalError, extended), tmp_path / "a")

    def test_without_a_code_the_class_says_it(self, tmp_path):
        assert is_damage(error(sqlite3.DatabaseError), tmp_path / "a")
        assert not is_damage(error(sqlite3.OperationalError), tmp_path / "a")

    def test_read_only_is_damage_where_one_can_write(self, tmp_path):
        """A damaged header says so, too."""
        (tmp_path / "a").write_bytes(b"")
        told = error(sqlite3.OperationalError, sqlite3.SQLITE_READONLY)
        assert is_damage(told, tmp_path / "a")
        assert not is_damage(told, tmp_path / "gone" / "a")
        assert not is_damage(told, tmp_path / "gone")
