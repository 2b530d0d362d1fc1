"""What all engines share, and which of them can compute what."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

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


def chosen_engine(engine: str, device: torch.device, dtype: str) -> str:
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
    from ._openvino import precisions

    return precisions()
