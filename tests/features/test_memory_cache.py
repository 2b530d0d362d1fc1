"""Memory cache, and caches as parameters of encoders."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.features import DiskFeatureCache, MemoryFeatureCache, open_cache
from sklearn_ape.features.cache import iter_blocks
from tests.features.conftest import ENTRIES, WIDTH, assert_equal_to_entries


def test_memory_cache_drops_least_recently_used():
    """`max_bytes` holds after every call, and reading an entry marks it as used."""
    size = WIDTH * 4
    cache = MemoryFeatureCache(max_bytes=3 * size)
    keys = list(ENTRIES)
    for key in keys[:3]:
        cache.put_many({key: ENTRIES[key]})
    cache.get_many([keys[0]])
    cache.put_many({keys[3]: ENTRIES[keys[3]]})
    assert set(cache.get_many(keys)) == {keys[0], keys[2], keys[3]}
    cache.put_many(ENTRIES)
    assert len(cache) == 3
    cache.put_many({keys[0]: np.zeros(WIDTH * 4, dtype=np.float32)})
    assert len(cache) == 0


def test_replaced_entry_is_counted_once():
    """Replacing one key repeatedly does not evict others."""
    cache = MemoryFeatureCache(max_bytes=2 * WIDTH * 4)
    (first, feature), (second, other), *_ = ENTRIES.items()
    cache.put_many({first: feature})
    for _ in range(5):
        cache.put_many({second: other})
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0
    assert cache.get_many([first]) == {}
    cache.put_many({first: feature, second: other})
    assert len(cache) == 2  # replaced entries do not count


def test_memory_cache_returns_float32():
    """Results do not depend on the kind of cache, so both caches return float32."""
    cache = MemoryFeatureCache()
    cache.put_many({b"a": np.ones(3), b"b": np.ones(3, np.float16), b"c": [1, 2, 3]})
    found = cache.get_many([b"a", b"b", b"c"])
    assert [feature.dtype for feature in found.values()] == [np.float32] * 3


def test_memory_cache_is_read_only():
    """Changing an array that was put in or returned does not change the cache."""
    cache = MemoryFeatureCache()
    mine = np.ones(3, dtype=np.float32)
    cache.put_many({b"a": mine})
    mine[:] = 7
    with pytest.raises(ValueError, match="read-only"):
        cache.get_many([b"a"])[b"a"][:] = 7
    np.testing.assert_array_equal(cache.get_many([b"a"])[b"a"], np.ones(3))


def test_open_cache_accepts_names_paths_and_none(tmp_path):
    """All values "memory" share one cache, None stores nothing, and other types raise."""
    assert open_cache("memory") is open_cache("memory")
    for folder in (tmp_path / "a", str(tmp_path / "b")):
        with open_cache(folder) as cache:
            cache.put_many(ENTRIES)
            assert cache.folder == Path(folder)
        with open_cache(folder) as cache:
            assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()
        assert repr(cache) == f"DiskFeatureCache({str(folder)!r})"
    with open_cache(None) as cache:
        cache.put_many(ENTRIES)
        assert cache.get_many(ENTRIES) == {}
    with pytest.raises(TypeError, match="'memory', a folder, a feature cache or None, not 3"):
        open_cache(3)
    with pytest.raises(TypeError, match="a feature cache or None, not ''"):
        open_cache("")


def test_encoder_with_cache_can_be_cloned_pickled_and_printed(tmp_path):
    """Encoders with a cache object can be cloned, pickled and printed; copies are independent."""
    cache = DiskFeatureCache(tmp_path, dtype="float16")
    encoder = TransformersTextEncoder(cache=cache)
    with cache:
        copies = [clone(encoder), pickle.loads(pickle.dumps(encoder))]
        for copy in copies:
            assert repr(copy.get_params()["cache"]) == repr(cache)
            with open_cache(copy.cache) as other:
                other.put_many(ENTRIES)
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()
        with open_cache(cache) as nested:
            assert nested.get_many(ENTRIES).keys() == ENTRIES.keys()
        with pytest.raises(RuntimeError, match="open already"):
            cache.__enter__()
    assert "dtype='float16'" in repr(encoder)


def test_clones_share_a_memory_cache():
    """The clones of a search share a `MemoryFeatureCache`; pickles do not contain its entries."""
    cache = MemoryFeatureCache(max_bytes=10**6)
    encoder = TransformersTextEncoder(cache=cache)
    assert clone(encoder).cache is cache
    assert open_cache(cache) is cache
    cache.put_many(ENTRIES)
    received = pickle.loads(pickle.dumps(cache))
    assert (len(received), received.max_bytes) == (0, 10**6)


def test_threads_share_one_disk_cache(tmp_path):
    """Threads that use one open cache neither fail nor lose entries."""
    failures = []
    keys = list(ENTRIES)

    def work(start, cache):
        try:
            for key in keys[start::4]:
                cache.put_many({key: ENTRIES[key]})
                assert_equal_to_entries(cache.get_many(keys[:20]))
        except Exception as error:
            failures.append(error)

    with DiskFeatureCache(tmp_path) as cache:
        threads = [threading.Thread(target=work, args=(start, cache)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    with DiskFeatureCache(tmp_path) as cache:
        assert cache.get_many(ENTRIES).keys() == ENTRIES.keys()


@pytest.mark.parametrize("n", [0, 1, 1200])
def test_blocks_contain_all_cached_features(n):
    features = {b"%d" % i: np.float32([i, -i]) for i in range(n)}
    cache = MemoryFeatureCache()
    cache.put_many(features)
    blocks = list(iter_blocks(cache, [*features, b"missing"]))
    keys = [key for block_keys, _ in blocks for key in block_keys]
    assert keys == list(features)
    assert all(block.shape == (len(block_keys), 2) for block_keys, block in blocks)
    for key, row in ((k, r) for ks, b in blocks for k, r in zip(ks, b, strict=True)):
        np.testing.assert_array_equal(row, features[key])
