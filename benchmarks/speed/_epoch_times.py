"""How long the epochs of a training take, without what comes before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch.callbacks import Callback


class EpochTimes(Callback):
    """Notes the time of every epoch on a clock, such as `time.process_time`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: list[float] = []

    def __deepcopy__(self, memo: Any) -> EpochTimes:
        """Return itself: an aligner trains with copies, and all of them note here."""
        return self

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.begin_ = self.clock()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.seconds.append(self.clock() - self.begin_)
