"""Features written and read back, beside `numpy.save` and `numpy.load` of the same array."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._results import Row, show
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features._file import FeatureFile

ROWS_WRITTEN = 32  # together, as an encoder does
ROWS_READ = 1024


def measure(quick: bool) -> list[Row]:
    shapes = [(20_000, 384, "float16"), (5_000, 1280, "float32")]
    if not quick:
        shapes = [(1_000_000, 384, "float16"), (200_000, 1280, "float32")]
    return [row for shape in shapes for row in _of_shape(*shape)]


def _of_shape(n: int, width: int, dtype: str) -> list[Row]:
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
            kept = np.load(array, mmap_mode="r")
            for start in range(0, n, ROWS_READ):
                kept[rows[start : start + ROWS_READ]].astype(np.float32)

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
                    found = cache.get_many([keys[row] for row in rows[start : start + ROWS_READ]])
                    assert len(found) == min(ROWS_READ, n - start)

        mb = features.nbytes / 1e6

        def rate(work: Callable[..., None], *args: object) -> float:
            start = time.perf_counter()
            work(*args)
            return mb / (time.perf_counter() - start)

        in_order = np.arange(n)
        saved, loaded = rate(save), max(rate(read_array, in_order) for _ in range(2))
        shuffled_rate = max(rate(read_array, shuffled) for _ in range(2))
        what = f"{n:,} x {width} {dtype}"
        unit = "MB/s"
        return [
            Row(
                f"{what}: encode_to's file, written",
                rate(write_file),
                unit,
                "np.save",
                saved,
                "at least 0.5",
            ),
            Row(f"{what}: cache, written 32 at a time", rate(put), unit, "np.save", saved),
            Row(f"{what}: cache, read in order", rate(get, in_order), unit, "np.load", loaded),
            Row(
                f"{what}: cache, read at random",
                rate(get, shuffled),
                unit,
                "memmap",
                shuffled_rate,
            ),
        ]


if __name__ == "__main__":
    show(measure(quick="--quick" in sys.argv))
