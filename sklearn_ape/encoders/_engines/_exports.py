"""A folder of exported networks, each written once and verified when it is read."""

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
from typing import TypeVar

import torch

from ..._unfinished import unfinished
from ..._warnings import warn
from ._base import EngineError, Workload, WrongNumbersError

T = TypeVar("T")

_DIGESTS = "sha256.json"
_FORMAT = 1
_DISTRIBUTIONS = {"onnx": "onnxruntime", "openvino": "openvino"}


def kept_export(
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
            fresh = stack.enter_context(unfinished(kept))
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
