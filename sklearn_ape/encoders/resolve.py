"""Encoders from names, and checks of encoders that are parameters and of their features."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.utils.validation import _num_samples

from ..utils.sklearn_compat import unfreeze
from ..utils.validation import as_numeric
from ._open_clip import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from ._sentence_transformers import SentenceTransformerEncoder, SentenceTransformerImageEncoder
from ._timm import TimmImageEncoder
from ._transformers import TransformersImageEncoder, TransformersTextEncoder
from .weights import PACKAGED

_CLASSES: dict[str, dict[str, Any]] = {
    "image": {
        "timm": TimmImageEncoder,
        "transformers": TransformersImageEncoder,
        "open_clip": OpenCLIPImageEncoder,
        "sentence-transformers": SentenceTransformerImageEncoder,
    },
    "text": {
        "transformers": TransformersTextEncoder,
        "open_clip": OpenCLIPTextEncoder,
        "sentence-transformers": SentenceTransformerEncoder,
    },
}


def split_class_and_model(name: str, modality: str) -> tuple[Any, str]:
    """Return the encoder class and the ``model_name`` for a name.

    A name may begin with ``"timm:"``, ``"transformers:"``, ``"open_clip:"`` or
    ``"sentence-transformers:"``. Without a prefix, an image model is of timm and a text model of
    transformers. ValueError is raised for a mistyped prefix.
    """
    classes = _CLASSES[modality]
    prefix, colon, model_name = name.partition(":")
    if colon and prefix in classes and model_name:
        return classes[prefix], model_name
    # Not any unknown prefix: timm has its own, "hf-hub:" and "local-dir:".
    similar = get_close_matches(prefix, classes, n=1) if colon and "/" not in prefix else []
    if similar:
        raise ValueError(
            f"{name!r} is not the name of an encoder. Did you mean '{similar[0]}:MODEL', with the "
            f"name of a model of that library for {modality}s?"
        )
    return next(iter(classes.values())), name


def resolve_encoder(encoder: Any, modality: str, parameter: str | None = None) -> Any:
    """Return a clone of an encoder, or a new encoder for a name of `split_class_and_model`.

    Raises ValueError for an unknown name or an encoder of the other modality, and TypeError if the
    encoder is not a transformer. The messages begin with the parameter, such as "image_encoder".
    """
    parameter = parameter or f"{modality}_encoder"
    if isinstance(encoder, str):
        return _make_encoder(encoder, modality, parameter)
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
            f"{type(encoder).__name__}. {expected}, or wrap a function that maps a list of "
            f"{modality}s to an array: FunctionTransformer({function})."
        )
    if not hasattr(encoder, "get_params"):
        raise TypeError(
            f"{parameter} must have get_params, which clone needs, besides fit and transform. "
            f"Derive {type(encoder).__name__} from sklearn.base.BaseEstimator."
        )
    inner = unfreeze(encoder)
    if getattr(inner, "_modality", modality) != modality:
        raise ValueError(
            f"{parameter} is a {type(inner).__name__}, which encodes {inner._modality}s, not "
            f"{modality}s. {expected}."
        )
    return clone(encoder)


def _make_encoder(name: str, modality: str, parameter: str) -> Any:
    encoder_class, model_name = split_class_and_model(name, modality)
    packaged = PACKAGED.get(model_name)
    if packaged is not None and packaged.modality != modality:
        raise ValueError(
            f"{parameter}={name!r} encodes {packaged.modality}s, not {modality}s. Pass it as "
            f"{packaged.modality}_encoder."
        )
    encoder = encoder_class(model_name)
    try:
        encoder._check_parameters()
    except ValueError as error:
        names = [key for key, weights in PACKAGED.items() if weights.modality == modality]
        raise ValueError(
            f"{parameter}={name!r} is not the name of an encoder of {modality}s. Pass a short "
            f"name ({', '.join(names)}; see list_encoders), 'open_clip:ARCHITECTURE/WEIGHTS', a "
            f"model_name of {encoder_class.__name__}, or an encoder. {error}"
        ) from error
    return encoder


def describe_missing_encoder(lacks_both: bool, has_init: bool) -> str:
    """Return the error message for captions without a text encoder.

    `lacks_both` means images without an image encoder as well, and `has_init` that the parameter
    ``init`` can give the encoders of the starter model.
    """
    if not lacks_both:
        return (
            "y holds captions, and text_encoder is None. Pass text_encoder="
            "TransformersTextEncoder('all-MiniLM-L6-v2'), or features of the captions."
        )
    hint = ", or init='starter' to extend the starter model" if has_init else ""
    return (
        "X holds images and y holds captions, and image_encoder and text_encoder are None. Pass "
        f"image_encoder='efficientnet_lite0' and text_encoder='all-MiniLM-L6-v2'{hint}."
    )


def encode_items(encoder: Any, items: Any, modality: str) -> Any:
    """Return dense features of images or texts; raise ValueError unless there is a row for each.

    Encoders may be any transformers, and may return tensors of torch. Rows that are missing or
    added would shift all others.
    """
    features = as_numeric(encoder.transform(items), f"Output of {modality}_encoder")
    if hasattr(features, "columns"):  # with set_config(transform_output="pandas")
        features = features.to_numpy()
    elif issparse(features):
        features = features.toarray()
    n_items = _num_samples(items)  # len(items) raises for a sparse matrix
    if np.ndim(features) and len(features) != n_items:
        raise ValueError(
            f"{modality}_encoder returned {len(features)} rows of features for {n_items} "
            f"{modality}s. Pass an encoder that returns one row per {modality}."
        )
    return features
