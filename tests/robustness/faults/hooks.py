"""Patches that make classes report their stages, for use in child processes."""

import functools

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile
from sklearn_ape.persistence import files as _folder


def wrap_method(owner, name, before=None, after=None):
    """Replace a method or function by one that also calls `before` and `after`."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*args, **options):
        if before is not None:
            before(*args, **options)
        result = method(*args, **options)
        if after is not None:
            after(*args, **options)
        return result

    setattr(owner, name, wrapped)


def stage(report, name):
    return lambda *args, **options: report("stage", name)


def report_cache_stages(report, numbers=None):
    """Report stages of the cache, and the numbers of the entries in each written batch."""

    def put(cache, features):
        put_numbers = [number_of(key) if numbers is None else numbers.get(key) for key in features]
        report("put", [n for n in put_numbers if n is not None])

    def number_of(key):
        return int.from_bytes(key[:4], "little")

    def writing(cache):
        if cache._n_unwritten_bytes:
            report("stage", "writing")

    computing = stage(report, "computing")
    wrap_method(DiskFeatureCache, "__enter__", stage(report, "opening"), computing)
    wrap_method(DiskFeatureCache, "_write", writing, computing)
    wrap_method(DiskFeatureCache, "put_many", after=put)
    wrap_method(DiskFeatureCache, "_close", stage(report, "closing"))


def report_file_stages(report):
    """Report stages of `encode_to`, and each finished chunk."""
    computing = stage(report, "computing")
    wrap_method(FeatureFile, "resume", stage(report, "opening"), computing)
    wrap_method(FeatureFile, "_create", stage(report, "opening"))
    wrap_method(
        FeatureFile,
        "write",
        stage(report, "writing"),
        lambda file, number, *_: (report("chunk", number), report("stage", "computing")),
    )
    wrap_method(FeatureFile, "finish", stage(report, "closing"))


def report_saving_stages(report):
    """Report stages of `save_pretrained`."""
    wrap_method(_folder, "write_tensors", stage(report, "writing"))
    wrap_method(_folder, "sync", stage(report, "syncing"))
    wrap_method(_folder.os, "replace", stage(report, "replacing"), stage(report, "closing"))
