"""Time per row and resident memory of `encode_to` from a full cache, by number of rows."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.features import DiskFeatureCache

from .._process import PeakMemory, run_for_numbers
from .._results import Comparison

WIDTH = 384
N_CHUNK = 1024


class Captions:
    """Captions generated on the fly, so that they need no memory.

    Parameters
    ----------
    n : int
        Number of captions.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[str]:
        return (f"caption {number}" for number in range(self.n))


def measure(quick: bool) -> list[Comparison]:
    """Measure microseconds per row and the peak of memory, relative to 1,000 rows."""
    sizes = [1_000, 10_000, 30_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    with tempfile.TemporaryDirectory() as folder:
        _fill_cache(folder, sizes[-1])
        runs = {n: run_for_numbers(__name__, folder, n) for n in sizes}
    peer, target = f"{sizes[0]:,} rows", "at most 1.3"
    rows = []
    for n in sizes[1:]:
        for index, (quantity, unit) in enumerate(
            (("time per row", "µs"), ("peak of resident memory", "MB"))
        ):
            name, peer_value = f"encode_to, {n:,} rows: {quantity}", runs[sizes[0]][index]
            rows.append(Comparison(name, runs[n][index], unit, peer, peer_value, target))
    return rows


def _make_encoder(folder: str) -> TransformersTextEncoder:
    return TransformersTextEncoder(cache=DiskFeatureCache(folder, dtype="float16"))


def _fill_cache(folder: str, n: int) -> None:
    """Store features of all captions in the cache, so that no network is needed."""
    encoder = _make_encoder(folder)
    identity = encoder._digest_identity()
    rng = np.random.default_rng(0)
    captions = list(Captions(n))
    with encoder.cache as cache:
        for start in range(0, n, 8192):
            block = captions[start : start + 8192]
            keys = [
                hashlib.sha256(identity + encoder._digest_item(text)).digest() for text in block
            ]
            cache.put_many(
                dict(zip(keys, rng.random((len(block), WIDTH), np.float32), strict=True))
            )


def _measure_encoding(folder: str, n: int) -> tuple[float, float]:
    """Return the microseconds per row and the peak of resident memory in megabytes."""
    encoder = _make_encoder(folder)
    encoder.encode_to(f"{folder}/warm.npy", Captions(N_CHUNK // 2), overwrite=True)
    seconds = []
    with PeakMemory() as memory:
        # Few rows are encoded many times, since a single run would be too short to measure.
        for number in range(max(1, 20_000 // n)):
            start = time.perf_counter()
            encoder.encode_to(
                f"{folder}/{number}.npy", Captions(n), chunk_size=N_CHUNK, overwrite=True
            )
            seconds.append(time.perf_counter() - start)
            for file in Path(folder).glob(f"{number}.npy*"):
                file.unlink()
    return float(np.median(seconds)) / n * 1e6, memory.peak / 1e6


if __name__ == "__main__":
    print(*_measure_encoding(sys.argv[1], int(sys.argv[2])))
