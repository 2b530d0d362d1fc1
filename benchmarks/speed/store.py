"""Writing and reading of features, compared with `numpy.save` and `numpy.load`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile

from .._results import Comparison

ROWS_WRITTEN = 32  # per call, as many as an encoder writes
ROWS_READ = 1024


def measure(quick: bool) -> list[Comparison]:
    """Measure megabytes per second for two shapes and types of features."""
    shapes = [(20_000, 384, "float16"), (5_000, 1280, "float32")]
    if not quick:
        shapes = [(1_000_000, 384, "float16"), (200_000, 1280, "float32")]
    return [row for shape in shapes for row in _measure_shape(*shape)]


def _measure_shape(n: int, width: int, dtype: str) -> list[Comparison]:
    rng = np.random.default_rng(0)
    features = np.empty((n, width), dtype)
    for start in range(0, n, 10_000):
        features[start : start + 10_000] = rng.random(
            (len(features[start : start + 10_000]), width)
        )
    keys = [rng.bytes(32) for _ in range(n)]
    shuffled = rng.permutation(n)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        array, file = folder / "array.npy", folder / "file.npy"

        def save() -> None:
            np.save(array, features)
            with open(array, "rb+") as stream:
                os.fsync(stream.fileno())

        def read_array(rows: np.ndarray) -> None:
            stored = np.load(array, mmap_mode="r")
            for start in range(0, n, ROWS_READ):
                stored[rows[start : start + ROWS_READ]].astype(np.float32)

        def write_file() -> None:
            with FeatureFile(file, "", n, ROWS_READ, dtype) as target:
                for number, start in enumerate(range(0, n, ROWS_READ)):
                    target.write(number, features[start : start + ROWS_READ], "", {})
                target.finish()

        def put() -> None:
            with DiskFeatureCache(folder, dtype) as cache:
                for start in range(0, n, ROWS_WRITTEN):
                    end = start + ROWS_WRITTEN
                    cache.put_many(dict(zip(keys[start:end], features[start:end], strict=True)))

        def get(rows: np.ndarray) -> None:
            with DiskFeatureCache(folder, dtype) as cache:
                for start in range(0, n, ROWS_READ):
                    cached = cache.get_many([keys[row] for row in rows[start : start + ROWS_READ]])
                    assert len(cached) == min(ROWS_READ, n - start)

        def measure_rate(call: Callable[..., None], *args: object) -> float:
            start = time.perf_counter()
            call(*args)
            return features.nbytes / 1e6 / (time.perf_counter() - start)

        in_order = np.arange(n)
        save_rate = measure_rate(save)
        # The better of two: the first reading also fills the page cache.
        load_rate = max(measure_rate(read_array, in_order) for _ in range(2))
        random_rate = max(measure_rate(read_array, shuffled) for _ in range(2))
        file_rate, put_rate = measure_rate(write_file), measure_rate(put)
        get_rate, random_get_rate = measure_rate(get, in_order), measure_rate(get, shuffled)
    name = f"{n:,} x {width} {dtype}"
    rows = (
        ("encode_to's file, written", file_rate, "np.save", save_rate, "at least 0.5"),
        ("cache, written 32 rows at a time", put_rate, "np.save", save_rate, ""),
        ("cache, read in order", get_rate, "np.load", load_rate, ""),
        ("cache, read in random order", random_get_rate, "memory map", random_rate, ""),
    )
    return [
        Comparison(f"{name}: {operation}", rate, "MB/s", peer, peer_rate, target)
        for operation, rate, peer, peer_rate, target in rows
    ]
