"""SQLite file of a cache: connections, and the meaning of their errors."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

# `PRAGMA user_version` of the files that this version writes. Later versions of the package may
# use greater numbers, up to the limit. A number beyond the limit means that the file is damaged.
_FORMAT = 0
_MAX_FORMAT = 1_000
# A page of 16 KiB holds three features of 1280 float32, or 20 of 384 float16. Larger pages would
# make it expensive to insert a key, as keys are random and each is on another page.
_PAGE_BYTES = 16_384
# 64 MB between checkpoints, so that a page of the index is copied once for many changes.
_LOG_PAGES = 4_000

BUSY_TIMEOUT_S = 60

# Errors that do not mean that the file is damaged.
_TRANSIENT_ERRORS = {
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
    """The file was written by a later version of this package, in another format."""


def is_read_only(path: Path) -> bool:
    """Return whether the file of a cache, or its folder, exists and is not writable."""
    return any(p.exists() and not os.access(p, os.W_OK) for p in (path.parent, path))


def connect(path: Path, tables: list[str], timeout: float) -> sqlite3.Connection:
    """Open a file for reading and writing; the file and its tables are created if necessary."""
    connection = _open(path, "", timeout)
    try:
        _check_format(connection)
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")  # concurrent readers and a writer
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
    """Open a file in a read-only folder, or an empty database if the file does not exist."""
    if not path.exists():
        return connect_to_nothing()
    last_error = sqlite3.Error()
    # The mode "ro" can share the file with writers, but needs the index of their log. Without it,
    # a file in a read-only folder can be read only as an immutable one.
    for option in ("?mode=ro", "?immutable=1"):
        connection = _open(path, option, timeout)
        try:
            list_tables(connection)
            _check_format(connection)
            return connection
        except (sqlite3.Error, NewerFormatError) as error:
            connection.close()
            if isinstance(error, NewerFormatError):
                raise
            last_error = error
    raise last_error


def connect_to_existing(path: Path, timeout: float) -> sqlite3.Connection:
    """Open an existing file, for writing if it is writable. No file and no table is created."""
    if is_read_only(path):
        return connect_to_read(path, timeout)
    # The last connection to a file removes its log, which a read-only connection leaves behind.
    connection = _open(path, "?mode=rw", timeout)
    try:
        _check_format(connection)
    except (sqlite3.Error, NewerFormatError):
        connection.close()
        raise
    return connection


def list_tables(connection: sqlite3.Connection) -> set[str]:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    return {name.decode(errors="replace") for (name,) in names if isinstance(name, bytes)}


def connect_to_nothing() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)


def retry_while_busy(
    open_file: Callable[[], sqlite3.Connection], timeout: float
) -> sqlite3.Connection:
    """Open a file, and retry while another process locks it."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return open_file()
        except sqlite3.DatabaseError as error:
            is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            # SQLite itself does not wait while several processes create the same file.
            time.sleep(0.01)


def is_damage(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Return whether an error means that the file is damaged; a full disk or a lock does not."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return not isinstance(error, sqlite3.OperationalError)
    if code & 0xFF == sqlite3.SQLITE_READONLY:  # SQLite reports it for a damaged header as well
        return path.exists() and not is_read_only(path)
    return code & 0xFF not in _TRANSIENT_ERRORS


def _open(path: Path, option: str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path.absolute().as_uri() + option if option else path,
        timeout=timeout,
        check_same_thread=False,
        uri=bool(option),
    )
    connection.text_factory = bytes  # so that a damaged entry of type text can be read
    return connection


def _check_format(connection: sqlite3.Connection) -> None:
    ((file_format,),) = connection.execute("PRAGMA user_version")
    if _FORMAT < file_format <= _MAX_FORMAT:
        raise NewerFormatError(
            f"was written by a newer version of sklearn-ape (format {file_format}; this version "
            f"supports {_FORMAT}) and is not used. Upgrade sklearn-ape, or pass another folder"
        )
