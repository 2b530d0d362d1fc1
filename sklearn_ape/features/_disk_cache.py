"""Feature cache on disk, in a SQLite database."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np

from ..utils.concurrency import ForkSafeLock, at_fork, never_destroy
from ..utils.files import expand_user
from ..utils.messages import warn
from . import _sqlite
from ._sqlite import FLOAT16_TABLE, FLOAT32_TABLE

if TYPE_CHECKING:
    from ._maintenance import DiskCacheInfo, DiskCacheReport

_KEYS_PER_QUERY = 500  # SQLite limits the parameters of a query, in older versions to 999
# Reading a whole table takes about as long as looking up a quarter of its keys. Few keys are
# looked up in any case, because this also finds a damaged index.
_MIN_SHARE_TO_SCAN = 0.25
_MIN_KEYS_TO_SCAN = 10_000
# After a transaction, the next one waits for this multiple of its duration, so that writing takes
# at most a fifth of the time. A killed process loses the features of one pause, whose duration and
# memory are bounded.
_PAUSE_RATIO = 4
_MAX_PAUSE_S = 0.25
_MAX_UNWRITTEN_BYTES = 2**24
_CACHE_KIB = 65_536  # SQLite's page cache: the index of a million keys
_open_caches: WeakSet[DiskFeatureCache] = WeakSet()


class DiskFeatureCache:
    """Feature cache in a SQLite file in a folder, to be used as a context manager.

    Pass it as the ``cache`` of an encoder, instead of the path of the folder, to choose `dtype`.

    Parameters
    ----------
    folder : str or path-like
        Folder of the file ``features.sqlite``, which is created if it does not exist.
    dtype : {"float32", "float16"}, default="float32"
        Type of the stored numbers. ``"float16"`` takes half the space and has three digits.
        Features beyond its range (65504) are stored as float32. Features that are read are always
        float32.

    Raises
    ------
    ValueError
        If ``dtype`` is invalid.
    OSError
        If the folder cannot be created or the file cannot be opened. Entering the context
        raises it.

    See Also
    --------
    MemoryFeatureCache : Feature cache in memory, which ends with the process.

    Notes
    -----
    Several processes may read and write at the same time. A run that is killed loses at most the
    work of the last quarter of a second.

    Damaged features are computed again. An unreadable file is renamed, with a warning, and never
    deleted. If the folder is not writable, or the file is in the format of a later version of
    sklearn-ape, a warning says that new features are not stored.

    A file may have features of both types. A float32 cache ignores those of float16, so it never
    returns rounded numbers. A float16 cache reads both types and rounds.

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
    ...     cache.info().counts
    ...     cache.verify()
    ...     cache.prune(dimension=3)
    array([1., 1., 1.], dtype=float32)
    {('float32', 3): 1}
    DiskCacheReport(n_features=1, n_damaged=0, problems=[])
    1
    """

    def __init__(self, folder: str | PathLike[str], dtype: str = "float32") -> None:
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be float32 or float16, not {dtype!r}.")
        self.folder = expand_user(folder)
        self.dtype = dtype
        self._tables = [FLOAT32_TABLE] if dtype == "float32" else [FLOAT16_TABLE, FLOAT32_TABLE]
        # Of the open file. If the file at the path has another one, another process has replaced
        # the damaged file.
        self._inode: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._readable: set[str] = set()
        self._writable = True
        self._has_warned = False
        self._is_inherited = False
        self._lock = ForkSafeLock()
        self._unwritten: dict[str, dict[bytes, bytes]] = {t: {} for t in self._tables}
        self._n_unwritten_bytes = 0
        self._next_write = 0.0

    def __repr__(self) -> str:
        option = "" if self.dtype == "float32" else f", dtype={self.dtype!r}"
        return f"DiskFeatureCache({str(self.folder)!r}{option})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.dtype)  # connections cannot be pickled

    @property
    def path(self) -> Path:
        """Path of the SQLite file."""
        return self.folder / "features.sqlite"

    def __enter__(self) -> Self:
        with self._lock:
            if self._connection is not None:
                raise RuntimeError(
                    "This DiskFeatureCache is open already. Open a copy (copy.copy) of it."
                )
            try:
                self._open()
            except (OSError, sqlite3.Error) as error:
                raise OSError(
                    f"The feature cache {str(self.path)!r} cannot be opened: {error}. "
                    "Pass a writable folder, or cache=None."
                ) from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._write()
            self._close()

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the stored features by key. Missing and damaged entries are left out."""
        features: dict[bytes, np.ndarray] = {}
        for block_keys, block in self.iter_blocks(keys):
            features.update(zip(block_keys, block, strict=True))
        return features

    def iter_blocks(self, keys: Iterable[bytes]) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Yield lists of keys and float32 matrices of their features, in any order.

        Unlike the result of `get_many`, the blocks need not be in memory together. The cache is
        locked during the iteration.
        """
        missing = list(keys)
        with self._lock:
            for table in self._tables:
                cached: set[bytes] = set()
                for entries in self._read(table, missing):
                    for block_keys, block in _sqlite.unpack(table, entries):
                        if table == FLOAT32_TABLE:
                            block = self.round(block)
                        cached.update(block_keys)
                        yield block_keys, block
                if len(cached) == len(missing):
                    return
                missing = [key for key in missing if key not in cached]

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Store features by key: all of them, or none if the process is killed."""
        with self._lock:
            self._get_connection()  # raises an error outside a `with` block
            if not self._writable:
                self._warn_once("cannot be written to")
                return
            numbers_by_table: dict[str, dict[bytes, bytes]] = {table: {} for table in self._tables}
            for key, feature in features.items():
                table, numbers = self._choose_table(feature)
                numbers_by_table[table][key] = numbers.tobytes()
            for table, numbers_by_key in numbers_by_table.items():
                values = _sqlite.pack(table, numbers_by_key)
                self._unwritten[table] |= values
                self._n_unwritten_bytes += sum(map(len, values.values()))
            is_due = time.monotonic() >= self._next_write
            if is_due or self._n_unwritten_bytes > _MAX_UNWRITTEN_BYTES:
                self._write()

    def _choose_table(self, feature: np.ndarray) -> tuple[str, np.ndarray]:
        """Return the table for a feature, and the feature in the type of the table."""
        if self.dtype == "float16":
            half, fits = _sqlite.to_float16(feature)
            if fits:
                return FLOAT16_TABLE, half
        return FLOAT32_TABLE, np.asarray(feature, _sqlite.DTYPES[FLOAT32_TABLE])

    def round(self, features: np.ndarray) -> np.ndarray:
        """Return features as they are read after they were stored, whatever their table."""
        if self.dtype == "float32":
            return features
        half, fits = _sqlite.to_float16(features)
        return np.where(fits[..., np.newaxis], half.astype(np.float32), features)

    def info(self) -> DiskCacheInfo:
        """Return the size of the cache and the number of features by type and dimension.

        The file has a digest of content and encoder for each feature. It stores neither the names
        of encoders nor the times when features were stored or used.

        Returns
        -------
        info : DiskCacheInfo
            Size and contents of the file.

        Raises
        ------
        FileNotFoundError
            If the folder does not contain a cache.
        OSError
            If the file cannot be read.
        """
        from ._maintenance import inspect_file

        return inspect_file(self.path)

    def verify(self) -> DiskCacheReport:
        """Check the checksum of every feature and the structure of the file.

        The file is not changed.

        Returns
        -------
        report : DiskCacheReport
            Number of features, number of damaged features, and problems of the file.

        Raises
        ------
        FileNotFoundError
            If the folder does not contain a cache.
        OSError
            If the file cannot be read, for a reason other than damage.
        """
        from ._maintenance import verify_file

        return verify_file(self.path)

    def prune(self, max_bytes: int | None = None, dimension: int | None = None) -> int:
        """Remove features and give their space back to the disk.

        Other processes may use the cache at the same time. They wait while the file is rewritten,
        for at most a minute, after which they continue without storing features.

        Parameters
        ----------
        max_bytes : int or None, default=None
            Maximum size of the file. The features that were stored first are removed until the
            file is not larger. A file without features has about 80 kB.
        dimension : int or None, default=None
            Remove all features of this dimension, for instance 1280 to remove the features of an
            encoder that has 1280 features. This is done before `max_bytes` is applied.

        Returns
        -------
        n_removed : int
            Number of removed features.

        Raises
        ------
        ValueError
            If both parameters are None, or one of them is invalid.
        FileNotFoundError
            If the folder does not contain a cache.
        OSError
            If the file cannot be changed. No feature is damaged then.
        """
        if max_bytes is None and dimension is None:
            raise ValueError("max_bytes and dimension are both None. Pass one of them.")
        # Not above: it imports scikit-learn, for which `sklearn-ape cache info` need not wait.
        from ..utils.validation import check_integer, check_number

        check_number(max_bytes, "max_bytes", 0, optional=True)
        check_integer(dimension, "dimension", 1, optional=True)
        from ._maintenance import prune_file

        return prune_file(self.path, max_bytes, dimension)

    def _get_connection(self) -> sqlite3.Connection:
        """Return the connection, which is opened again in a child process after a fork."""
        if self._is_inherited:
            self._open()
        if self._connection is None:
            raise RuntimeError("DiskFeatureCache is used outside its `with` block.")
        return self._connection

    def _read(self, table: str, keys: list[bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield lists of entries."""
        connection = self._get_connection()
        unwritten = self._unwritten[table]
        if unwritten and (entries := [(k, unwritten[k]) for k in keys if k in unwritten]):
            yield entries
        if table not in self._readable:
            return
        try:
            yield from _read_stored(connection, table, set(keys).difference(unwritten))
        except sqlite3.DatabaseError as error:
            if _sqlite.is_damage(error, self.path):
                self._replace_damaged_file(error)
            else:  # the encoder computes the features again
                self._warn(f"cannot be read: {error}")

    def _write(self) -> None:
        """Write new entries in one transaction."""
        start = time.monotonic()
        if self._writable and self._n_unwritten_bytes:
            try:
                self._commit()
            except sqlite3.DatabaseError as error:
                if _sqlite.is_damage(error, self.path):
                    self._replace_damaged_file(error)
                    self._commit()
                else:
                    # A full disk, or a lock held for a minute, must not end the run.
                    self._writable = False
                    self._warn_once(f"is no longer written to: {error}")
        for entries in self._unwritten.values():
            entries.clear()
        self._n_unwritten_bytes = 0
        end = time.monotonic()
        self._next_write = end + min(_PAUSE_RATIO * (end - start), _MAX_PAUSE_S)

    def _commit(self) -> None:
        with self._get_connection() as transaction:
            for table, entries in self._unwritten.items():
                # In the order of the index, so that each of its pages is changed once.
                rows = sorted(entries.items())
                transaction.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", rows)

    def _open(self) -> None:
        """Open the file for reading and writing, or else for reading only.

        An empty database replaces a file that a later version of the package wrote.
        """
        self._has_warned = False
        self._writable = not _sqlite.is_read_only(self.path)
        try:
            if self._writable:
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    self._connect()
                    return
                except sqlite3.Error as error:
                    self._writable = False
                    self._warn_once(f"cannot be written to: {error}")
            self._use(_sqlite.connect_to_read(self.path))
        except _sqlite.NewerFormatError as error:
            self._writable = False
            self._warn_once(str(error))
            self._use(_sqlite.connect_to_nothing())
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._replace_damaged_file(error)

    def _connect(self) -> None:
        """Open the file for reading and writing, and replace it if it is damaged."""
        try:
            self._use(_sqlite.retry_while_busy(self._create))
        except sqlite3.DatabaseError as error:
            if not _sqlite.is_damage(error, self.path):
                raise
            self._replace_damaged_file(error)

    def _create(self) -> sqlite3.Connection:
        self._inode = os.stat(self.path).st_ino if self.path.exists() else None
        connection = _sqlite.connect(self.path, self._tables)
        self._inode = os.stat(self.path).st_ino
        return connection

    def _use(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._is_inherited = False
        _open_caches.add(self)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._readable = _sqlite.list_tables(connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._is_inherited = False

    def _replace_damaged_file(self, error: sqlite3.DatabaseError) -> None:
        """Rename an unreadable file and open an empty one."""
        self._close()
        if not self._writable:
            self._warn(f"is damaged ({error})")
            self._use(_sqlite.connect_to_nothing())
            return
        if self.path.exists() and os.stat(self.path).st_ino != self._inode:
            self._use(self._create())  # another process has renamed it already
            return
        new_path = self.path.with_name(f"{self.path.name}.damaged")
        number = 1
        while new_path.exists():
            number += 1
            new_path = self.path.with_name(f"{self.path.name}.damaged-{number}")
        if self.path.exists():
            self.path.replace(new_path)
        for file in _sqlite.list_files(self.path)[1:]:
            file.unlink(missing_ok=True)
        self._warn(f"is damaged ({error}); it was moved to {str(new_path)!r}")
        self._use(self._create())

    def _warn_once(self, problem: str) -> None:
        """Warn about a problem that affects all features, unless a warning was given before."""
        if not self._has_warned:
            self._has_warned = True
            self._warn(problem)

    def _warn(self, problem: str) -> None:
        warn(
            f"The feature cache {str(self.path)!r} {problem}. The features are computed again.",
            RuntimeWarning,
        )


def _leave_connections() -> None:
    # SQLite connections must not be used or closed in a child process after a fork.
    for cache in list(_open_caches):
        if cache._connection is not None:
            never_destroy(cache._connection)
            cache._connection = None
            cache._is_inherited = True


at_fork(after_in_child=_leave_connections)


def _read_stored(
    connection: sqlite3.Connection, table: str, keys: set[bytes]
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield lists of the entries of a table with some keys."""
    # In a transaction, so that no other process changes rowids between the queries.
    connection.execute("BEGIN")
    try:
        ((max_rowid,),) = connection.execute(f"SELECT max(rowid) FROM {table}")
        if len(keys) > max(_MIN_KEYS_TO_SCAN, _MIN_SHARE_TO_SCAN * (max_rowid or 0)):
            cursor = connection.execute(f"SELECT key, value FROM {table}")
            while entries := cursor.fetchmany(_KEYS_PER_QUERY):
                yield [entry for entry in entries if entry[0] in keys]
            return
        rows = _select(connection, f"SELECT rowid FROM {table} WHERE key", sorted(keys))
        # In the order of the file, so that each page with several entries is read once.
        rowids = sorted({rowid for batch in rows for (rowid,) in batch})
        n_entries = 0
        for entries in _select(connection, f"SELECT key, value FROM {table} WHERE rowid", rowids):
            n_entries += len(entries)
            # A damaged index may return entries of different keys.
            yield [entry for entry in entries if entry[0] in keys]
        if n_entries < len(rowids):
            raise sqlite3.DatabaseError("the index contains rows that do not exist")
    finally:
        connection.rollback()


def _select(
    connection: sqlite3.Connection, query: str, values: list[Any]
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a query that ends with the name of a column, for batches of its values."""
    for start in range(0, len(values), _KEYS_PER_QUERY):
        batch = values[start : start + _KEYS_PER_QUERY]
        placeholders = ",".join("?" * len(batch))
        yield connection.execute(f"{query} IN ({placeholders})", batch).fetchall()
