"""Starter model: the fitted aligner that is installed with the package, and its file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..devices import default_state
from ..encoders import TimmImageEncoder, TransformersTextEncoder
from ..persistence.files import read_tensors, write_tensors
from ..persistence.serialize import Deserializer, Serializer, dump_json, load_json
from .ape import APEAligner

STARTER_FOLDER = Path(__file__).with_name("starter_model")

# Version of the starter model's file.
_STARTER_FORMAT = 2

_SCALE_SUFFIX = " (scale)"


def starter_encoders(**options: Any) -> tuple[TimmImageEncoder, TransformersTextEncoder]:
    """Return the encoders of the starter model, with options such as ``cache``."""
    return (
        TimmImageEncoder("efficientnet_lite0", pooling="gem", crop="pad", **options),
        TransformersTextEncoder("all-MiniLM-L6-v2", **options),
    )


@cache
def load_starter() -> APEAligner:
    """Return the starter model, a fitted aligner that is installed with the package.

    Estimators with ``aligner=None`` use it. It takes images and texts.

    Returns
    -------
    aligner : APEAligner
        The fitted aligner, with its encoders. Every call returns the same object. Make a
        ``copy.deepcopy`` before you change parameters of its encoders.

    Raises
    ------
    ImportError
        If the packages with the weights of the encoders are not installed.

    See Also
    --------
    load_pretrained : Load a saved aligner.

    Examples
    --------
    >>> from sklearn_ape import load_starter
    >>> load_starter().transform_text(["a cat", "a dog"]).shape
    (2, 640)
    """
    aligner = unpack_starter(STARTER_FOLDER / "model.safetensors")
    aligner.image_encoder_._check_parameters()
    aligner.text_encoder_._check_parameters()
    return aligner


def pack_starter(aligner: APEAligner, path: Path) -> None:
    """Write a fitted aligner to a file in which matrices are 8-bit integers.

    Parameters
    ----------
    aligner : APEAligner
        Fitted aligner. The values of its matrices are rounded in place, so that it is the aligner
        that `unpack_starter` returns.
    path : pathlib.Path
        File to write.
    """
    for tensor in (*aligner.module_.parameters(), *aligner.module_.buffers()):
        if tensor.ndim == 2:
            integers, scale = _quantize(tensor.detach().numpy())
            tensor.data.copy_(torch.from_numpy(integers * scale[:, None]))
    aligner._set_module(aligner.module_, aligner.logit_scale_)
    serializer = Serializer()
    config = serializer.encode_estimator(aligner, "aligner")
    tensors = {}
    for name, values in serializer.tensors.items():
        tensors[name] = values
        if values.ndim == 2 and values.dtype == np.float32:
            tensors[name], tensors[name + _SCALE_SUFFIX] = _quantize(values)
    write_tensors(path, tensors, dump_json({"format": _STARTER_FORMAT, "model": config}))


@default_state()
def unpack_starter(path: Path) -> APEAligner:
    """Return the fitted aligner of a file that `pack_starter` wrote."""
    tensors, text = read_tensors(path)
    description = load_json(text, path.name)
    if description["format"] != _STARTER_FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {description['format']}, and this version of "
            f"sklearn-ape reads format {_STARTER_FORMAT}. Reinstall sklearn-ape."
        )
    for scale_name in [name for name in tensors if name.endswith(_SCALE_SUFFIX)]:
        name = scale_name.removesuffix(_SCALE_SUFFIX)
        tensors[name] = tensors[name] * tensors.pop(scale_name)[:, None]
    deserializer = Deserializer(tensors, {})
    aligner = deserializer.decode_estimator(description["model"])
    deserializer.close()
    return aligner


def _quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as 8-bit integers, and the scale of every row, which preserves its norm."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    integers = np.rint(127 * (values / np.where(largest > 0, largest, 1))).astype(np.int8)
    norms = np.linalg.norm(integers.astype(np.float64), axis=1)
    scale = np.linalg.norm(values.astype(np.float64), axis=1) / np.where(norms > 0, norms, 1)
    # With 12 bits, products of scale and integers are exact, so that quantizing them again gives
    # the same values.
    mantissa, exponent = np.frexp(scale)
    return integers, np.ldexp(np.rint(mantissa * 2**12) / 2**12, exponent).astype(np.float32)
