"""Content-addressed stores for the features of frozen encoders.

A frozen encoder always gives the same feature for the same content, so a feature is worth
computing once. Keys are digests of everything the feature depends on; a renamed picture is
therefore found again and a changed one is not.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

__all__ = ["DiskFeatureCache", "FeatureCache", "MemoryFeatureCache", "open_cache"]

_DIGEST_SIZE = 16
_KEYS_A_QUERY = 500
_BUSY_TIMEOUT_S = 60
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


class FeatureCache(Protocol):
    """What an encoder asks of a cache: features by key, in and out, many at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the features known, by key; unknown keys are left out."""

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep features by key."""


class MemoryFeatureCache:
    """Features kept in this process, the least recently used dropped first.

    Parameters
    ----------
    max_bytes : int, default=2**30
        Bound on the bytes kept: 1 GiB is about 200,000 features of 1280 numbers.

    See Also
    --------
    DiskFeatureCache : Keeps features across processes and sessions.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.features import MemoryFeatureCache
    >>> cache = MemoryFeatureCache()
    >>> cache.put_many({b"a": np.ones(3, dtype=np.float32)})
    >>> sorted(cache.get_many([b"a", b"b"]))
    [b'a']
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes
        self._features: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self._features)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the features known, by key; unknown keys are left out."""
        found = {}
        with self._lock:
            for key in keys:
                if key in self._features:
                    self._features.move_to_end(key)
                    found[key] = self._features[key]
        return found

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep features by key."""
        with self._lock:
            for key, feature in features.items():
                known = self._features.pop(key, None)
                self._n_bytes -= 0 if known is None else known.nbytes
                self._features[key] = np.array(feature, dtype=np.float32)
                self._features[key].flags.writeable = False  # handed out as it is
                self._n_bytes += self._features[key].nbytes
            while self._n_bytes > self.max_bytes and self._features:
                self._n_bytes -= self._features.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget every feature."""
        with self._lock:
            self._features.clear()
            self._n_bytes = 0


class DiskFeatureCache:
    """Features kept in one SQLite file in a folder; use it as a context manager.

    Parameters
    ----------
    folder : str or path-like
        Made when it does not exist. The file in it is ``features.sqlite``.

    Raises
    ------
    OSError
        On entering, when the folder cannot be made or written.

    See Also
    --------
    MemoryFeatureCache : Forgets with the process.

    Notes
    -----
    Several processes may read and write at once. Every call to ``put_many`` is one transaction,
    so a killed run keeps all its finished batches. Every entry carries a digest of its key and
    its numbers: a damaged one is not returned, so it is computed anew. A file damaged beyond
    reading is moved aside with a warning, never deleted.

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

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self._inode: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._writable = True

    @property
    def path(self) -> Path:
        """The file that holds the features."""
        return self.folder / "features.sqlite"

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._connect()
        except (OSError, sqlite3.Error) as error:
            raise OSError(
                f"The feature cache {str(self.path)!r} cannot be opened: {error}. "
                "Give a folder that can be written to, or cache=None."
            ) from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the features known, by key; unknown and damaged ones are left out."""
        wanted = list(keys)
        found: dict[bytes, np.ndarray] = {}
        try:
            for start in range(0, len(wanted), _KEYS_A_QUERY):
                some = wanted[start : start + _KEYS_A_QUERY]
                places = ",".join("?" * len(some))
                rows = self._open.execute(
                    f"SELECT key, value FROM features WHERE key IN ({places})", some
                )
                for key, value in rows:
                    # A damaged index may lead to another entry, a damaged row to another type.
                    feature = _unpack(key, value) if key in some else None
                    if feature is not None:
                        found[key] = feature
        except sqlite3.DatabaseError as error:
            if self._is_damage(error):
                self._start_anew(error)
            else:  # what cannot be read now is computed anew
                self._warn(f"cannot be read: {error}")
        return found

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep features by key, all of them or (when the process dies) none."""
        if not self._writable:
            return
        rows = [(key, _pack(key, feature)) for key, feature in features.items()]
        try:
            self._write(rows)
        except sqlite3.DatabaseError as error:
            if self._is_damage(error):
                self._start_anew(error)
                self._write(rows)
                return
            # A full disk or a lock held for a minute must not lose the work of this run.
            self._writable = False
            self._warn(f"is no longer written to: {error}")

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("DiskFeatureCache is used outside its `with` block.")
        return self._connection

    def _write(self, rows: list[tuple[bytes, bytes]]) -> None:
        with self._open as transaction:
            transaction.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", rows)

    def _connect(self) -> None:
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while self._connection is None:
            try:
                self._connection = self._create()
            except sqlite3.DatabaseError as error:
                if self._is_damage(error):
                    self._start_anew(error)
                elif not _is_busy(error) or time.monotonic() > deadline:
                    raise
                else:  # SQLite does not wait where several processes make one file at once
                    time.sleep(0.01)

    def _create(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
        connection.text_factory = bytes  # only a damaged entry is a text
        self._inode = os.stat(self.path).st_ino
        try:
            connection.execute("PRAGMA page_size = 16384")  # holds three features of 1280 numbers
            connection.execute("PRAGMA journal_mode = WAL")  # readers and a writer side by side
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _start_anew(self, error: sqlite3.DatabaseError) -> None:
        """Move a file that cannot be read aside and open an empty one."""
        self.__exit__()
        if self.path.exists() and os.stat(self.path).st_ino != self._inode:
            self._connection = self._create()  # another process has moved it aside already
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
        self._connection = self._create()

    def _is_damage(self, error: sqlite3.DatabaseError) -> bool:
        """Tell a damaged file from a full disk, a lock and the like."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return not isinstance(error, sqlite3.OperationalError)
        if code & 0xFF == sqlite3.SQLITE_READONLY:  # as a damaged header says, too
            return os.access(self.path, os.W_OK) and os.access(self.folder, os.W_OK)
        return code & 0xFF not in _NO_DAMAGE

    def _warn(self, what: str) -> None:
        warnings.warn(
            f"The feature cache {str(self.path)!r} {what}. The features are computed anew.",
            RuntimeWarning,
            stacklevel=3,
        )


class _NoCache:
    """Keeps nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        return {}

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        pass


_IN_THIS_PROCESS = MemoryFeatureCache()


def open_cache(cache: str | PathLike[str] | None) -> FeatureCache:
    """Return the cache that an encoder's ``cache`` parameter names.

    Parameters
    ----------
    cache : {"memory"}, str, path-like or None
        ``"memory"`` is one store for the whole process, ``None`` keeps nothing, anything else is
        a folder on disk.

    Returns
    -------
    cache : FeatureCache
        To be used in a ``with`` block.

    Raises
    ------
    TypeError
        When ``cache`` is neither None nor a path.

    Examples
    --------
    >>> from sklearn_ape.features import open_cache
    >>> with open_cache(None) as cache:
    ...     cache.get_many([b"a"])
    {}
    """
    if cache is None:
        return _NoCache()
    if not isinstance(cache, str | PathLike):
        raise TypeError(f"cache must be 'memory', a folder or None, not {cache!r}.")
    if fspath(cache) == "memory":
        return _IN_THIS_PROCESS
    return DiskFeatureCache(cache)


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _pack(key: bytes, feature: np.ndarray) -> bytes:
    numbers = np.ascontiguousarray(feature, dtype="<f4").tobytes()
    return hashlib.blake2b(key + numbers, digest_size=_DIGEST_SIZE).digest() + numbers


def _unpack(key: bytes, value: bytes) -> np.ndarray | None:
    if not isinstance(value, bytes):
        return None
    digest, numbers = value[:_DIGEST_SIZE], value[_DIGEST_SIZE:]
    if hashlib.blake2b(key + numbers, digest_size=_DIGEST_SIZE).digest() != digest:
        return None
    return np.frombuffer(numbers, dtype="<f4")
