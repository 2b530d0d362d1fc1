"""Tell from a file's status whether it is still the file it was."""

from __future__ import annotations

import os
import time

# A file changed twice within the clock's resolution keeps its time stamps, so what was read of
# a young file is not remembered. The coarsest resolution is 2 s.
_SETTLED_S = 3.0
# Nor do stamps tell anything once the clock was set back by more than this.
_BACK_S = 0.9

_ahead = float("-inf")
_n_times_back = 0


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that differ once a file was changed, even when its times were set back."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_size, *times, status.st_ino, status.st_dev, _times_set_back())


def is_settled(status: os.stat_result) -> bool:
    """Say whether the next change of a file will show in its stamp."""
    return time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S


def _times_set_back() -> int:
    """Count how often this process has seen that the clock was set back.

    A file that is changed at the hour of its last change, which the clock shows again, keeps its
    stamp. So all that was remembered before counts for nothing.
    """
    global _ahead, _n_times_back
    ahead = time.time() - time.monotonic()
    if ahead < _ahead - _BACK_S:
        _n_times_back += 1
        _ahead = ahead
    _ahead = max(_ahead, ahead)
    return _n_times_back
