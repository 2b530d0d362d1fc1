"""Engines made ready: exported once, kept, and compared with torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..._warnings import warn
from .._networks import is_shared, shared
from ._base import Engine, EngineError, Inputs, Workload, WrongNumbersError, chosen_engine
from ._exports import forget_failure, has_failed, is_exported, kept_export, remember_failure
from ._onnx import OnnxEngine, export_to_onnx
from ._openvino import OpenVINOEngine, export_to_openvino
from ._torch import TorchEngine

# Largest difference from torch in float32, as 1 - cosine and in relative length. Low precision
# is asked for by name: its bound is to find a wrong export, not to vouch for the precision.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
# Items for which an export that is there is worth being loaded.
_WORTH_LOADING = 32

_RUNTIMES: dict[str, tuple[Any, Any]] = {
    "onnx": (OnnxEngine, export_to_onnx),
    "openvino": (OpenVINOEngine, export_to_openvino),
}


def engine_for(engine: str, workload: Workload, n_items: int, worth_exporting: int) -> Engine:
    """Return what computes a network for a number of items.

    Parameters
    ----------
    engine : {"auto", "torch", "onnx", "openvino"}
        With ``"auto"``, torch computes few items, for which another engine is not worth its
        start, and what no other engine can. Asked for by name, an engine that cannot compute
        the network is replaced by torch with a warning.
    workload : Workload
        The network.
    n_items : int
        Items to encode.
    worth_exporting : int
        Items from which an export saves more time than it takes.

    Returns
    -------
    engine : Engine
        Ready to be called, and shared within the process.
    """
    name = chosen_engine(engine, workload.device, workload.dtype)
    if name == "torch":
        return TorchEngine(workload)
    # A forked process cannot use the engines of its parent, whose threads it does not have.
    key = (name, workload.key, workload.dtype, workload.n_threads, os.getpid())
    if engine == "auto" and not is_shared(key):
        least = _WORTH_LOADING if is_exported(name, workload) else worth_exporting
        # Engines differ by rounding alone in float32, by more in other precisions.
        is_free_to_choose = workload.dtype == "float32"
        if has_failed(name, workload) or (is_free_to_choose and n_items < least):
            return TorchEngine(workload)
    return shared(key, lambda: _made(name, workload, by_name=engine != "auto"))


def _made(name: str, workload: Workload, by_name: bool) -> Engine:
    try:
        made = _exported(name, workload)
    except (EngineError, OSError) as error:
        reason = str(error).partition("\n")[0][:300]
        if isinstance(error, EngineError):  # a disk that is full today is not, tomorrow
            remember_failure(name, workload, str(error))
        if by_name:
            warn(
                f"engine={name!r} cannot compute this network, so torch does: {reason}",
                RuntimeWarning,
            )
        return TorchEngine(workload)
    forget_failure(name, workload)
    return made


def _exported(name: str, workload: Workload) -> Engine:
    torch_engine = TorchEngine(workload._replace(dtype="float32"))
    # First, so that what is wrong with the network itself is not taken for the engine's fault.
    expected = [(inputs, torch_engine(inputs)) for inputs in workload.examples()]
    make, export = _RUNTIMES[name]

    def checked(folder: Path) -> Engine:
        engine = make(workload, folder)
        _compare(engine, expected, _TOLERANCE[workload.dtype])
        return engine

    return kept_export(name, workload, export, checked)


def _compare(engine: Engine, expected: list[tuple[Inputs, np.ndarray]], tolerance: float) -> None:
    """Raise an error when an engine's features of the examples are not torch's."""
    for inputs, theirs in expected:
        ours = engine(inputs)
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            raise WrongNumbersError(
                f"its features have the shape {ours.shape} and torch's {theirs.shape}, or they "
                "are not finite."
            )
        lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
        cosine = (ours * theirs).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-12)
        longer = np.abs(lengths[0] / np.maximum(lengths[1], 1e-12) - 1)
        worst = max(float((1 - cosine).max()), float(longer.max()))
        if worst > tolerance:
            raise WrongNumbersError(
                f"its features differ from torch's by {worst:.2g} (1 - cosine, or relative "
                f"length); {tolerance:g} is the most allowed."
            )
