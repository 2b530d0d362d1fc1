"""From an encoder's parameter to a cache."""

from __future__ import annotations

import copy
from os import PathLike, fspath

from ._disk import DiskFeatureCache
from ._memory import FeatureCache, MemoryFeatureCache, NoCache

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
