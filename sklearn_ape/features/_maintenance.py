"""Size, contents and integrity of a disk cache, and removal of features."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ..utils.messages import warn
from . import _sqlite

_ROWS_PER_FETCH = 1_000  # bounds the memory
_MAX_PROBLEMS = 10  # SQLite would report up to 100


class _DamagedFileError(OSError):
    """The file is damaged; the cause is the error of SQLite."""


class DiskCacheInfo(NamedTuple):
    """Size and contents of a `DiskFeatureCache`.

    Attributes
    ----------
    n_bytes : int
        Size of the file of features on disk, with its log.
    n_other_bytes : int
        Size of the exported networks of inference engines and of renamed damaged files.
    last_change : datetime.datetime
        Time when the file was last changed, in local time.
    counts : dict of (str, int) to int
        Number of features by type, such as ``"float32"``, and dimension.
    """

    n_bytes: int
    n_other_bytes: int
    last_change: datetime
    counts: dict[tuple[str, int], int]


class DiskCacheReport(NamedTuple):
    """Result of `DiskFeatureCache.verify`.

    Attributes
    ----------
    n_features : int
        Number of features that were read, with the damaged ones.
    n_damaged : int
        Number of features with a wrong checksum. They are computed again when they are needed.
    problems : list of str
        Problems of the structure of the file, as SQLite reports them.
    """

    n_features: int
    n_damaged: int
    problems: list[str]


def inspect_file(path: Path) -> DiskCacheInfo:
    """Return the size and the contents of a file; see `DiskFeatureCache.info`."""
    counts: dict[tuple[str, int], int] = {}
    with _open(path, _sqlite.connect_to_inspect) as connection:
        for table in _list_feature_tables(connection):
            dtype = _sqlite.DTYPES[table]
            # SQLite returns lengths without reading the values. Damaged values have any type and
            # length.
            for n_bytes, count in connection.execute(
                f"SELECT LENGTH(value), COUNT(*) FROM {table} WHERE TYPEOF(value) = 'blob' "
                "AND LENGTH(value) > ? GROUP BY 1 ORDER BY 1",
                (_sqlite.CHECKSUM_SIZE,),
            ):
                key = dtype.name, (n_bytes - _sqlite.CHECKSUM_SIZE) // dtype.itemsize
                counts[key] = counts.get(key, 0) + count
    statuses = [path.stat(), *_read_statuses(_sqlite.list_files(path)[1:])]
    n_bytes = sum(status.st_size for status in statuses)
    last_change = max(status.st_mtime for status in statuses)
    others = [*path.parent.glob(f"{path.name}.damaged*")]
    # Unlike glob, os.walk skips a folder that another process removes meanwhile.
    for folder, _, names in os.walk(path.parent / "engines"):
        others += [Path(folder, name) for name in names]
    n_other_bytes = sum(status.st_size for status in _read_statuses(others))
    return DiskCacheInfo(n_bytes, n_other_bytes, datetime.fromtimestamp(last_change), counts)


def _read_statuses(paths: Iterable[Path]) -> list[os.stat_result]:
    """Return the status of each file that exists; other processes may remove files meanwhile."""
    statuses = []
    for path in paths:
        with suppress(FileNotFoundError):
            statuses.append(path.stat())
    return statuses


def verify_file(path: Path) -> DiskCacheReport:
    """Check all entries of a file and its structure; see `DiskFeatureCache.verify`."""
    n_features = n_valid = 0
    problems: list[str] = []
    try:
        for table, entries in _iter_entries(path):
            n_features += len(entries)
            n_valid += sum(len(keys) for keys, _ in _sqlite.unpack(table, entries))
    except _DamagedFileError as error:
        problems.append(str(error.__cause__))
    try:
        with _open(path, _sqlite.connect_to_inspect) as connection:
            results = connection.execute(f"PRAGMA integrity_check({_MAX_PROBLEMS})")
            lines = [bytes(line).decode(errors="replace") for (line,) in results]
            problems += [line for line in lines if line != "ok"]
    except _DamagedFileError as error:
        problems.append(str(error.__cause__))
    return DiskCacheReport(n_features, n_features - n_valid, list(dict.fromkeys(problems)))


def _iter_entries(path: Path) -> Iterator[tuple[str, list[tuple[bytes, bytes]]]]:
    """Yield the name of a table and up to 1,000 of its entries, for all entries of a file."""
    with _open(path, _sqlite.connect_to_inspect) as connection:
        for table in _list_feature_tables(connection):
            rows = connection.execute(f"SELECT key, value FROM {table}")
            while entries := rows.fetchmany(_ROWS_PER_FETCH):
                yield table, entries


def prune_file(path: Path, max_bytes: int | None, dimension: int | None) -> int:
    """Remove features from a file and shrink it; see `DiskFeatureCache.prune`."""
    n_removed = 0
    with _open(path, _sqlite.connect_to_existing) as connection:
        if _sqlite.is_read_only(path):
            raise PermissionError(
                f"The feature cache {str(path)!r} is not writable. Change its permissions, or "
                "run as its owner."
            )
        if dimension is not None:
            n_removed = _remove_dimension(connection, dimension)
        if max_bytes is not None:  # before the first VACUUM, which copies what is left
            n_removed += _remove_oldest(connection, max_bytes)
        _shrink(connection, path)
        # The estimate of the share is not exact if features have several dimensions.
        while max_bytes is not None and (n := _remove_oldest(connection, max_bytes)):
            n_removed += n
            _shrink(connection, path)
    return n_removed


def _remove_dimension(connection: sqlite3.Connection, dimension: int) -> int:
    n_removed = 0
    with connection:
        for table in _list_feature_tables(connection):
            n_bytes = _sqlite.CHECKSUM_SIZE + dimension * _sqlite.DTYPES[table].itemsize
            sql = f"DELETE FROM {table} WHERE LENGTH(value) = ?"
            n_removed += connection.execute(sql, (n_bytes,)).rowcount
    return n_removed


def _remove_oldest(connection: sqlite3.Connection, max_bytes: int) -> int:
    """Remove the same share of each table, so that the used pages have about `max_bytes`."""
    n_removed = 0
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # no other process writes between the statements
        n_free_pages = _read_pragma(connection, "freelist_count")
        n_pages = _read_pragma(connection, "page_count") - n_free_pages
        n_used_bytes = n_pages * _read_pragma(connection, "page_size")
        if n_used_bytes <= max_bytes:
            return 0
        share = max_bytes / n_used_bytes
        for table in _list_feature_tables(connection):
            # SQLite numbers rows in the order in which they are inserted, and VACUUM keeps it.
            cumulative = (
                "SELECT rowid AS number, SUM(LENGTH(value)) OVER (ORDER BY rowid DESC) AS n_bytes "
                f"FROM {table}"
            )
            n_removed += connection.execute(
                f"DELETE FROM {table} WHERE rowid <= (SELECT MAX(number) FROM ({cumulative}) "
                f"WHERE n_bytes > ? * (SELECT SUM(LENGTH(value)) FROM {table}))",
                (share,),
            ).rowcount
    return n_removed


def _shrink(connection: sqlite3.Connection, path: Path) -> None:
    """Give free pages back to the disk."""
    if not _read_pragma(connection, "freelist_count"):
        return
    connection.execute("VACUUM")
    # VACUUM writes to the log. The file shrinks when the log is copied, for which SQLite waits
    # until no other process reads.
    ((is_busy, *_),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if is_busy:
        warn(
            f"The feature cache {str(path)!r} is read by another process. Its file shrinks when "
            "that process closes it.",
            RuntimeWarning,
        )


def _read_pragma(connection: sqlite3.Connection, name: str) -> int:
    ((value,),) = connection.execute(f"PRAGMA {name}")
    return int(value)


def _list_feature_tables(connection: sqlite3.Connection) -> list[str]:
    tables = _sqlite.list_tables(connection)
    return [table for table in _sqlite.DTYPES if table in tables]


@contextmanager
def _open(
    path: Path, connect: Callable[[Path], sqlite3.Connection]
) -> Iterator[sqlite3.Connection]:
    """Open an existing file, and raise errors of SQLite as OSError."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path.parent)!r} is not a feature cache, because it has no file {path.name!r}. "
            "Check the folder, or encode images to create the cache."
        )
    name = f"The feature cache {str(path)!r}"
    try:
        with closing(connect(path)) as connection:
            yield connection
    except _sqlite.NewerFormatError as error:
        raise OSError(f"{name} {error}.") from error
    except sqlite3.DatabaseError as error:
        if not _sqlite.is_damage(error, path):
            raise OSError(
                f"{name} cannot be used: {error}. Close other programs that use it, or free some "
                "disk space, and try again."
            ) from error
        raise _DamagedFileError(
            f"{name} is damaged: {error}. Delete the file; its features are computed again."
        ) from error
