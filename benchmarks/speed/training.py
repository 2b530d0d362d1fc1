"""Training of heads against a hand-written loop, and against loops that run their locked towers.

With a checkpoint, against the same without. And on a memory map that is on disk alone, against the
same arrays in memory. Beside the hand-written loop times are of the processor, so that what else
the machine does counts less; of the others they are what the clock says.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks._results import Row, show
from benchmarks.speed._epoch_times import EpochTimes
from benchmarks.speed._locked_towers import open_clip_epoch, transformers_epoch
from sklearn_ape import APEAligner

_WIDTHS = 1280, 384
_DROPOUT, _SCALE, _MOST_SCALE = 0.3, 1 / 0.07, 100.0
_RATE, _DECAY, _WARMUP = 1e-3, 0.1, 0.05


def measure(quick: bool) -> list[Row]:
    n_rows, n_repeats = (2_000, 1) if quick else (20_000, 3)
    rows = [
        _against_hand_written(n_rows, 2048, 1024, n_repeats, "at most 1.1"),
        _against_hand_written(n_rows, 64, 64, n_repeats, ""),
        _against_memory(27_000, 64) if quick else _against_memory(40_000, 2048),
        _with_checkpoint(n_rows, 2048, 5, n_repeats),
    ]
    n_images = 32 if quick else 256
    ours = n_images / min(_epochs(*_features(n_images), max_epochs=5, batch_size=32))
    for name, epoch in (
        ("open_clip's train_one_epoch, EfficientNet-Lite0 and MiniLM locked", open_clip_epoch),
        ("transformers' VisionTextDualEncoderModel, ViT-Ti/16 and MiniLM frozen",
         transformers_epoch),
    ):  # fmt: skip
        theirs = n_images / epoch(n_images, batch_size=32)
        what = f"an epoch of {n_images} pairs, ours from features"
        rows.append(Row(what, ours, "rows/s", name, theirs))
    return rows


def _features(n_rows: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((n_rows, width), dtype=np.float32) for width in _WIDTHS)


def _epochs(
    image: np.ndarray,
    text: np.ndarray,
    clock: Callable[[], float] = time.perf_counter,
    **parameters: object,
) -> list[float]:
    """Return the seconds of every epoch of a fit without validation."""
    times = EpochTimes(clock)
    aligner = APEAligner(
        init=None,
        early_stopping=False,
        random_state=0,
        device="cpu",
        callbacks=[("times", times)],
    )
    aligner.set_params(**parameters).fit(image, text)
    return times.seconds


def _against_hand_written(
    n_rows: int, width: int, batch_size: int, n_repeats: int, bar: str
) -> Row:
    image, text = _features(n_rows)
    shape = {"width": width, "batch_size": batch_size, "max_epochs": 2}
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(n_repeats):
        ours += _epochs(image, text, time.process_time, **shape)
        theirs += _by_hand(image, text, **shape)
    what = f"an epoch of {n_rows:,} pairs, head {width} wide, batches of {batch_size:,}"
    return Row(what, min(ours), "s", "the same written by hand", min(theirs), bar)


def _by_hand(
    image: np.ndarray, text: np.ndarray, width: int, batch_size: int, max_epochs: int
) -> list[float]:
    """Train the head that `APEAligner` trains, step by step; return the seconds of the epochs."""
    x, y = torch.from_numpy(image), torch.from_numpy(text)
    (x_mean, x_scale), (y_mean, y_scale) = (
        (side.mean(dim=0), side.std(dim=0, unbiased=False)) for side in (x, y)
    )
    head = nn.Sequential(
        nn.Linear(text.shape[1], width),
        nn.GELU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(width, image.shape[1]),
    ).train()
    scale = nn.Parameter(torch.tensor(_SCALE).log())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in head.parameters() if p.ndim > 1], "weight_decay": _DECAY},
            {
                "params": [*(p for p in head.parameters() if p.ndim == 1), scale],
                "weight_decay": 0.0,
            },
        ],
        lr=_RATE,
    )
    n_batches = -(-len(x) // batch_size)
    n_steps, n_warmup = max_epochs * n_batches, round(_WARMUP * max_epochs * n_batches) or 1

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        return 0.5 * (1 + np.cos(np.pi * min(1.0, (step - n_warmup) / (n_steps - n_warmup))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rng, seconds = np.random.default_rng(0), []
    for _ in range(max_epochs):
        start = time.process_time()
        total = 0.0
        for index in np.array_split(rng.permutation(len(x)), n_batches):
            rows = torch.from_numpy(index)
            embeddings = functional.normalize((x[rows] - x_mean) / x_scale, dim=1)
            others = functional.normalize(head((y[rows] - y_mean) / y_scale), dim=1)
            logits = scale.exp() * embeddings @ others.T
            target = torch.arange(len(rows))
            loss = functional.cross_entropy(logits, target)
            loss = (loss + functional.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                scale.clamp_(max=np.log(_MOST_SCALE))
            total += loss.item()
        seconds.append(time.process_time() - start)
    return seconds


def _against_memory(n_rows: int, width: int) -> Row:
    """Compare an epoch on maps that are on disk alone with one on the same arrays in memory."""
    arrays = _features(n_rows)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{side}.npy" for side in ("image", "text")]
        for path, array in zip(paths, arrays, strict=True):
            np.save(path, array)
        rates: dict[str, list[float]] = {"memory": [], "map": []}
        for _ in range(2):
            rates["memory"] += [n_rows / s for s in _epochs(*arrays, max_epochs=1, width=width)]
            for path in paths:
                _drop_from_memory(path)
            maps = (np.load(path, mmap_mode="r") for path in paths)
            rates["map"] += [n_rows / s for s in _epochs(*maps, max_epochs=1, width=width)]
    what = f"train on a memory map of {n_rows:,} pairs, head {width} wide"
    return Row(what, max(rates["map"]), "rows/s", "the same arrays in memory",
               max(rates["memory"]), "at least 0.8")  # fmt: skip


def _with_checkpoint(n_rows: int, width: int, n_epochs: int, n_repeats: int) -> Row:
    """Compare a fit, which writes its state as often as it may, with one that writes nothing."""
    image, text = _features(n_rows)
    aligner = APEAligner(init=None, early_stopping=False, random_state=0, device="cpu")
    aligner.set_params(width=width, max_epochs=n_epochs)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(n_repeats):
        for is_kept, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                aligner.set_params(checkpoint=folder if is_kept else None).fit(image, text)
                taken.append(time.perf_counter() - start)
    what = f"{n_epochs} epochs of {n_rows:,} pairs, head {width} wide, with a checkpoint"
    return Row(what, min(seconds[True]), "s", "the same without", min(seconds[False]),
               "at most 1.1")  # fmt: skip


def _drop_from_memory(path: Path) -> None:
    """Make the next reading of a file come from the disk, as for one larger than memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    import sys

    show(measure("--quick" in sys.argv))
