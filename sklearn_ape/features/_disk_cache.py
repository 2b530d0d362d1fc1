"""Feature cache on disk, in a SQLite database."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import numpy as np

from ..utils.concurrency import ForkSafeLock, at_fork, never_destroy
from ..utils.warnings import warn
from ._sqlite import (
    NewerFormatError,
    connect,
    connect_to_read,
    is_damage,
    is_read_only,
    nowhere,
    retried,
    tables_of,
)

_DIGEST_SIZE = 16


# The tables of the file, and what the numbers in them are.
EXACT = "features"


ROUNDED = "features_float16"


NUMBERS: dict[str, np.dtype[Any]] = {EXACT: np.dtype("<f4"), ROUNDED: np.dtype("<f2")}


def rounded(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float16, and which rows float16 can hold.

    >>> rounded(np.array([[0.1], [1e6]]))[1]
    array([ True, False])
    """
    with np.errstate(over="ignore", under="ignore"):
        half = np.asarray(features).astype(NUMBERS[ROUNDED])
    return half, np.isfinite(half).all(axis=-1)


def pack(table: str, key: bytes, numbers: bytes) -> bytes:
    """Return the entry of a table: a digest of key and numbers, then the numbers."""
    return _digest(table, key, numbers) + numbers


def unpack(table: str, entries: Iterable[tuple[bytes, bytes]]) -> dict[bytes, np.ndarray]:
    """Return entries as float32, without the damaged ones."""
    dtype = NUMBERS[table]
    good: dict[bytes, np.ndarray] = {}
    for key, value in entries:
        # What is damaged may be of any type and any length.
        if not isinstance(value, bytes) or len(value) < _DIGEST_SIZE:
            continue
        numbers = value[_DIGEST_SIZE:]
        if value.startswith(_digest(table, key, numbers)):
            good[key] = np.frombuffer(numbers, dtype).astype(np.float32, copy=False)
    return good


def _digest(table: str, key: bytes, numbers: bytes) -> bytes:
    # Named apart, so that a damaged file cannot pass one table's entry for another's.
    person = b"" if table == EXACT else table.encode()
    return hashlib.blake2b(key + numbers, digest_size=_DIGEST_SIZE, person=person).digest()


_KEYS_A_QUERY = 500


_BUSY_TIMEOUT_S = 60


# Writing may take a fifth of the time; whoever has other work to do writes every batch at once.
_PAUSE_OF_WRITING = 4


_LONGEST_PAUSE_S = 0.25


_MOST_UNWRITTEN_BYTES = 2**24


_CACHE_KIB = 65_536  # the index of a million keys


_opened: WeakSet[DiskFeatureCache] = WeakSet()


class DiskFeatureCache:
    """Features kept in one SQLite file in a folder; use it as a context manager.

    An encoder's ``cache`` may be one of these instead of the folder's name, to choose `dtype`.

    Parameters
    ----------
    folder : str or path-like
        Made when it does not exist. The file in it is ``features.sqlite``.
    dtype : {"float32", "float16"}, default="float32"
        How numbers are stored. ``"float16"`` takes half the space and keeps three digits; a
        feature with a number beyond its range (65504) is stored as float32. What is read is
        float32 in any case.

    Raises
    ------
    ValueError
        When ``dtype`` is neither of the two.
    OSError
        On entering, when the folder cannot be made, or its file cannot be opened.

    See Also
    --------
    MemoryFeatureCache : Forgets with the process.

    Notes
    -----
    Several processes may read and write at once. Every call to ``put_many`` is written at once,
    but for calls in such quick succession that writing would take more than a fifth of the time:
    these share a transaction, at most a quarter of a second. So a killed run keeps its finished
    batches, and never loses more than the work of its last quarter second.

    Every entry carries a digest of its key and its numbers: a damaged one is not returned, so it
    is computed anew. A file damaged beyond reading is moved aside with a warning, never deleted.
    From a folder that cannot be written to, features are read; new ones are not kept, and a
    warning says so. A file that a later version of sklearn-ape wrote in another form is neither
    read nor changed, which a warning says, too.

    One file may hold entries of both types. A float32 cache does not see those stored as
    float16, so it never gives rounded numbers; a float16 cache reads both and rounds. (The call
    of an encoder that computes a feature returns it as it is, before rounding.)

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn_ape.features import DiskFeatureCache
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with DiskFeatureCache(folder) as cache:
    ...         cache.put_many({b"a": np.ones(3, dtype=np.float32)})
    ...     with DiskFeatureCache(folder) as cache:
    ...         cache.get_many([b"a"])[b"a"]
    array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, folder: str | PathLike[str], dtype: str = "float32") -> None:
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be float32 or float16, not {dtype!r}.")
        self.folder = Path(folder).expanduser()
        self.dtype = dtype
        self._tables = [EXACT] if dtype == "float32" else [ROUNDED, EXACT]
        self._inode: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._readable: set[str] = set()
        self._writable = True
        self._told = False
        self._is_inherited = False
        self._lock = ForkSafeLock()
        self._unwritten: dict[str, dict[bytes, bytes]] = {t: {} for t in self._tables}
        self._n_unwritten_bytes = 0
        self._next_write = 0.0

    def __repr__(self) -> str:
        option = "" if self.dtype == "float32" else f", dtype={self.dtype!r}"
        return f"DiskFeatureCache({str(self.folder)!r}{option})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.dtype)  # never with the connection

    @property
    def path(self) -> Path:
        """The file that holds the features."""
        return self.folder / "features.sqlite"

    def __enter__(self) -> Self:
        with self._lock:
            if self._connection is not None:
                raise RuntimeError(
                    "This DiskFeatureCache is open already: open a copy (copy.copy) of it."
                )
            try:
                self._open_or_read()
            except (OSError, sqlite3.Error) as error:
                raise OSError(
                    f"The feature cache {str(self.path)!r} cannot be opened: {error}. "
                    "Give a folder that can be written to, or cache=None."
                ) from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._write()
            self._close()

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the features known, by key; unknown and damaged ones are left out."""
        wanted = list(keys)
        found: dict[bytes, np.ndarray] = {}
        with self._lock:
            for table in self._tables:
                new = self._unwritten[table]
                entries = [(key, new[key]) for key in wanted if key in new]
                entries += self._read(table, [key for key in wanted if key not in new])
                some = unpack(table, entries)
                if table == EXACT and self.dtype == "float16":
                    some = {key: _as_if_rounded(feature) for key, feature in some.items()}
                found |= some
                wanted = [key for key in wanted if key not in found]
        return found

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep features by key, all of them or (when the process dies) none."""
        with self._lock:
            _ = self._open
            if not self._writable:
                self._tell("cannot be written to")
                return
            for key, feature in features.items():
                table, numbers = EXACT, np.asarray(feature)
                if self.dtype == "float16":
                    half, fits = rounded(numbers)
                    table, numbers = (ROUNDED, half) if fits else (EXACT, numbers)
                value = pack(table, key, numbers.astype(NUMBERS[table], copy=False).tobytes())
                self._unwritten[table][key] = value
                self._n_unwritten_bytes += len(value)
            is_due = time.monotonic() >= self._next_write
            if is_due or self._n_unwritten_bytes > _MOST_UNWRITTEN_BYTES:
                self._write()

    @property
    def _open(self) -> sqlite3.Connection:
        if self._is_inherited:
            self._open_or_read()
        if self._connection is None:
            raise RuntimeError("DiskFeatureCache is used outside its `with` block.")
        return self._connection

    def _read(self, table: str, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        connection = self._open
        entries: list[tuple[bytes, bytes]] = []
        if table not in self._readable:
            return entries
        try:
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                places = ",".join("?" * len(some))
                entries += connection.execute(
                    f"SELECT key, value FROM {table} WHERE key IN ({places})", some
                )
        except sqlite3.DatabaseError as error:
            if is_damage(error, self.path):
                self._start_anew(error)
            else:  # what cannot be read now is computed anew
                self._warn(f"cannot be read: {error}")
        asked = set(keys)  # a damaged index may lead to another entry
        return [entry for entry in entries if entry[0] in asked]

    def _write(self) -> None:
        """Write what is not yet written, in one transaction."""
        start = time.monotonic()
        if self._writable and self._n_unwritten_bytes:
            try:
                self._commit()
            except sqlite3.DatabaseError as error:
                if is_damage(error, self.path):
                    self._start_anew(error)
                    self._commit()
                else:
                    # A full disk or a lock held for a minute must not lose the work of this run.
                    self._writable = False
                    self._tell(f"is no longer written to: {error}")
        for entries in self._unwritten.values():
            entries.clear()
        self._n_unwritten_bytes = 0
        end = time.monotonic()
        self._next_write = end + min(_PAUSE_OF_WRITING * (end - start), _LONGEST_PAUSE_S)

    def _commit(self) -> None:
        with self._open as transaction:
            for table, entries in self._unwritten.items():
                # In order of the index: its pages are visited once each.
                rows = sorted(entries.items())
                transaction.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", rows)

    def _open_or_read(self) -> None:
        """Connect; only to read, where nothing can be written."""
        self._told = False
        try:
            self._open_as_allowed()
        except NewerFormatError as error:
            self._writable = False
            self._tell(str(error))
            self._keep(nowhere())

    def _open_as_allowed(self) -> None:
        self._writable = not is_read_only(self.path)
        if self._writable:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._connect()
                return
            except sqlite3.Error as error:
                self._writable = False
                self._tell(f"cannot be written to: {error}")
        try:
            self._keep(connect_to_read(self.path, _BUSY_TIMEOUT_S))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._start_anew(error)

    def _connect(self) -> None:
        try:
            self._keep(retried(self._create, _BUSY_TIMEOUT_S))
        except sqlite3.DatabaseError as error:
            if not is_damage(error, self.path):
                raise
            self._start_anew(error)

    def _create(self) -> sqlite3.Connection:
        self._inode = os.stat(self.path).st_ino if self.path.exists() else None
        connection = connect(self.path, self._tables, _BUSY_TIMEOUT_S)
        self._inode = os.stat(self.path).st_ino
        return connection

    def _keep(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._is_inherited = False
        _opened.add(self)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._readable = tables_of(connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._is_inherited = False

    def _start_anew(self, error: sqlite3.DatabaseError) -> None:
        """Move a file that cannot be read aside and open an empty one."""
        self._close()
        if not self._writable:
            self._warn(f"is damaged ({error})")
            self._keep(nowhere())
            return
        if self.path.exists() and os.stat(self.path).st_ino != self._inode:
            self._keep(self._create())  # another process has moved it aside already
            return
        aside = self.path.with_name(f"{self.path.name}.damaged")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.damaged-{number}")
        if self.path.exists():
            self.path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._warn(f"is damaged ({error}); it was moved to {str(aside)!r}")
        self._keep(self._create())

    def _tell(self, what: str) -> None:
        """Warn once of what holds for all features from now on."""
        if not self._told:
            self._told = True
            self._warn(what)

    def _warn(self, what: str) -> None:
        warn(
            f"The feature cache {str(self.path)!r} {what}. The features are computed anew.",
            RuntimeWarning,
        )


def _leave_connections() -> None:
    # SQLite forbids a child process to use, or close, what its parent opened.
    for cache in list(_opened):
        if cache._connection is not None:
            never_destroy(cache._connection)
            cache._connection = None
            cache._is_inherited = True


at_fork(in_child=_leave_connections)


def _as_if_rounded(feature: np.ndarray) -> np.ndarray:
    """Round as float16 does, so that a feature does not depend on who stored it."""
    half, fits = rounded(feature)
    return half.astype(np.float32) if fits else feature
