"""Choice of an engine, exported networks, and their comparison with torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ...utils.files import atomic_directory
from ...utils.warnings import warn
from ..weights import get_shared_network, is_network_shared
from ._base import (
    Engine,
    EngineError,
    Inputs,
    TorchEngine,
    Workload,
    WrongNumbersError,
    choose_engine,
)
from ._runtimes import OnnxEngine, OpenVINOEngine, export_to_onnx, export_to_openvino

T = TypeVar("T")


_DIGESTS = "sha256.json"


_FORMAT = 1


_DISTRIBUTIONS = {"onnx": "onnxruntime", "openvino": "openvino"}


def load_or_export(
    engine: str,
    workload: Workload,
    export: Callable[[Workload, Path], None],
    load: Callable[[Path], T],
) -> T:
    """Return what `load` makes of a network's export, exporting it the first time.

    Parameters
    ----------
    engine : {"onnx", "openvino"}
        Its name and version are part of the export's.
    workload : Workload
        The network.
    export : callable
        Writes files into an empty folder.
    load : callable
        Reads them, and raises EngineError when they are no good.

    Returns
    -------
    loaded : object
        What `load` returns.

    Raises
    ------
    EngineError
        When a new export is no good.
    OSError
        When not even a temporary folder can be written.
    """
    kept = _place(engine, workload)
    if kept.is_dir():
        try:
            _verify(kept)
            return load(kept)
        except WrongNumbersError:  # as a new export would
            raise
        except (EngineError, OSError, ValueError) as error:
            warn(
                f"The exported network in {str(kept)!r} is damaged ({error}); it is exported "
                "anew.",
                RuntimeWarning,
            )
            shutil.rmtree(kept, ignore_errors=True)
    with ExitStack() as stack:
        try:
            workload.folder.mkdir(parents=True, exist_ok=True)
            fresh = stack.enter_context(atomic_directory(kept))
        except OSError:  # it cannot be kept: it serves this process alone
            name = tempfile.TemporaryDirectory(prefix=f"{engine}-", ignore_cleanup_errors=True)
            kept = fresh = Path(stack.enter_context(name))
        export(workload, fresh)
        loaded = load(fresh)
        if kept != fresh:
            _seal(fresh)
            _move(fresh, kept)
        return loaded


def is_exported(engine: str, workload: Workload) -> bool:
    """Tell whether there is an export of a network."""
    return _place(engine, workload).is_dir()


def has_failed(engine: str, workload: Workload) -> bool:
    """Tell whether a network is known not to be computed by an engine."""
    return _note(engine, workload).is_file()


def remember_failure(engine: str, workload: Workload, reason: str) -> None:
    """Note why a network is not computed by an engine, so that it is not tried at every start."""
    with suppress(OSError):
        workload.folder.mkdir(parents=True, exist_ok=True)
        _note(engine, workload).write_text(reason, encoding="utf-8")


def forget_failure(engine: str, workload: Workload) -> None:
    """Take such a note back."""
    with suppress(OSError):
        _note(engine, workload).unlink(missing_ok=True)


def _note(engine: str, workload: Workload) -> Path:
    place = _place(engine, workload)
    return place.with_name(f"{place.name}.{workload.dtype}.failed.txt")


def _place(engine: str, workload: Workload) -> Path:
    known = (engine, version(_DISTRIBUTIONS[engine]), torch.__version__, _FORMAT, workload.key)
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
    return workload.folder / f"{engine}-{name}"


def _seal(folder: Path) -> None:
    digests = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    (folder / _DIGESTS).write_text(json.dumps(digests))


def _verify(folder: Path) -> None:
    digests = json.loads((folder / _DIGESTS).read_text())
    for name, digest in digests.items():
        if _digest(folder / name) != digest:
            raise EngineError(f"the file {name} is not what was written")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(fresh: Path, kept: Path) -> None:
    """Put an export in its place, unless another process has done so meanwhile."""
    try:
        os.replace(fresh, kept)
    except OSError:
        if not kept.is_dir():
            warn(
                f"The exported network cannot be kept in {str(kept)!r}; the next process exports "
                "it again.",
                RuntimeWarning,
            )


# Largest difference from torch in float32, as 1 - cosine and in relative length. Low precision
# is asked for by name: its bound is to find a wrong export, not to vouch for the precision.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}


# Items for which an export that is there is worth being loaded.
_WORTH_LOADING = 32


_RUNTIMES: dict[str, tuple[Any, Any]] = {
    "onnx": (OnnxEngine, export_to_onnx),
    "openvino": (OpenVINOEngine, export_to_openvino),
}


def make_engine(engine: str, workload: Workload, n_items: int, worth_exporting: int) -> Engine:
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
    name = choose_engine(engine, workload.device, workload.dtype)
    if name == "torch":
        return TorchEngine(workload)
    # A forked process cannot use the engines of its parent, whose threads it does not have.
    key = (name, workload.key, workload.dtype, workload.n_threads, os.getpid())
    if engine == "auto" and not is_network_shared(key):
        least = _WORTH_LOADING if is_exported(name, workload) else worth_exporting
        # Engines differ by rounding alone in float32, by more in other precisions.
        is_free_to_choose = workload.dtype == "float32"
        if has_failed(name, workload) or (is_free_to_choose and n_items < least):
            return TorchEngine(workload)
    return get_shared_network(key, lambda: _made(name, workload, by_name=engine != "auto"))


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

    return load_or_export(name, workload, export, checked)


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
