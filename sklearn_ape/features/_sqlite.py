"""SQLite connections to a cache's file, and what their errors mean."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

# What `PRAGMA user_version` says of files as they are written here. A greater number is of a later
# version of this package, and a number beyond the limit of damage.
_FORMAT = 0


_LAST_FORMAT = 1_000


# 16 KiB hold three features of 1280 float32, or 20 of 384 float16, and keep the cost of a key,
# which falls on a page of its own, bearable.
_PAGE_BYTES = 16_384


_LOG_PAGES = 4_000  # 64 MB: a page of the index is copied once for all that changed on it


_NO_DAMAGE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_AUTH,
}


class NewerFormatError(Exception):
    """A file was written by a later version of this package, in another form."""


def is_read_only(path: Path) -> bool:
    """Say whether a cache's folder, or the file in it, is there and cannot be written to."""
    return any(place.exists() and not os.access(place, os.W_OK) for place in (path.parent, path))


def connect(path: Path, tables: list[str], timeout: float) -> sqlite3.Connection:
    """Open a file to read and write, making it and its tables where they are not."""
    connection = _opened(path, "", timeout)
    try:
        _check_format(connection)
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")  # readers and a writer side by side
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        for table in tables:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )
    except (sqlite3.Error, NewerFormatError):
        connection.close()
        raise
    return connection


def connect_to_read(path: Path, timeout: float) -> sqlite3.Connection:
    """Open a file in a folder where nothing can be written; an empty one where there is none."""
    if not path.exists():
        return nowhere()
    failure = sqlite3.Error()
    # SQLite can share the file with writers where these left their log's index; else only an
    # unchanging file can be read from a read-only folder.
    for option in ("?mode=ro", "?immutable=1"):
        connection = _opened(path, option, timeout)
        try:
            tables_of(connection)
            _check_format(connection)
        except sqlite3.Error as error:
            connection.close()
            failure = error
        except NewerFormatError:
            connection.close()
            raise
        else:
            return connection
    raise failure


def tables_of(connection: sqlite3.Connection) -> set[str]:
    """Name the tables in a file."""
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    return {name.decode(errors="replace") for (name,) in names if isinstance(name, bytes)}


def nowhere() -> sqlite3.Connection:
    """Open an empty file that is in memory alone."""
    return sqlite3.connect(":memory:", check_same_thread=False)


def retried(make: Callable[[], sqlite3.Connection], timeout: float) -> sqlite3.Connection:
    """Call until no other process is in the way."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return make()
        except sqlite3.DatabaseError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            # SQLite does not wait where several processes make one file at once.
            time.sleep(0.01)


def is_damage(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Tell a damaged file from a full disk, a lock and the like."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return not isinstance(error, sqlite3.OperationalError)
    if code & 0xFF == sqlite3.SQLITE_READONLY:  # as a damaged header says, too
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return code & 0xFF not in _NO_DAMAGE


def _opened(path: Path, option: str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path.absolute().as_uri() + option if option else path,
        timeout=timeout,
        check_same_thread=False,
        uri=bool(option),
    )
    connection.text_factory = bytes  # only a damaged entry is a text
    return connection


def _check_format(connection: sqlite3.Connection) -> None:
    ((number,),) = connection.execute("PRAGMA user_version")
    if _FORMAT < number <= _LAST_FORMAT:
        raise NewerFormatError(
            f"was written by a newer version of sklearn-ape (format {number}; this one knows "
            f"{_FORMAT}) and is left as it is: upgrade sklearn-ape, or give another folder"
        )


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
