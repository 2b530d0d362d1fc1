"""Counts of features from the cache and from the network."""


def gained(encoder, X):
    """Return the hits and misses of one transform."""
    before = encoder.cache_info()
    encoder.transform(X)
    after = encoder.cache_info()
    return after.hits - before.hits, after.misses - before.misses
