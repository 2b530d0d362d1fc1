"""Engine protocol, and the engine of torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

ENGINES = ("auto", "torch", "onnx", "openvino")


_PACKAGES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}


Inputs = tuple[torch.Tensor, ...]


class EngineError(RuntimeError):
    """A network cannot be exported, or its export does not compute what it should."""


class WrongNumbersError(EngineError):
    """An export computes something else than torch does."""


class Engine(Protocol):
    """Computes features of batches.

    An engine that is `concurrent` uses one core a call, and is called by as many threads as
    there are cores; another one uses them all for one call at a time.
    """

    name: str
    concurrent: bool

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Return the features of a batch, (n_items, n_features) of float32."""


class Workload(NamedTuple):
    """A network, and all that an engine must know to compute it.

    Parameters
    ----------
    module : torch.nn.Module
        Takes the input tensors one after the other and gives (n_items, n_features).
    examples : callable
        Returns inputs of several shapes: to trace the network, and to compare an export with
        torch.
    key : str
        Tells this network, with these weights, from all others.
    device : torch.device
        Where torch computes.
    dtype : {"float32", "bfloat16", "float16"}
        Precision of the network.
    n_threads : int
        Cores to use.
    folder : pathlib.Path
        Where exports are kept.
    """

    module: torch.nn.Module
    examples: Callable[[], list[Inputs]]
    key: str
    device: torch.device
    dtype: str
    n_threads: int
    folder: Path


def choose_engine(engine: str, device: torch.device, dtype: str) -> str:
    """Return the engine that a parameter stands for, or say why it cannot be had.

    Parameters
    ----------
    engine : {"auto", "torch", "onnx", "openvino"}
        ``"auto"`` is the fastest one that is installed; on a GPU, torch.
    device : torch.device
        Where torch would compute. The others are for the CPU.
    dtype : {"float32", "bfloat16", "float16"}
        Precision of the network.

    Returns
    -------
    name : {"torch", "onnx", "openvino"}
        The engine.

    Raises
    ------
    ImportError
        When its package is not installed.
    ValueError
        When it does not run on the device or in the precision.
    """
    if engine == "torch":
        return engine
    if engine == "auto":
        fits = (name for name in ("openvino", "onnx") if not _reason_against(name, device, dtype))
        return next(fits, "torch")
    reason = _reason_against(engine, device, dtype)
    if reason is not None:
        raise reason
    return engine


def n_free_axes(example: torch.Tensor) -> int:
    """Count the axes, from the first, whose length changes: items and, of texts, tokens."""
    return 2 if example.ndim == 2 and not example.is_floating_point() else 1


def _reason_against(engine: str, device: torch.device, dtype: str) -> Exception | None:
    if device.type != "cpu":
        return ValueError(
            f"engine={engine!r} computes on the CPU, but device is {str(device)!r}: pass "
            "device='cpu', or engine='torch'."
        )
    if dtype not in _precisions(engine):
        return ValueError(
            f"engine={engine!r} does not compute in {dtype} on this machine: pass "
            "dtype='float32', or engine='torch'."
        )
    missing = [package for package in _PACKAGES[engine] if find_spec(package) is None]
    if missing:
        return ImportError(
            f"engine={engine!r} needs the package {' and '.join(missing)}: "
            f"pip install 'sklearn-ape[{engine}]'. engine='auto' does with what is installed."
        )
    return None


def _precisions(engine: str) -> tuple[str, ...]:
    if engine == "onnx" or find_spec("openvino") is None:
        return ("float32",)
    from ._runtimes import precisions

    return precisions()


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
