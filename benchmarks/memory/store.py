"""`encode_to` from a full cache: time a row and resident memory as the number of rows grows."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._results import Row, show
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.features import DiskFeatureCache

WIDTH = 384
N_CHUNK = 1024


class Captions:
    """Captions that are made as they are read."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[str]:
        return (f"caption {number}" for number in range(self.n))


def measure(quick: bool) -> list[Row]:
    sizes = [1_000, 10_000, 30_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    with tempfile.TemporaryDirectory() as folder:
        _fill(folder, sizes[-1])
        found = {n: _in_a_child(folder, n) for n in sizes}
    rows = []
    for n in sizes[1:]:
        for key, unit, what in (("us", "us", "time a row"), ("mb", "MB", "resident memory, peak")):
            few, many = found[sizes[0]][key], found[n][key]
            peer = f"{sizes[0]:,} rows"
            rows.append(
                Row(f"encode_to, {n:,} rows: {what}", many, unit, peer, few, "at most 1.3")
            )
    return rows


def _encoder(folder: str) -> TransformersTextEncoder:
    return TransformersTextEncoder(cache=DiskFeatureCache(folder, dtype="float16"))


def _fill(folder: str, n: int) -> None:
    """Put features for all captions into the cache, so that no network is needed."""
    encoder = _encoder(folder)
    identity = encoder._identity_digest()
    rng = np.random.default_rng(0)
    captions = list(Captions(n))
    with encoder.cache as cache:
        for start in range(0, n, 8192):
            some = captions[start : start + 8192]
            keys = [hashlib.sha256(identity + encoder._digest(text)).digest() for text in some]
            cache.put_many(
                dict(zip(keys, rng.random((len(some), WIDTH), np.float32), strict=True))
            )


def _in_a_child(folder: str, n: int) -> dict[str, float]:
    command = [sys.executable, __file__, "child", folder, str(n)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _child(folder: str, n: int) -> dict[str, Any]:
    import psutil

    encoder = _encoder(folder)
    process = psutil.Process()
    encoder.encode_to(f"{folder}/warm.npy", Captions(N_CHUNK // 2), overwrite=True)
    peak, is_over = process.memory_info().rss, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    # Of a few rows, many times: one time would be too short to measure.
    seconds = []
    for number in range(max(1, 20_000 // n)):
        start = time.perf_counter()
        encoder.encode_to(
            f"{folder}/{number}.npy", Captions(n), chunk_size=N_CHUNK, overwrite=True
        )
        seconds.append(time.perf_counter() - start)
        for file in Path(folder).glob(f"{number}.npy*"):
            file.unlink()
    is_over.set()
    watcher.join()
    return {"us": float(np.median(seconds)) / n * 1e6, "mb": peak / 1e6}


if __name__ == "__main__":
    if "child" in sys.argv:
        print(json.dumps(_child(sys.argv[2], int(sys.argv[3]))))
    else:
        show(measure(quick="--quick" in sys.argv))
