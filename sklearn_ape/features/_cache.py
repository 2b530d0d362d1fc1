"""Feature caches: the protocol, the cache in memory, and `open_cache`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from ..utils.concurrency import LRUCache
from ._disk_cache import DiskFeatureCache


@runtime_checkable
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

    Clones of an encoder share it; another process that it is sent to gets an empty one.

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
        self._features: LRUCache[bytes, np.ndarray] = LRUCache(max_bytes=max_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self._features)

    def __repr__(self) -> str:
        return f"MemoryFeatureCache(max_bytes={self.max_bytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_bytes,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # scikit-learn's clone copies parameters so

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the features known, by key; unknown keys are left out."""
        entries = ((key, self._features.get(key)) for key in keys)
        return {key: feature for key, feature in entries if feature is not None}

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Keep features by key."""
        for key, feature in features.items():
            copied = np.array(feature, dtype=np.float32)
            copied.flags.writeable = False  # `get_many` returns the stored array, not a copy
            self._features.put(key, copied)

    def clear(self) -> None:
        """Forget every feature."""
        self._features.clear()


class NoCache:
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


def open_cache(cache: str | PathLike[str] | FeatureCache | None) -> FeatureCache:
    """Return the cache that an encoder's ``cache`` parameter names.

    Parameters
    ----------
    cache : {"memory"}, str, path-like, FeatureCache or None
        ``"memory"`` is one store for the whole process, ``None`` keeps nothing, any other str is
        a folder on disk. A `DiskFeatureCache` gives a folder with options; a
        `MemoryFeatureCache` is a store of one's own.

    Returns
    -------
    cache : FeatureCache
        To be used in a ``with`` block. Of a `DiskFeatureCache`, a copy with a connection of its
        own, so that threads and nested blocks do not share one.

    Raises
    ------
    TypeError
        When ``cache`` is none of these.

    Examples
    --------
    >>> from sklearn_ape.features import DiskFeatureCache, open_cache
    >>> with open_cache(None) as cache:
    ...     cache.get_many([b"a"])
    {}
    >>> open_cache(DiskFeatureCache("features", dtype="float16"))
    DiskFeatureCache('features', dtype='float16')
    """
    if cache is None:
        return NoCache()
    if isinstance(cache, str | PathLike):
        return _IN_THIS_PROCESS if fspath(cache) == "memory" else DiskFeatureCache(cache)
    if isinstance(cache, DiskFeatureCache):
        return copy.copy(cache)
    if isinstance(cache, FeatureCache) and not isinstance(cache, type):
        return cache
    raise TypeError(f"cache must be 'memory', a folder, a feature cache or None, not {cache!r}.")
