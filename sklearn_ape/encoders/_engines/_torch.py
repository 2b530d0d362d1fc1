"""torch itself as an engine, on any device."""

from __future__ import annotations

import ctypes
import sys
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ._base import Inputs, Workload

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**30


class TorchEngine:
    """Computes a network with torch.

    On a GPU, batches travel from pinned memory without waiting, and one that does not fit into
    its memory is computed in halves, as all later ones are.
    """

    name = "torch"
    concurrent = False

    def __init__(self, workload: Workload) -> None:
        self.module = workload.module
        self.device = workload.device
        self.dtype = workload.dtype
        self._most: int | None = None
        if self.device.type == "cpu":
            _keep_large_allocations()

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Return the features of a batch."""
        n_items = len(inputs[0])
        most = n_items if self._most is None else min(n_items, self._most)
        while True:
            try:
                starts = range(0, n_items, most)
                parts = [self._pass(tuple(x[s : s + most] for x in inputs)) for s in starts]
                return np.concatenate(parts) if len(parts) > 1 else parts[0]
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
                most = self._most = (most + 1) // 2
                torch.cuda.empty_cache()

    def _pass(self, inputs: Inputs) -> np.ndarray:
        precision: Any = nullcontext()
        if self.dtype != "float32":
            precision = torch.autocast(self.device.type, dtype=getattr(torch, self.dtype))
        with torch.inference_mode(), precision:
            return self.module(*(self._moved(x) for x in inputs)).float().cpu().numpy()

    def _moved(self, x: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)


@lru_cache(maxsize=1)
def _keep_large_allocations() -> None:
    """Tell glibc to keep the memory of large tensors instead of mapping it anew for each.

    The kernel zeroes what it maps, page by page: at batches of 32 images that takes longer than
    the network itself.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_KEPT)
