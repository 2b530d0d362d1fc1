"""Seconds and peak memory of the stages of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_SAMPLE_EVERY_S = 0.02


class Stage(NamedTuple):
    """What one stage cost; memory is the resident set of the whole process, in bytes."""

    name: str
    seconds: float
    peak_memory: int


class StageLog:
    """Measures stages one after another.

    Attributes
    ----------
    stages : list of Stage
        Those that ended.

    Examples
    --------
    >>> from sklearn_ape._stages import StageLog
    >>> log = StageLog()
    >>> with log.stage("sleep"):
    ...     time.sleep(0.01)
    >>> log.stages[0].seconds >= 0.01
    True
    """

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside; the stage is logged when it ends without an error."""
        import psutil

        process = psutil.Process()
        peak = process.memory_info().rss
        ended = threading.Event()

        # Sampled, because the system's own high-water mark cannot be reset everywhere.
        def watch() -> None:
            nonlocal peak
            while not ended.wait(_SAMPLE_EVERY_S):
                peak = max(peak, process.memory_info().rss)

        thread = threading.Thread(target=watch, daemon=True)
        start = time.perf_counter()
        thread.start()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            ended.set()
            thread.join()
        self.stages.append(Stage(name, seconds, max(peak, process.memory_info().rss)))
