"""The aligner that the page starts with, and the encoders in it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from .._aligner_choice import chosen_aligner, text_side
from ..datasets import get_data_home
from ..encoders import HeadPairs, classifier_head_pairs
from ._progress import Report

_AT_ONCE = 32


class Model(NamedTuple):
    """A fitted aligner of images and texts, and names of classes where it came with some."""

    aligner: Any
    labels: list[str] | None = None


def load_model(aligner: Any) -> Model:
    """Return what the person who starts the page named.

    Parameters
    ----------
    aligner : None, str, path-like or estimator
        None is the starter model, ``"open_clip:..."`` a CLIP; any other str is a saved folder or
        a hub id. An estimator is an aligner, a Pipeline that ends in one, or a classifier or
        retriever around it.

    Returns
    -------
    model : Model
        Takes images and texts.

    Raises
    ------
    NotFittedError
        When it is not fitted.
    ValueError
        When it takes features instead of images and texts.
    """
    if aligner is not None and not hasattr(aligner, "fit") and not _is_clip(aligner):
        from .. import load_pretrained

        aligner = load_pretrained(aligner)
    labels = None
    while hasattr(aligner, "aligner"):  # a classifier or a retriever
        if hasattr(aligner, "predict_proba"):
            labels = [str(label) for label in getattr(aligner, "classes_", [])] or None
        aligner = getattr(aligner, "aligner_", aligner.aligner)
    aligner = chosen_aligner(aligner)
    check_is_fitted(aligner)
    if hasattr(aligner, "best_estimator_"):  # a search
        aligner = aligner.best_estimator_
    if isinstance(aligner, FrozenEstimator):
        aligner = aligner.estimator
    image_encoder, text_encoder = encoders_of(aligner)
    if image_encoder is None or text_encoder is None:
        side = "image" if image_encoder is None else "text"
        raise ValueError(
            f"This aligner was fitted on features and has no {side} encoder, and the page takes "
            "images and words: pass make_pipeline(image_encoder, "
            "APEAligner(text_encoder=text_encoder)).fit(images, captions)."
        )
    # What visitors send is to be forgotten, whatever cache the aligner came with.
    return Model(with_caches(aligner, None, None), labels)


def _is_clip(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("open_clip:")


def encoders_of(aligner: Any) -> tuple[Any, Any]:
    """Return the encoders of images and of texts in a fitted aligner, None where it has none."""
    inner = text_side(aligner)
    image, text = (
        getattr(inner, f"{side}_encoder_", getattr(inner, f"{side}_encoder", None))
        for side in ("image", "text")
    )
    if image is None and isinstance(aligner, Pipeline) and len(aligner.steps) > 1:
        image = aligner.steps[0][1] if len(aligner.steps) == 2 else aligner[:-1]
    return image, text


def with_caches(aligner: Any, image: Any, text: Any) -> Any:
    """Return a copy of a fitted aligner whose encoders keep features in these caches.

    Weights and solutions are shared with the original.
    """
    changed = copy.copy(aligner)
    if isinstance(changed, Pipeline):
        changed.steps = [(name, with_caches(step, image, text)) for name, step in changed.steps]
        return changed
    for name, cache in (("image_encoder_", image), ("text_encoder_", text)):
        if hasattr(changed, name):
            setattr(changed, name, with_caches(getattr(changed, name), cache, cache))
    if "cache" in changed.get_params(deep=False):  # an encoder, or CLIP's two in one
        changed.cache = image
    return changed


def encode(encoder: Any, items: Sequence[Any], report: Report, what: str) -> np.ndarray:
    """Encode items a few at a time, so that others' requests come in between."""
    parts = []
    for start in range(0, len(items), _AT_ONCE):
        report(start / len(items), f"{what} {start + 1} of {len(items)}")
        parts.append(encoder.transform(items[start : start + _AT_ONCE]))
    return np.concatenate(parts)


def head_pairs_of(image_encoder: Any, text_encoder: Any, report: Report) -> HeadPairs | None:
    """Return the names that the image encoder's own classes have, with features of them.

    None for an encoder without a classification head. They are kept on disk: the same names are
    read at every start.
    """
    try:
        pairs = classifier_head_pairs(image_encoder)
    except (ValueError, TypeError):
        return None
    texts = [text for texts in pairs.texts for text in texts]
    owners = np.repeat(np.arange(len(pairs.texts)), [len(texts) for texts in pairs.texts])
    unique = list(dict.fromkeys(texts))
    reader = clone(text_encoder)
    if "cache" in reader.get_params(deep=False):
        reader.set_params(cache=get_data_home() / "features")
    features = encode(reader, unique, report, "Reading class name")
    row = {text: number for number, text in enumerate(unique)}
    return HeadPairs(pairs.weights, features[[row[text] for text in texts]], owners)
