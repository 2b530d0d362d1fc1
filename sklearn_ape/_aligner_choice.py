"""The aligner that a classifier's ``aligner`` parameter stands for."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from ._starter import load_starter

_CLIP = "open_clip:"


def chosen_aligner(aligner: Any) -> Any:
    """Return the aligner that a name stands for; an aligner as it is.

    Parameters
    ----------
    aligner : None, str or estimator
        None is the starter model; ``"open_clip:"`` and the name of an OpenCLIP model, or an
        estimator.

    Returns
    -------
    aligner : estimator
        For one name always the same object, so that what is computed for it is kept.

    Raises
    ------
    ValueError
        When the name stands for nothing; the message lists the forms.
    """
    if aligner is None:
        return load_starter()
    return _named(aligner) if isinstance(aligner, str) else aligner


@lru_cache(maxsize=8)
def _named(name: str) -> Any:
    from .aligners import CLIPAligner

    if not name.startswith(_CLIP) or name == _CLIP:
        saved = ""
        if "/" in name or os.path.isdir(name):
            saved = f" A saved one is loaded first: aligner=load_pretrained({name!r})."
        raise ValueError(
            f"aligner={name!r} names no aligner.{saved} Expected 'open_clip:ViT-B-32/openai' "
            "('open_clip:', then architecture/weights, a hub name or a folder), or an estimator: "
            "a fitted APEAligner, a Pipeline that ends in one, ..."
        )
    aligner = CLIPAligner(name.removeprefix(_CLIP))
    aligner.text_encoder._check_parameters()
    return aligner


def text_side(aligner: Any) -> Any:
    """Return the estimator that embeds texts: the aligner within a Pipeline, a search, ...

    Raises
    ------
    TypeError
        When there is none.
    """
    inner = aligner
    while not hasattr(inner, "transform_text"):
        if isinstance(inner, Pipeline):
            inner = inner.steps[-1][1]
        elif isinstance(inner, FrozenEstimator):
            inner = inner.estimator
        elif hasattr(inner, "best_estimator_"):
            inner = inner.best_estimator_
        elif hasattr(inner, "estimator") and hasattr(inner, "fit"):
            inner = inner.estimator
        else:
            raise TypeError(
                f"aligner must be an aligner such as APEAligner, or a Pipeline that ends in one, "
                f"not {type(aligner).__name__}."
            )
    return inner
