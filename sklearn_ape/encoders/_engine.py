"""Engines that compute a frozen network: the protocol, and the engine of torch."""

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

from ..devices import has_bfloat16_instructions

ENGINES = ("auto", "torch", "onnx", "openvino")
_PACKAGES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}
Inputs = tuple[torch.Tensor, ...]


class EngineError(RuntimeError):
    """A network cannot be exported, or its export does not give the right features."""


class WrongFeaturesError(EngineError):
    """The features of an export differ from torch's."""


class Engine(Protocol):
    """Protocol of objects that compute features of batches.

    A `concurrent` engine uses one core per call and is called by several threads. Any other
    engine uses all cores for one call at a time.
    """

    name: str
    concurrent: bool

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Return the features of a batch, (n_items, n_features) of float32."""


class Workload(NamedTuple):
    """A network and the options that an engine needs to compute it.

    The examples are inputs of several shapes, used to trace the network and to compare an export
    with torch. The key is a unique name of the network with its weights.
    """

    module: torch.nn.Module
    examples: Callable[[], list[Inputs]]
    key: str
    device: torch.device
    dtype: str
    n_threads: int
    folder: Path


def choose_engine(engine: str, device: torch.device, dtype: str) -> str:
    """Return "torch", "onnx" or "openvino" for a value of the parameter ``engine``.

    ``"auto"`` means the fastest installed engine on a CPU, and torch on a GPU. ImportError is
    raised if the package is not installed, ValueError for an unsupported device or precision.
    """
    if engine == "torch":
        return engine
    if engine == "auto":
        names = (name for name in ("openvino", "onnx") if not _find_obstacle(name, device, dtype))
        return next(names, "torch")
    obstacle = _find_obstacle(engine, device, dtype)
    if obstacle is not None:
        raise obstacle
    return engine


def choose_dtype(engine: str, device: torch.device) -> str:
    """Return the precision that ``dtype="auto"`` means.

    It is bfloat16 if OpenVINO computes on a processor with instructions for it, else float32.
    """
    is_fast = (
        engine in ("auto", "openvino")
        and has_bfloat16_instructions()
        and _find_obstacle("openvino", device, "bfloat16") is None
    )
    return "bfloat16" if is_fast else "float32"


def n_free_axes(example: torch.Tensor) -> int:
    """Return the number of leading axes of variable length: items and, for tokens, positions."""
    return 2 if example.ndim == 2 and not example.is_floating_point() else 1


def _find_obstacle(engine: str, device: torch.device, dtype: str) -> Exception | None:
    if device.type != "cpu":
        return ValueError(
            f"engine={engine!r} computes on the CPU, but device is {str(device)!r}. Pass "
            "device='cpu' or engine='torch'."
        )
    # Every engine computes in float32. Asking OpenVINO for its precisions is slow.
    if dtype != "float32" and dtype not in _list_precisions(engine):
        return ValueError(
            f"engine={engine!r} does not compute in {dtype} on this machine. Pass "
            "dtype='float32' or engine='torch'."
        )
    missing = [package for package in _PACKAGES[engine] if find_spec(package) is None]
    if missing:
        return ImportError(
            f"engine={engine!r} needs the package {' and '.join(missing)}. Run "
            f"pip install 'sklearn-ape[{engine}]', or pass engine='auto'."
        )
    return None


def _list_precisions(engine: str) -> tuple[str, ...]:
    if engine == "onnx" or find_spec("openvino") is None:
        return ("float32",)
    from ._engine_runtimes import list_precisions

    return list_precisions()


# Numbers of the options in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Freed blocks of memory up to this size, in bytes, stay with the process.
_MAX_RETAINED = 2**30


class TorchEngine:
    """Engine that computes a network with torch.

    Batches are copied to a GPU asynchronously from pinned memory. A batch that does not fit into
    the GPU's memory is halved, and the smaller size is used for all later batches.
    """

    name = "torch"
    concurrent = False

    def __init__(self, workload: Workload) -> None:
        self.module = workload.module
        self.device = workload.device
        self.dtype = workload.dtype
        self._max_items: int | None = None
        if self.device.type == "cpu":
            _keep_large_allocations()

    def __call__(self, inputs: Inputs) -> np.ndarray:
        n_items = len(inputs[0])
        size = n_items if self._max_items is None else min(n_items, self._max_items)
        while True:
            try:
                starts = range(0, n_items, size)
                parts = [self._compute(tuple(x[s : s + size] for x in inputs)) for s in starts]
                return np.concatenate(parts) if len(parts) > 1 else parts[0]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = self._max_items = (size + 1) // 2
                torch.cuda.empty_cache()

    def _compute(self, inputs: Inputs) -> np.ndarray:
        precision: Any = nullcontext()
        if self.dtype != "float32":
            precision = torch.autocast(self.device.type, dtype=getattr(torch, self.dtype))
        with torch.inference_mode(), precision:
            return self.module(*(self._to_device(x) for x in inputs)).float().cpu().numpy()

    def _to_device(self, x: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)


@lru_cache(maxsize=1)
def _keep_large_allocations() -> None:
    """Configure glibc to reuse the memory of large tensors instead of mapping it for each one.

    The kernel sets mapped memory to zero page by page. For batches of 32 images that takes longer
    than the network itself.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl does not have it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAX_RETAINED)
        mallopt(_M_TRIM_THRESHOLD, _MAX_RETAINED)
