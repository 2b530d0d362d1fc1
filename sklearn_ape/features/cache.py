"""Feature caches: the protocol, the cache in memory, and `open_cache`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from ..utils.concurrency import LRUCache
from ._disk_cache import DiskFeatureCache

_ROWS_PER_BLOCK = 500  # of caches in memory


@runtime_checkable
class FeatureCache(Protocol):
    """Protocol of feature caches, which store features by key."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None: ...

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the stored features by key. Keys that are not stored are left out."""

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Store features by key."""


class MemoryFeatureCache:
    """Feature cache in memory that drops the least recently used features.

    Clones of an encoder share the cache. A copy that is pickled to another process is empty.

    Parameters
    ----------
    max_bytes : int, default=2**30
        Maximum size of the features. 1 GiB is about 200,000 features of 1280 dimensions.

    See Also
    --------
    DiskFeatureCache : Feature cache that persists across processes and sessions.

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
        return self  # scikit-learn's clone makes deep copies of parameters

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the stored features by key. Keys that are not stored are left out."""
        entries = ((key, self._features.get(key)) for key in keys)
        return {key: feature for key, feature in entries if feature is not None}

    def put_many(self, features: Mapping[bytes, np.ndarray]) -> None:
        """Store features by key."""
        for key, feature in features.items():
            array = np.array(feature, dtype=np.float32)
            array.flags.writeable = False  # `get_many` returns the stored array, not a copy
            self._features.put(key, array)

    def clear(self) -> None:
        """Remove all features."""
        self._features.clear()


_PROCESS_CACHE = MemoryFeatureCache()


def open_cache(cache: str | PathLike[str] | FeatureCache | None) -> FeatureCache:
    """Return the feature cache for the ``cache`` parameter of an encoder.

    Parameters
    ----------
    cache : {"memory"}, str, path-like, FeatureCache or None
        ``"memory"`` is a cache that the whole process shares. Any other str or path is a folder
        on disk. ``None`` disables caching.

    Returns
    -------
    cache : FeatureCache
        Feature cache, to be used in a ``with`` block. A `DiskFeatureCache` is copied, so that
        each thread and each nested block has its own connection.

    Raises
    ------
    TypeError
        If ``cache`` is of an unsupported type or an empty text.

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
        return MemoryFeatureCache(max_bytes=0)  # always empty
    if isinstance(cache, str | PathLike) and fspath(cache):
        return _PROCESS_CACHE if fspath(cache) == "memory" else DiskFeatureCache(cache)
    if isinstance(cache, DiskFeatureCache):
        return copy.copy(cache)
    if isinstance(cache, FeatureCache) and not isinstance(cache, type):
        return cache
    raise TypeError(f"cache must be 'memory', a folder, a feature cache or None, not {cache!r}.")


def iter_blocks(
    cache: FeatureCache, keys: Iterable[bytes]
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Yield lists of keys that are stored in a cache and matrices of their features."""
    if isinstance(cache, DiskFeatureCache):
        yield from cache.iter_blocks(keys)
        return
    features = cache.get_many(keys)
    stored = list(features)
    for start in range(0, len(stored), _ROWS_PER_BLOCK):
        block_keys = stored[start : start + _ROWS_PER_BLOCK]
        yield block_keys, np.stack([features[key] for key in block_keys])
