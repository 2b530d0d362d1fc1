"""Tell from a file's status whether it is still the file it was."""

from __future__ import annotations

import os
import time

# A file changed twice within the clock's resolution keeps its time stamps, so what was read of
# a young file is not remembered.
_SETTLED_S = 2.0


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that differ once a file was changed, even when its times were set back."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def is_settled(status: os.stat_result) -> bool:
    """Say whether the next change of a file will show in its stamp."""
    return time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S
