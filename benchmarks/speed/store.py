"""Writing and reading of features, compared with `numpy.save`, memory maps and SQL queries."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile

from .._results import Comparison

ROWS_WRITTEN = 32  # per call, as many as an encoder writes
ROWS_READ = 1024
KEYS_PER_QUERY = 500  # as in the cache


def measure(quick: bool) -> list[Comparison]:
    """Measure rates of writing and reading for two shapes and types of features."""
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

        def read_array(rows: np.ndarray, n_per_call: int) -> None:
            stored = np.load(array, mmap_mode="r")
            for start in range(0, n, n_per_call):
                stored[rows[start : start + n_per_call]].astype(np.float32)

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

        def get(rows: np.ndarray, n_per_call: int) -> None:
            with DiskFeatureCache(folder, dtype) as cache:
                for start in range(0, n, n_per_call):
                    batch = [keys[row] for row in rows[start : start + n_per_call]]
                    assert len(cache.get_many(batch)) == len(batch)

        def select(rows: np.ndarray, n_per_call: int) -> None:
            del n_per_call  # a query has at most as many keys as SQLite allows parameters
            table = "features" if dtype == "float32" else "features_float16"
            with closing(sqlite3.connect(folder / "features.sqlite")) as connection:
                connection.execute("PRAGMA cache_size = -65536")  # as in the cache
                for start in range(0, n, KEYS_PER_QUERY):
                    batch = [keys[row] for row in rows[start : start + KEYS_PER_QUERY]]
                    query = f"SELECT key, value FROM {table} WHERE key IN ({{}})"
                    query = query.format(",".join("?" * len(batch)))
                    assert len(connection.execute(query, batch).fetchall()) == len(batch)

        def measure_seconds(call: Callable[..., None], *args: object) -> float:
            start = time.perf_counter()
            call(*args)
            return time.perf_counter() - start

        n_megabytes = features.nbytes / 1e6
        save_rate, file_rate, put_rate = (
            n_megabytes / measure_seconds(write) for write in (save, write_file, put)
        )
        name = f"{n:,} x {width} {dtype}"
        save_peer = ("MB/s", "np.save", save_rate)
        comparisons = [
            Comparison(
                f"{name}: encode_to's file, written", file_rate, *save_peer, "at least 0.5"
            ),
            Comparison(f"{name}: cache, written 32 rows at a time", put_rate, *save_peer),
        ]
        for order, rows in (("in order", np.arange(n)), ("in random order", shuffled)):
            for amount, n_per_call in (("1,024 rows", ROWS_READ), ("all rows", n)):
                # The best of three rounds, in which all programs take turns.
                seconds = [
                    [measure_seconds(read, rows, n_per_call) for read in (get, select, read_array)]
                    for _ in range(3)
                ]
                rate, *peer_rates = n / np.min(seconds, axis=0)
                for peer, peer_rate in zip(("bare SELECT", "memory map"), peer_rates, strict=True):
                    operation = f"cache, {amount} read {order}, compared with a {peer}"
                    comparisons.append(
                        Comparison(f"{name}: {operation}", rate, "rows/s", peer, peer_rate)
                    )
        n_bytes = DiskFeatureCache(folder).info().n_bytes
        size = Comparison(
            f"{name}: cache, size on disk", n_bytes / 1e6, "MB", "np.save", n_megabytes
        )
    return [*comparisons, size]
