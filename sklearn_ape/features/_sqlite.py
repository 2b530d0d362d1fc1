"""SQLite file of a cache: connections, their errors, and entries with checksums."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# `PRAGMA user_version` of the files that this version writes. Later versions of the package may
# use greater numbers, up to the limit. A number beyond the limit means that the file is damaged.
_FORMAT = 0
_MAX_FORMAT = 1_000
# A page of 16 KiB holds three features of 1280 float32, or 20 of 384 float16. Larger pages would
# make it expensive to insert a key, as keys are random and each is on another page.
_PAGE_BYTES = 16_384
# 64 MB between checkpoints, so that a page of the index is copied once for many changes.
_LOG_PAGES = 4_000

# A process that waits longer for another one, such as one that prunes, does not store features.
_BUSY_TIMEOUT_S = 60

# The tables of the file, and the types of the numbers in them.
FLOAT32_TABLE = "features"
FLOAT16_TABLE = "features_float16"
DTYPES: dict[str, np.dtype[Any]] = {FLOAT32_TABLE: np.dtype("<f4"), FLOAT16_TABLE: np.dtype("<f2")}

# Bytes at the beginning of a value, before the numbers.
CHECKSUM_SIZE = 16

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


def list_files(path: Path) -> list[Path]:
    """Return the paths of the file of a cache, its log, and the index of the log.

    The log is in the folder of the file itself, also if the path is a symbolic link.
    """
    path = Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for a loop of links
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def is_read_only(path: Path) -> bool:
    """Return whether a file of a cache, or its folder, exists and is not writable."""
    file, *logs = list_files(path)
    files = (file.parent, file, *logs)
    # Another process may remove its log between the first two checks.
    return any(f.exists() and not os.access(f, os.W_OK) and f.exists() for f in files)


def connect(path: Path, tables: list[str]) -> sqlite3.Connection:
    """Open a file for reading and writing; the file and its tables are created if necessary."""
    statements = [
        f"PRAGMA page_size = {_PAGE_BYTES}",
        "PRAGMA journal_mode = WAL",  # concurrent readers and a writer
        "PRAGMA synchronous = NORMAL",
        f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}",
    ]
    statements += [
        f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
        for table in tables
    ]
    return _open(path, "", statements)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a file for reading, or an empty database if the file does not exist."""
    if not path.exists():
        return connect_to_nothing()
    # The mode "ro" can share the file with writers, but needs the index of their log. Without it,
    # a file in a read-only folder can be read only as an immutable one. Without a log, nobody
    # writes, and the mode "ro" would leave a log to which the owner of the file cannot write.
    _, log, _ = list_files(path)
    if log.exists():
        with suppress(sqlite3.Error):
            return _open(path, "?mode=ro")
    return _open(path, "?immutable=1")


def connect_to_existing(path: Path) -> sqlite3.Connection:
    """Open an existing file, for writing if it is writable. No file and no table is created."""
    if is_read_only(path):
        return connect_to_read(path)
    # The last connection to a file removes its log, which a read-only connection leaves behind.
    return _open(path, "?mode=rw")


def connect_to_inspect(path: Path) -> sqlite3.Connection:
    """Open an existing file for reading, also on a full disk, where a log cannot be created."""
    try:
        return connect_to_existing(path)
    except sqlite3.OperationalError as error:
        _, log, _ = list_files(path)
        # Features in the log would be missing, and a file may be damaged while it is written.
        if _is_busy(error) or (log.exists() and log.stat().st_size):
            raise
        return connect_to_read(path)


def list_tables(connection: sqlite3.Connection) -> set[str]:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    return {name.decode(errors="replace") for (name,) in names if isinstance(name, bytes)}


def connect_to_nothing() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)


def retry_while_busy(open_file: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
    """Open a file, and retry while another process locks it."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            return open_file()
        except sqlite3.DatabaseError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            # SQLite itself does not wait while several processes create the same file.
            time.sleep(0.01)


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    """Return whether an error means that another process locks the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_damage(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Return whether an error means that the file is damaged; a full disk or a lock does not."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return not isinstance(error, sqlite3.OperationalError)
    if code & 0xFF == sqlite3.SQLITE_READONLY:  # SQLite reports it for a damaged header as well
        return path.exists() and not is_read_only(path)
    return code & 0xFF not in _TRANSIENT_ERRORS


def _open(path: Path, option: str, statements: Iterable[str] = ()) -> sqlite3.Connection:
    """Open a file, check its format and execute statements."""
    connection = sqlite3.connect(
        path.absolute().as_uri() + option if option else path,
        timeout=_BUSY_TIMEOUT_S,
        check_same_thread=False,
        uri=bool(option),
    )
    connection.text_factory = bytes  # so that a damaged entry of type text can be read
    try:
        _check_format(connection)
        for statement in statements:
            connection.execute(statement)
    except UnicodeDecodeError as error:
        connection.close()
        raise sqlite3.DatabaseError("malformed database schema") from error
    except (sqlite3.Error, NewerFormatError):
        connection.close()
        raise
    return connection


def _check_format(connection: sqlite3.Connection) -> None:
    ((file_format,),) = connection.execute("PRAGMA user_version")
    if _FORMAT < file_format <= _MAX_FORMAT:
        raise NewerFormatError(
            f"was written by a newer version of sklearn-ape (format {file_format}; this version "
            f"supports {_FORMAT}) and is not used. Upgrade sklearn-ape, or pass another folder"
        )
    # Read the schema. Python cannot decode SQLite's message about a damaged name in it.
    list_tables(connection)


def to_float16(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float16, and a mask of the rows within its range.

    >>> to_float16(np.array([[0.1], [1e6]]))[1]
    array([ True, False])
    """
    with np.errstate(over="ignore", under="ignore"):
        half = np.asarray(features).astype(DTYPES[FLOAT16_TABLE])
    return half, np.isfinite(half).all(axis=-1)


def pack(table: str, numbers: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return values by key: a checksum of the key and the numbers, then the numbers."""
    values: dict[bytes, bytes] = {}
    for keys, rows in _group_by_length(numbers.items()).values():
        checksums = _compute_checksums(table, keys, _to_matrix(rows))
        for key, row, checksum in zip(keys, rows, checksums, strict=True):
            values[key] = checksum.tobytes() + row
    return values


def unpack(
    table: str, entries: Iterable[tuple[bytes, bytes]]
) -> list[tuple[list[bytes], np.ndarray]]:
    """Return keys and a float32 matrix of their features, for each dimension.

    Damaged entries are left out.
    """
    dtype = DTYPES[table]
    blocks = []
    for n_bytes, (keys, values) in _group_by_length(entries).items():
        # A damaged entry may have any length.
        if n_bytes < CHECKSUM_SIZE or (n_bytes - CHECKSUM_SIZE) % dtype.itemsize:
            continue
        matrix = _to_matrix(values)
        stored, numbers = matrix[:, :CHECKSUM_SIZE], matrix[:, CHECKSUM_SIZE:]
        is_valid = (stored == _compute_checksums(table, keys, numbers)).all(axis=1)
        for row in np.flatnonzero(~is_valid):
            is_valid[row] = values[row].startswith(
                _compute_old_checksum(table, keys[row], values[row][CHECKSUM_SIZE:])
            )
        features = np.asarray(numbers.view(dtype), np.float32)
        if not is_valid.all():
            keys = [keys[row] for row in np.flatnonzero(is_valid)]
            features = features[is_valid]
        blocks.append((keys, features))
    return blocks


def _group_by_length(
    entries: Iterable[tuple[bytes, bytes]],
) -> dict[int, tuple[list[bytes], list[bytes]]]:
    """Return keys and values by the length of the values."""
    # Damaged keys and values have any type.
    pairs = [(k, v) for k, v in entries if isinstance(k, bytes) and isinstance(v, bytes)]
    return {
        n: ([k for k, v in pairs if len(v) == n], [v for _, v in pairs if len(v) == n])
        for n in sorted({len(value) for _, value in pairs})
    }


def _to_matrix(rows: list[bytes]) -> np.ndarray:
    """Return rows of the same length as a matrix of bytes."""
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), len(rows[0]))


def _compute_checksums(table: str, keys: list[bytes], numbers: np.ndarray) -> np.ndarray:
    """Return a checksum of 16 bytes for each row of a matrix of bytes.

    The first half is a sum of the 32-bit words of the row, multiplied by odd weights of 64 bits,
    modulo 2**64. A changed word always changes the sum, because its difference is less than 2**32
    and the weight is odd. If several words change, the sum stays equal with a probability of at
    most 2**-32, and usually about 2**-64. The second half is the CRC-32 of the table and the key,
    and the length of the row, because zeros at its end do not change the sum.
    """
    n_bytes = numbers.shape[1]
    if n_bytes % 4:
        numbers = np.pad(numbers, ((0, 0), (0, -n_bytes % 4)))
    words = numbers.view("<u4")
    crc_of_table = zlib.crc32(table.encode())
    tags = np.array([zlib.crc32(key, crc_of_table) for key in keys], dtype=np.uint64)
    tags |= np.uint64(n_bytes << 32)
    # NumPy converts the words to 64 bits in small buffers, which is faster than converting them
    # all at once. Integers overflow without a warning.
    sums = np.einsum("ij,j->i", words, _make_weights(words.shape[1])) + tags
    return np.stack([sums, tags], axis=1).astype("<u8").view(np.uint8)


@lru_cache(maxsize=16)
def _make_weights(n: int) -> np.ndarray:
    """Return odd weights. They are part of the format of the file, so they never change."""
    weights = np.frombuffer(hashlib.shake_128(b"sklearn_ape").digest(8 * n), "<u8")
    return weights.astype(np.uint64) | np.uint64(1)


def _compute_old_checksum(table: str, key: bytes, numbers: bytes) -> bytes:
    """Return the checksum of entries that were written before `_compute_checksums` existed.

    It takes several times as long. Both have the same length, so the format of the file did not
    change. Previous versions of the package treat new entries as damaged, and compute them again.
    """
    person = b"" if table == FLOAT32_TABLE else table.encode()
    return hashlib.blake2b(key + numbers, digest_size=CHECKSUM_SIZE, person=person).digest()
