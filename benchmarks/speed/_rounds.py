"""Timing of contenders in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def time_in_turns(contenders: Mapping[str, Callable[[], Any]], n_rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender over rounds in which all are called.

    The speed of a shared machine varies between minutes, so contenders are called in turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(n_rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def skip_missing(what: str, error: ImportError) -> None:
    """Print that a comparison is skipped, because a peer is not installed."""
    print(f"skipped {what}: {error}", flush=True)
