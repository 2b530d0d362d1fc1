"""ONNX Runtime as an engine."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from ._base import EngineError, Inputs, Workload, n_free_axes

_ONNX_FILE = "model.onnx"


class OnnxEngine:
    """Computes an exported network with ONNX Runtime, in float32 on the CPU.

    Parameters
    ----------
    workload : Workload
        What was exported.
    folder : pathlib.Path
        Where `export` wrote it.
    """

    name = "onnx"
    concurrent = True

    def __init__(self, workload: Workload, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # every thread that calls is one
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                folder / _ONNX_FILE, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exceptions have no common base
            raise EngineError(f"ONNX Runtime cannot load the network: {error}") from error
        self._names = [put.name for put in self._session.get_inputs()]

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Return the features of a batch."""
        named = zip(self._names, (x.numpy() for x in inputs), strict=True)
        return self._session.run(None, dict(named))[0]


class _Positional(torch.nn.Module):
    """Takes inputs by place whatever the network calls them, so that shapes are given by place."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return what the network does."""
        return self.module(*inputs)


def export_to_onnx(workload: Workload, folder: Path) -> None:
    """Write a network as ONNX."""
    example = workload.examples()[0]
    names = [f"input_{number}" for number in range(len(example))]
    shapes = tuple(dict.fromkeys(range(n_free_axes(x)), torch.export.Dim.DYNAMIC) for x in example)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Positional(workload.module),
                example,
                folder / _ONNX_FILE,
                input_names=names,
                dynamo=True,
                dynamic_shapes=(shapes,),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises anything on what it cannot express
        raise EngineError(f"torch cannot export the network to ONNX: {error}") from error
