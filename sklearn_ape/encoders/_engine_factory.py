"""Engines from exported networks, which are kept on disk and compared with torch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.files import (
    FULL_DISK,
    digest_file,
    expand_user,
    get_default_data_home,
    write_folder_atomically,
)
from ..utils.messages import warn
from ._engine import (
    ONNX_FILE,
    OPENVINO_FILE,
    PACKAGES,
    Engine,
    EngineError,
    Inputs,
    OnnxEngine,
    OpenVINOEngine,
    TorchEngine,
    Workload,
    WrongFeaturesError,
    import_openvino,
)

# Name of the file that holds the digests of all other files of an export.
_DIGESTS = "sha256.json"
# Version of the layout of an export's folder; a new one makes older exports unused.
_FORMAT = 1

# Largest difference from torch's float32 features, as 1 - cosine and as relative error of the
# norm. Users choose low precision explicitly, so its tolerance only has to find wrong exports.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
# Smallest number of items for which loading an existing export saves more time than it takes.
_MIN_ITEMS_TO_LOAD = 32


def get_exports_folder(cache: Any) -> Path:
    """Return the folder of exports: next to the cached features, or in the user's cache folder."""
    folder = getattr(cache, "folder", cache)
    if not isinstance(folder, str | PathLike) or folder == "memory":
        folder = get_default_data_home()
    return expand_user(folder) / "engines"


def is_export_worthwhile(
    name: str, workload: Workload, n_items: int, min_items_to_export: int
) -> bool:
    """Return whether an exported network is likely to be faster than torch for some items."""
    # The methods of Path raise an error in a folder that this user may not enter.
    if os.path.isfile(_get_failure_file(name, workload)):
        return False
    if workload.dtype != "float32":
        # Engines differ by more than rounding in low precision, so the choice of the engine must
        # not depend on the number of items.
        return True
    is_exported = os.path.isdir(_get_target(name, workload))
    return n_items >= (_MIN_ITEMS_TO_LOAD if is_exported else min_items_to_export)


def make_engine(name: str, workload: Workload, warns: bool) -> Engine:
    """Return an engine with a network's export, or torch if the network cannot be exported.

    If features in low precision are too different from torch's, the engine computes in float32.
    """
    try:
        engine = _load_or_export(name, workload)
    except (EngineError, OSError) as error:
        if isinstance(error, WrongFeaturesError) and workload.dtype != "float32":
            warn(
                f"dtype={workload.dtype!r} is too inaccurate for this network in "
                f"engine={name!r}, which therefore computes in float32: {error}. Pass "
                "dtype='float32' to avoid this warning.",
                RuntimeWarning,
            )
            return make_engine(name, workload._replace(dtype="float32"), warns)
        if isinstance(error, EngineError):  # an OSError may be gone next time, as a full disk
            with suppress(OSError):  # later processes do not try again
                workload.folder.mkdir(parents=True, exist_ok=True)
                _get_failure_file(name, workload).write_text(str(error), encoding="utf-8")
        if warns:
            reason = str(error).partition("\n")[0][:300]
            warn(
                f"engine={name!r} cannot compute this network, so torch computes it: {reason}",
                RuntimeWarning,
            )
        return TorchEngine(workload)
    with suppress(OSError):
        _get_failure_file(name, workload).unlink(missing_ok=True)
    return engine


def _count_free_axes(example: torch.Tensor) -> int:
    """Return the number of leading axes of variable length: items and, for tokens, positions."""
    return 2 if example.ndim == 2 and not example.is_floating_point() else 1


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Hide warnings of tracing, which do not matter, because the features are compared later."""

    def reject(record: logging.LogRecord) -> bool:
        return False

    # Tracing reads all properties, and transformers logs a warning if the loss is not set.
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(reject)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeFilter(reject)


class _PositionalInputs(torch.nn.Module):
    """Wrapper with positional inputs, for which torch takes dynamic shapes by position."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs)


def _export_to_onnx(workload: Workload, folder: Path) -> None:
    """Write the file of `OnnxEngine`; raise EngineError if torch cannot export the network."""
    example = workload.examples()[0]
    names = [f"input_{number}" for number in range(len(example))]
    # The number of positions is fixed in some networks of texts, such as those of CLIP.
    axes = (torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO)
    shapes = tuple(dict(enumerate(axes[: _count_free_axes(x)])) for x in example)
    try:
        with _ignore_warnings(), torch.inference_mode():
            torch.onnx.export(
                _PositionalInputs(workload.module),
                example,
                folder / ONNX_FILE,
                input_names=names,
                dynamo=True,
                dynamic_shapes=(shapes,),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises various exceptions for unsupported operations
        if isinstance(error, OSError) and error.errno in FULL_DISK:  # not about the network
            raise
        raise EngineError(f"torch cannot export the network to ONNX: {error}") from error


def _export_to_openvino(workload: Workload, folder: Path) -> None:
    """Write the file of `OpenVINOEngine`; raise EngineError if it cannot convert the network."""
    openvino = import_openvino()
    example = workload.examples()[0]
    try:
        with _ignore_warnings(), torch.inference_mode():
            model = openvino.convert_model(workload.module, example_input=example)
        for node, x in zip(model.inputs, example, strict=True):
            free = _count_free_axes(x)
            shape = [-1] * free + list(x.shape[free:])
            node.get_node().set_partial_shape(openvino.PartialShape(shape))
        model.validate_nodes_and_infer_types()
    except Exception as error:  # the converter raises various types, as the exporter does
        raise EngineError(f"OpenVINO cannot convert the network: {error}") from error
    try:
        openvino.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"OpenVINO cannot write the network: {error}") from error


_RUNTIMES: dict[str, tuple[Any, Callable[[Workload, Path], None]]] = {
    "onnx": (OnnxEngine, _export_to_onnx),
    "openvino": (OpenVINOEngine, _export_to_openvino),
}


def _load_or_export(name: str, workload: Workload) -> Engine:
    """Return an engine with a network's export, exporting the network if necessary.

    Raises EngineError if a new export is wrong, and OSError if not even a temporary folder can be
    written.
    """
    engine_class, export = _RUNTIMES[name]
    torch_engine = TorchEngine(workload._replace(dtype="float32"))
    # Compute before the export, so that errors of the network are not reported as the engine's.
    expected = [(inputs, torch_engine(inputs)) for inputs in workload.examples()]

    def load(folder: Path) -> Engine:
        engine = engine_class(workload, folder)
        _check_outputs(engine, expected, _TOLERANCE[workload.dtype])
        return engine

    target = _get_target(name, workload)
    if os.path.isdir(target):
        try:
            _verify_digests(target)
            return load(target)
        except WrongFeaturesError:  # a new export would give the same features
            raise
        except (EngineError, OSError, ValueError) as error:
            warn(
                f"The exported network in {str(target)!r} is damaged ({error}). It is exported "
                "again.",
                RuntimeWarning,
            )
            shutil.rmtree(target, ignore_errors=True)
    with ExitStack() as stack:
        try:
            workload.folder.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(write_folder_atomically(target))
        except OSError:  # without a writable folder, the export serves this process only
            temporary = tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True)
            target = folder = Path(stack.enter_context(temporary))
        export(workload, folder)
        engine = load(folder)
        if target != folder:
            _publish(folder, target)
        return engine


def _check_outputs(
    engine: Engine, expected: list[tuple[Inputs, np.ndarray]], tolerance: float
) -> None:
    """Raise WrongFeaturesError if an engine's features of the examples differ from torch's."""
    for inputs, reference in expected:
        features = engine(inputs)
        if features.shape != reference.shape or not np.isfinite(features).all():
            raise WrongFeaturesError(
                f"its features have NaN or infinity, or shape {features.shape} instead of "
                f"{reference.shape}"
            )
        norms = np.linalg.norm(features, axis=1), np.linalg.norm(reference, axis=1)
        cosine = (features * reference).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-12)
        norm_errors = np.abs(norms[0] / np.maximum(norms[1], 1e-12) - 1)
        difference = max(float((1 - cosine).max()), float(norm_errors.max()))
        if difference > tolerance:
            raise WrongFeaturesError(
                f"its features differ from torch's by {difference:.2g} (1 - cosine, or relative "
                f"error of the norm), more than {tolerance:g}"
            )


def _get_target(name: str, workload: Workload) -> Path:
    """Return the folder of an export, whose name changes with the versions of the libraries."""
    parts = (name, version(PACKAGES[name][0]), torch.__version__, _FORMAT, workload.key)
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return workload.folder / f"{name}-{digest}"


def _get_failure_file(name: str, workload: Workload) -> Path:
    target = _get_target(name, workload)
    return target.with_name(f"{target.name}.{workload.dtype}.failure.txt")


def _verify_digests(folder: Path) -> None:
    for name, digest in json.loads((folder / _DIGESTS).read_text()).items():
        if digest_file(folder / name).hex() != digest:
            raise EngineError(f"the digest of {name} is wrong")


def _publish(folder: Path, target: Path) -> None:
    """Add the digests, and move an export to its place unless another process put one there."""
    digests = {path.name: digest_file(path).hex() for path in sorted(folder.iterdir())}
    (folder / _DIGESTS).write_text(json.dumps(digests))
    try:
        os.replace(folder, target)
    except OSError:
        if not target.is_dir():
            warn(
                f"The exported network cannot be written to {str(target)!r}, so the next process "
                "exports it again. Make the folder writable.",
                RuntimeWarning,
            )
