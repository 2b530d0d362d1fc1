"""The starter model: an aligner that ships with the package, read without pickle."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ._caller_state import default_state
from .aligners import KernelAligner
from .aligners._bank import Bank
from .aligners._fitted_images import FittedImages
from .encoders import TimmImageEncoder, TransformersTextEncoder
from .heads import ClosedFormHead, KernelMap, TwoTower, WhitenedMap

FOLDER = Path(__file__).with_name("starter")
_FORMAT = 1


def encoders(**options: Any) -> tuple[TimmImageEncoder, TransformersTextEncoder]:
    """Return the encoders that the starter model was made with; options such as ``cache``."""
    return (
        TimmImageEncoder("efficientnet_lite0", pooling="gem", crop="pad", **options),
        TransformersTextEncoder("all-MiniLM-L6-v2", **options),
    )


@cache
def load_starter() -> KernelAligner:
    """Return the starter model, a fitted aligner that ships with the package.

    Estimators with ``aligner=None`` use it. It takes images and texts.

    Returns
    -------
    aligner : KernelAligner
        Fitted, with its encoders. Always the same object: make a ``copy.deepcopy`` before you
        change parameters of its encoders.

    Raises
    ------
    ImportError
        When the packages that carry the encoders' weights are not installed.

    See Also
    --------
    load_pretrained : Load an aligner that was saved.

    Examples
    --------
    >>> from sklearn_ape import load_starter
    >>> load_starter().transform_text(["a cat", "a dog"]).shape
    (2, 640)
    """
    aligner = unpacked(FOLDER / "model.safetensors")
    aligner.image_encoder_._check_parameters()
    aligner.text_encoder_._check_parameters()
    return aligner


def packed(aligner: KernelAligner) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return an aligner as small tensors and their description.

    Anchors and coefficients, nearly all of it, become 8-bit integers with a scale a row.
    """
    image, text = (
        cast(Any, head).base for head in (aligner.module_.image_head, aligner.module_.text_head)
    )
    tensors = {
        "image_mean": image.mean.numpy(),
        "image_directions": image.directions.numpy().astype(np.float16),
    }
    tensors["fitted_images"] = aligner._fitted_images.keys
    rows = {
        "anchors": text.anchors.numpy(),
        "coefficients": text.coefficients.numpy(),
        "bank_image": aligner.bank_.image,
        "bank_text": aligner.bank_.text,
    }
    for name, values in rows.items():
        tensors[name], tensors[f"{name}_scale"] = _eight_bit(values)
    described = {
        "format": _FORMAT,
        "gamma": aligner.gamma_,
        "logit_scale": aligner.logit_scale_,
    }
    # One entry: several are written in any order, and equal models should be equal files.
    return tensors, {"sklearn_ape": json.dumps(described)}


@default_state()
def unpacked(path: Path) -> KernelAligner:
    """Return a fitted aligner from a file of `packed` tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        described = json.loads(file.metadata()["sklearn_ape"])
        if described["format"] != _FORMAT:
            raise ValueError(
                f"{str(path)!r} is of format {described['format']}, this version of sklearn-ape "
                f"reads {_FORMAT}: reinstall sklearn-ape."
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    rows = {
        name: tensors[name].astype(np.float32) * tensors[f"{name}_scale"][:, None]
        for name in ("anchors", "coefficients", "bank_image", "bank_text")
    }
    anchors = torch.nn.functional.normalize(torch.from_numpy(rows["anchors"]))
    directions = tensors["image_directions"].astype(np.float32)
    module = TwoTower(
        ClosedFormHead(WhitenedMap(tensors["image_mean"], directions)),
        ClosedFormHead(KernelMap(anchors, rows["coefficients"], described["gamma"])),
    )
    image_encoder, text_encoder = encoders()
    aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
    aligner._keep(module.eval())
    aligner.logit_scale_ = described["logit_scale"]
    aligner.image_encoder_, aligner.text_encoder_ = encoders()
    aligner.n_features_in_ = len(tensors["image_mean"])
    aligner.n_text_features_in_ = anchors.shape[1]
    aligner.bank_ = Bank.of(rows["bank_image"], rows["bank_text"])
    aligner._fitted_images = FittedImages(tensors["fitted_images"], are_contents=True)
    return aligner


def _eight_bit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(values).max(axis=1) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(values / scale[:, None]).astype(np.int8), scale
