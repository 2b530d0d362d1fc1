"""Encoders made from names."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.base import clone

from ..utils.sklearn_compat import unfreeze
from ._open_clip import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from ._timm import TimmImageEncoder
from ._transformers import TransformersImageEncoder, TransformersTextEncoder
from .weights import PACKAGED

_CLASSES: dict[str, dict[str, Any]] = {
    "image": {
        "timm": TimmImageEncoder,
        "transformers": TransformersImageEncoder,
        "open_clip": OpenCLIPImageEncoder,
    },
    "text": {"transformers": TransformersTextEncoder, "open_clip": OpenCLIPTextEncoder},
}


def class_and_model(name: str, modality: str) -> tuple[Any, str]:
    """Return the class of encoder that a name stands for, and its ``model_name``.

    Parameters
    ----------
    name : str
        ``"timm:"``, ``"transformers:"`` or ``"open_clip:"`` and what that class takes as
        ``model_name``. Without one of these, it is a model of timm, or of transformers for texts.
    modality : {"image", "text"}
        The kind of items.

    Returns
    -------
    encoder : type
        A class of `sklearn_ape.encoders`.
    model_name : str
        The rest of the name.
    """
    classes = _CLASSES[modality]
    prefix, colon, model_name = name.partition(":")
    if colon and prefix in classes and model_name:
        return classes[prefix], model_name
    return next(iter(classes.values())), name


def resolve_encoder(encoder: Any, modality: str, parameter: str | None = None) -> Any:
    """Return the unfitted encoder that a parameter of an estimator stands for.

    Parameters
    ----------
    encoder : transformer or str
        The parameter's value. A name means the class of `class_and_model` with its defaults.
    modality : {"image", "text"}
        The kind of items.
    parameter : str or None, default=None
        Name of the parameter, for messages. None is ``"image_encoder"`` or ``"text_encoder"``.

    Returns
    -------
    encoder : transformer
        A clone, or a new encoder.

    Raises
    ------
    ValueError
        When no encoder has that name, or it encodes the other modality.
    TypeError
        When it is not a transformer.
    """
    parameter = parameter or f"{modality}_encoder"
    if isinstance(encoder, str):
        return _named(encoder, modality, parameter)
    example = next(iter(_CLASSES[modality].values())).__name__
    expected = f"Pass an encoder such as {example}() or its name"
    if isinstance(encoder, type):
        raise TypeError(
            f"{parameter} must be an encoder, not the class {encoder.__name__}. Pass an object, "
            f"{encoder.__name__}()."
        )
    is_transformer = hasattr(encoder, "fit") and hasattr(encoder, "transform")
    if isinstance(encoder, torch.nn.Module) or not is_transformer:
        function = "model.encode" if hasattr(encoder, "encode") else "encode"
        raise TypeError(
            f"{parameter} must be a transformer of scikit-learn or a name, not "
            f"{type(encoder).__name__}. {expected}, or put a function that turns a list of "
            f"{modality}s into an array into a transformer, FunctionTransformer({function})."
        )
    if not hasattr(encoder, "get_params"):
        raise TypeError(
            f"{parameter} has fit and transform, but not get_params, which clone needs. Derive "
            f"{type(encoder).__name__} from sklearn.base.BaseEstimator."
        )
    inner = unfreeze(encoder)
    if getattr(inner, "_modality", modality) != modality:
        raise ValueError(
            f"{parameter} is a {type(inner).__name__}, which encodes {inner._modality}s, not "
            f"{modality}s. {expected}."
        )
    return clone(encoder)


def _named(name: str, modality: str, parameter: str) -> Any:
    kind, model_name = class_and_model(name, modality)
    packaged = PACKAGED.get(model_name)
    if packaged is not None and packaged.modality != modality:
        raise ValueError(
            f"{parameter}={name!r} names an encoder of {packaged.modality}s, not of {modality}s. "
            f"Pass it as {packaged.modality}_encoder."
        )
    encoder = kind(model_name)
    try:
        encoder._check_parameters()
    except ValueError as error:
        short = [known for known, weights in PACKAGED.items() if weights.modality == modality]
        raise ValueError(
            f"{parameter}={name!r} does not name an encoder of {modality}s. Pass a short name "
            f"({', '.join(short)}; see list_encoders), 'open_clip:ARCHITECTURE/WEIGHTS', what "
            f"{kind.__name__} takes as model_name, or an encoder. {error}"
        ) from error
    return encoder
