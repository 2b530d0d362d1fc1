"""Arrays that are mapped from files."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np


def map_of(array: Any) -> np.memmap | None:
    """Return the memory map that an array is, or is a view of, if any."""
    while isinstance(array, np.ndarray):
        # A copy in memory may be called a map, too.
        if isinstance(array, np.memmap) and array._mmap is not None:  # type: ignore[attr-defined]
            return array
        array = array.base
    return None


def forget(rows: Any) -> None:
    """Unmap rows of a memory map that have been read: they would count as memory in use.

    Parameters
    ----------
    rows : object
        A slice of a `numpy.memmap` or a view of one; of anything else nothing is done.
    """
    owner = map_of(rows)
    if owner is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    if owner.mode == "c":  # copy on write: what has been written would be lost
        return
    mapped = owner._mmap  # type: ignore[attr-defined]
    begin = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    first = rows.__array_interface__["data"][0] - begin
    extent = sum((n - 1) * step for n, step in zip(rows.shape, rows.strides, strict=True))
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError, ValueError):  # advice, no more
        mapped.madvise(mmap.MADV_DONTNEED, start, first + extent + rows.itemsize - start)
