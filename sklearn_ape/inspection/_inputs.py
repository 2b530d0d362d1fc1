"""What displays take: aligners alone or in Pipelines, images or features."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from .._aligner_choice import chosen_aligner, text_side
from .._sequences import check_sequence


def aligner_and_input(estimator: Any, X: Any) -> tuple[Any, Any]:
    """Return the aligner within an estimator, and X as that aligner takes it.

    Parameters
    ----------
    estimator : estimator, str or None
        An aligner, or a Pipeline or search that ends in one; a name or None as
        `ZeroShotClassifier` takes them.
    X : sequence of images, or array-like of shape (n_samples, n_features)
        What the estimator takes.

    Raises
    ------
    TypeError
        When there is no aligner in it.
    """
    estimator = chosen_aligner(estimator)
    aligner = text_side(estimator)
    while estimator is not aligner:
        if isinstance(estimator, Pipeline):
            if len(estimator.steps) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator.steps[-1][1]
        elif isinstance(estimator, FrozenEstimator) or not hasattr(estimator, "best_estimator_"):
            estimator = estimator.estimator
        else:
            estimator = estimator.best_estimator_
    return aligner, X


def images_in(X: Any) -> list[Any] | None:
    """Return the images in X, None where X is a table of features."""
    if hasattr(X, "to_pylist"):
        return X.to_pylist()
    if hasattr(X, "columns") or getattr(X, "ndim", 1) == 2:
        return None
    items = list(X)
    is_row = items and isinstance(items[0], list | tuple | np.ndarray) and np.ndim(items[0]) == 1
    return None if is_row else items


def texts_in(y: Any) -> list[str] | None:
    """Return the texts in y, None where y is features."""
    items = images_in(y)
    return items if items and all(isinstance(item, str) for item in items) else None


def checked_names(names: Any, n: int, what: str, of: str) -> list[Any] | None:
    """Return names or images as a list, refusing another number of them than there are."""
    if names is None:
        return None
    check_sequence(names, what, of)
    items = list(names)
    if len(items) != n:
        raise ValueError(f"There are {len(items)} {what} for {n} {of}s: pass one for each.")
    return items


def checked_pairs(pairs: Any, n_images: int, n_texts: int) -> np.ndarray:
    """Return pairs as an array of shape (n_pairs, 2) whose rows exist.

    None pairs what stands at the same place, which needs as many images as texts.
    """
    if pairs is None:
        if n_images != n_texts:
            raise ValueError(
                f"There are {n_images} images and {n_texts} texts: pass pairs, an array of "
                "shape (n_pairs, 2) of rows that belong together."
            )
        return np.column_stack([np.arange(n_images)] * 2)
    checked = np.asarray(pairs)
    if checked.size == 0:
        return np.empty((0, 2), dtype=int)
    if checked.ndim != 2 or checked.shape[1] != 2 or checked.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must be integers of shape (n_pairs, 2), not {checked.dtype} of shape "
            f"{checked.shape}."
        )
    absent = np.flatnonzero(((checked < 0) | (checked >= (n_images, n_texts))).any(axis=1))
    if absent.size:
        raise ValueError(
            f"Pair {absent[0]} is of rows {checked[absent[0]].tolist()}, and there are {n_images} "
            f"images and {n_texts} texts."
        )
    return checked
