"""Memory and time of losses of large batches, and of training on 1,000 pairs to a million.

Every figure is of a process of its own. Memory of the scaling rows is all that is resident, pages
of the memory maps included; what is added by a loss or a batch is anonymous memory. Times are of
the processor and of one thread, so that what else the machine does counts less.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks._process import child
from benchmarks._results import Row, show
from benchmarks.speed._epoch_times import EpochTimes
from sklearn_ape import APEAligner
from sklearn_ape.losses import InfoNCELoss

_WIDTHS = 1280, 384
_LOSS_WIDTH = 128
_LARGEST_DENSE = 16_384  # 32,768 pairs would take 20 GB
_ROWS_AT_ONCE = 10_000


def measure(quick: bool) -> list[Row]:
    rows = []
    for n_pairs in [1024, 2048, 4096] + ([] if quick else [8192, 16_384, 32_768]):
        what = f"InfoNCE of {n_pairs:,} pairs, forward and back, in tiles of 1,024"
        has_peer = n_pairs <= _LARGEST_DENSE
        ours = child("training", "loss", "1024", str(n_pairs))[0]
        theirs = child("training", "loss", "0", str(n_pairs))[0] if has_peer else None
        rows.append(Row(f"{what}: memory added", ours, "MB", "all logits at once", theirs))
        ours, theirs = child("training", "times", str(n_pairs), str(int(has_peer)))
        rows.append(Row(f"{what}: time", ours, "s", "all logits at once",
                        theirs if has_peer else None, "at most 2"))  # fmt: skip
    n_pairs = 8192 if quick else 32_768
    memory, _ = child("training", "batch", str(n_pairs))
    rows.append(Row(f"train on {n_pairs:,} pairs in one batch: memory added", memory, "MB",
                    "one matrix of all pairs", 4 * n_pairs**2 / 1e6, "at most 0.5"))  # fmt: skip
    sizes = [1_000, 10_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    with tempfile.TemporaryDirectory() as folder:
        _write_features(Path(folder), sizes[-1])
        runs = [child("training", "scale", str(n_rows), folder) for n_rows in sizes]
    for n_rows, (memory, seconds) in zip(sizes, runs, strict=True):
        what = f"train on a memory map of {n_rows:,} pairs"
        rows.append(Row(f"{what}: time a pair and epoch", seconds * 1e6, "µs", "the fewest pairs",
                        runs[0][1] * 1e6, "at most 1.3"))  # fmt: skip
        rows.append(Row(f"{what}: resident memory", memory, "MB", "the fewest pairs",
                        runs[0][0], "at most 1.3"))  # fmt: skip
    return rows


def _step(tile_size: int | None, n_pairs: int) -> Callable[[], None]:
    loss = InfoNCELoss(tile_size=tile_size)
    sides = [
        torch.nn.functional.normalize(torch.randn(n_pairs, _LOSS_WIDTH)).requires_grad_()
        for _ in range(2)
    ]
    return lambda: loss(*sides).backward()


def _loss(tile_size: int, n_pairs: int) -> tuple[float, float]:
    _step(tile_size or None, 512)()
    step = _step(tile_size or None, n_pairs)
    before = _held()
    most, seconds = _watched(step)
    return most - before, seconds


def _times(n_pairs: int, has_peer: bool) -> tuple[float, float]:
    """Return the seconds of tiles and of all at once, by turns; the best of several."""
    torch.set_num_threads(1)
    tiled = _step(1024, n_pairs)
    dense = _step(None, n_pairs) if has_peer else lambda: None
    times = [(_timed(tiled), _timed(dense)) for _ in range(1 if n_pairs > 8192 else 3)]
    return min(ours for ours, _ in times), min(theirs for _, theirs in times)


def _batch(n_pairs: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((n_pairs, 64), dtype=np.float32) for _ in range(2))
    shape = {"init": None, "width": 64, "early_stopping": False, "device": "cpu"}
    APEAligner(max_epochs=1, **shape).fit(image[:2000], text[:2000])
    before = _held()
    whole = APEAligner(batch_size=n_pairs, max_epochs=2, **shape)
    most, seconds = _watched(lambda: whole.fit(image, text))
    return most - before, seconds


def _scale(n_rows: int, folder: Path) -> tuple[float, float]:
    """Train a head 256 wide; epochs are many where pairs are few, and the best one counts."""
    torch.set_num_threads(1)
    times = EpochTimes(time.process_time)
    image, text = (
        np.load(folder / f"{name}.npy", mmap_mode="r")[:n_rows] for name in ("image", "text")
    )
    aligner = APEAligner(
        init=None,
        width=256,
        batch_size=250,
        max_epochs=max(1, min(30, 100_000 // n_rows)),
        early_stopping=False,
        random_state=0,
        device="cpu",
        callbacks=[("times", times)],
    )
    most, _ = _watched(lambda: aligner.fit(image, text), "VmRSS")
    return most, min(times.seconds) / n_rows


def _write_features(folder: Path, n_rows: int) -> None:
    rng = np.random.default_rng(0)
    for name, width in zip(("image", "text"), _WIDTHS, strict=True):
        path, shape = folder / f"{name}.npy", (n_rows, width)
        stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        block = rng.standard_normal((_ROWS_AT_ONCE, width)).astype(np.float16)
        for start in range(0, n_rows, _ROWS_AT_ONCE):
            some = stored[start : start + _ROWS_AT_ONCE]
            some[:] = block[: len(some)]
            some[:, 0] = start / _ROWS_AT_ONCE  # no two rows are equal


def _timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _watched(call: Callable[[], object], kind: str = "RssAnon") -> tuple[float, float]:
    """Return the most memory of a kind, in megabytes, and the seconds of a call."""
    most, ended = _held(kind), threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, _held(kind))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds = _timed(call)
    finally:
        ended.set()
        watcher.join()
    return most, seconds


def _held(kind: str = "RssAnon") -> float:
    """Return the megabytes of memory that this process holds."""
    with Path("/proc/self/status").open() as status:
        line = next(line for line in status if line.startswith(kind))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    if len(sys.argv) < 3:
        show(measure("--quick" in sys.argv))
    else:
        mode, *arguments = sys.argv[1:]
        if mode == "scale":
            print(*_scale(int(arguments[0]), Path(arguments[1])))
        else:
            modes = {"loss": _loss, "times": _times, "batch": _batch}
            print(*modes[mode](*map(int, arguments)))
