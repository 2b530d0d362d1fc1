"""Memory and time of losses with large batches, and of training on 1,000 to 1,000,000 pairs.

Each figure is measured in a separate process. For the scaling with the number of pairs, memory is
all resident memory, including pages of the memory maps; for a loss or a batch it is the added
anonymous memory. Times are CPU seconds of one thread, so that other work on the machine matters
less.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sklearn_ape import APEAligner
from sklearn_ape.losses import InfoNCELoss

from .._process import PeakMemory, run_for_numbers
from .._results import Comparison
from ..speed.training import EpochTimes

_WIDTHS = 1280, 384
_LOSS_WIDTH = 128
_LARGEST_DENSE = 16_384  # 32,768 pairs would take 20 GB
_BLOCK_SIZE = 10_000


def measure(quick: bool) -> list[Comparison]:
    """Measure the memory and time of a loss, of one large batch and of growing training sets."""
    rows = []
    peer = "all logits at once"
    for n_pairs in [1024, 2048, 4096] + ([] if quick else [8192, 16_384, 32_768]):
        name = f"InfoNCE of {n_pairs:,} pairs, forward and backward, in tiles of 1,024"
        has_peer = n_pairs <= _LARGEST_DENSE
        memory = _run("loss", 1024, n_pairs)[0]
        peer_memory = _run("loss", 0, n_pairs)[0] if has_peer else None
        rows.append(Comparison(f"{name}: memory added", memory, "MB", peer, peer_memory))
        seconds, dense_seconds = _run("times", n_pairs, int(has_peer))
        peer_seconds = dense_seconds if has_peer else None
        rows.append(Comparison(f"{name}: time", seconds, "s", peer, peer_seconds, "at most 2"))
    n_pairs = 8192 if quick else 32_768
    rows.append(
        Comparison(
            f"train on {n_pairs:,} pairs in one batch: memory added",
            _run("batch", n_pairs)[0],
            "MB",
            "one matrix of all pairs",
            4 * n_pairs**2 / 1e6,
            "at most 0.5",
        )
    )
    sizes = [1_000, 10_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    with tempfile.TemporaryDirectory() as folder:
        _write_features(Path(folder), sizes[-1])
        runs = [_run("scale", n_rows, folder) for n_rows in sizes]
    peer, target = f"{sizes[0]:,} pairs", "at most 1.3"
    peer_memory, peer_seconds = runs[0]
    for n_rows, (memory, seconds) in zip(sizes, runs, strict=True):
        name = f"train on a memory map of {n_rows:,} pairs"
        times = 1e6 * seconds, "µs", peer, 1e6 * peer_seconds
        rows.append(Comparison(f"{name}: time per pair and epoch", *times, target))
        memories = memory, "MB", peer, peer_memory
        rows.append(Comparison(f"{name}: resident memory", *memories, target))
    return rows


def _run(mode: str, *arguments: object) -> list[float]:
    return run_for_numbers(__name__, mode, *arguments)


def _make_step(tile_size: int | None, n_pairs: int) -> Callable[[], None]:
    loss = InfoNCELoss(tile_size=tile_size)
    sides = [
        torch.nn.functional.normalize(torch.randn(n_pairs, _LOSS_WIDTH)).requires_grad_()
        for _ in range(2)
    ]
    return lambda: loss(*sides).backward()


def _measure_loss(tile_size: int, n_pairs: int) -> tuple[float, float]:
    _make_step(tile_size or None, 512)()
    step = _make_step(tile_size or None, n_pairs)
    before, peak, seconds = _measure_peak(step)
    return peak - before, seconds


def _measure_times(n_pairs: int, has_peer: bool) -> tuple[float, float]:
    """Return the least CPU seconds with tiles and with all logits at once, in alternating runs."""
    torch.set_num_threads(1)
    tiled = _make_step(1024, n_pairs)
    dense = _make_step(None, n_pairs) if has_peer else lambda: None
    times = [(_time(tiled), _time(dense)) for _ in range(1 if n_pairs > 8192 else 3)]
    tiled_times, dense_times = zip(*times, strict=True)
    return min(tiled_times), min(dense_times)


def _measure_batch(n_pairs: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((n_pairs, 64), dtype=np.float32) for _ in range(2))
    shape = {"init": None, "width": 64, "early_stopping": False, "device": "cpu"}
    # Warm up: what the first fit allocates once is not memory of the batch.
    APEAligner(max_epochs=1, **shape).fit(image[:2000], text[:2000])
    aligner = APEAligner(batch_size=n_pairs, max_epochs=2, **shape)
    before, peak, seconds = _measure_peak(lambda: aligner.fit(image, text))
    return peak - before, seconds


def _measure_scale(n_rows: int, folder: Path) -> tuple[float, float]:
    """Return the peak of memory and the best seconds per pair and epoch of a head of width 256."""
    torch.set_num_threads(1)
    times = EpochTimes(time.process_time)
    image, text = (
        np.load(folder / f"{name}.npy", mmap_mode="r")[:n_rows] for name in ("image", "text")
    )
    aligner = APEAligner(
        init=None,
        width=256,
        batch_size=250,
        # Epochs of few pairs are short, so more are run.
        max_epochs=max(1, min(30, 100_000 // n_rows)),
        early_stopping=False,
        random_state=0,
        device="cpu",
        callbacks=[("times", times)],
    )
    _, peak, _ = _measure_peak(lambda: aligner.fit(image, text), "VmRSS")
    return peak, min(times.seconds) / n_rows


def _write_features(folder: Path, n_rows: int) -> None:
    rng = np.random.default_rng(0)
    for name, width in zip(("image", "text"), _WIDTHS, strict=True):
        path, shape = folder / f"{name}.npy", (n_rows, width)
        stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        block = rng.standard_normal((_BLOCK_SIZE, width)).astype(np.float16)
        for start in range(0, n_rows, _BLOCK_SIZE):
            rows = stored[start : start + _BLOCK_SIZE]
            rows[:] = block[: len(rows)]
            rows[:, 0] = start / _BLOCK_SIZE  # makes the rows of all blocks different


def _time(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _measure_peak(
    call: Callable[[], object], field: str = "RssAnon"
) -> tuple[float, float, float]:
    """Return the megabytes before a call and at its peak, and the seconds of the call."""
    with PeakMemory(field, interval=0.005) as memory:
        seconds = _time(call)
    return memory.before / 1e6, memory.peak / 1e6, seconds


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    if mode == "scale":
        print(*_measure_scale(int(arguments[0]), Path(arguments[1])))
    else:
        modes = {"loss": _measure_loss, "times": _measure_times, "batch": _measure_batch}
        print(*modes[mode](*map(int, arguments)))
