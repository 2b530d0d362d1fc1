"""Starter model: the fitted aligner that is installed with the package, and its file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..devices import default_state
from ..encoders import TimmImageEncoder, TransformersTextEncoder
from ..persistence.files import load_json, read_tensors
from ..persistence.serialize import Deserializer
from .ape import APEAligner

STARTER_FOLDER = Path(__file__).with_name("starter_model")

# Version of the starter model's file.
STARTER_FORMAT = 2


def make_starter_encoders(**options: Any) -> tuple[TimmImageEncoder, TransformersTextEncoder]:
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
        The fitted aligner, with its encoders. Every call returns the same object, so that its
        `fit` raises an error. As a step of a Pipeline, use ``FrozenEstimator(load_starter())``.
        Make a ``copy.deepcopy`` before you change parameters of its encoders or call `set_output`.

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
    return unpack_starter(STARTER_FOLDER / "model.safetensors")


def is_starter(aligner: Any) -> bool:
    """Return whether an aligner is the object that `load_starter` returns."""
    return load_starter.cache_info().currsize > 0 and aligner is load_starter()


@default_state()
def unpack_starter(path: Path) -> APEAligner:
    """Return the fitted aligner of a file that `benchmarks.build_starter.pack_starter` wrote."""
    tensors, text = read_tensors(path)
    description = load_json(text, path.name)
    if description["format"] != STARTER_FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {description['format']}, and this version of "
            f"sklearn-ape reads format {STARTER_FORMAT}. Reinstall sklearn-ape."
        )
    deserializer = Deserializer(tensors, {})
    aligner = deserializer.decode_estimator(description["model"])
    deserializer.close()
    return aligner
