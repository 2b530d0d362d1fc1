"""Make classes say what they do, in a child that may be changed at will."""

import functools

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile
from sklearn_ape.persistence import files as _folder


def around(owner, name, before=None, after=None):
    """Call something before and after a method or a function."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def told(*args, **options):
        if before is not None:
            before(*args, **options)
        result = method(*args, **options)
        if after is not None:
            after(*args, **options)
        return result

    setattr(owner, name, told)


def stage(say, name):
    return lambda *args, **options: say("stage", name)


def tell_of_cache(say, numbers=None):
    """Say stages, and the entries of each batch that is put in, by number."""

    def put(cache, features):
        known = [number(key) if numbers is None else numbers.get(key) for key in features]
        say("put", [n for n in known if n is not None])

    def number(key):
        return int.from_bytes(key[:4], "little")

    def writing(cache):
        if cache._n_unwritten_bytes:
            say("stage", "writing")

    computing = stage(say, "computing")
    around(DiskFeatureCache, "__enter__", stage(say, "opening"), computing)
    around(DiskFeatureCache, "_write", writing, computing)
    around(DiskFeatureCache, "put_many", after=put)
    around(DiskFeatureCache, "_close", stage(say, "closing"))


def tell_of_file(say):
    """Say stages of `encode_to`, and each chunk that is finished."""
    computing = stage(say, "computing")
    around(FeatureFile, "resume", stage(say, "opening"), computing)
    around(FeatureFile, "_create", stage(say, "opening"))
    around(
        FeatureFile,
        "write",
        stage(say, "writing"),
        lambda file, number, *_: (say("chunk", number), say("stage", "computing")),
    )
    around(FeatureFile, "finish", stage(say, "closing"))


def tell_of_saving(say):
    """Say stages of `save_pretrained`."""
    around(_folder, "write_tensors", stage(say, "writing"))
    around(_folder, "sync", stage(say, "syncing"))
    around(_folder.os, "replace", stage(say, "replacing"), stage(say, "closing"))
