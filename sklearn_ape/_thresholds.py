"""Thresholds of labels: a quantile without examples, the best F1 with some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve


def best_f1_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the score above which calling positives has the highest F1.

    Parameters
    ----------
    truth : ndarray of shape (n,)
        Zeros and ones, with at least one of the latter.
    scores : ndarray of shape (n,)
        Finite.

    Returns
    -------
    threshold : float
        Halfway between the two neighbouring scores; below the lowest if all are called.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape._thresholds import best_f1_threshold
    >>> best_f1_threshold(np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 3.0, 4.0]))
    2.0
    """
    precision, recall, cuts = precision_recall_curve(truth, scores)
    best = int(np.argmax(precision[:-1] * recall[:-1] / (precision[:-1] + recall[:-1] + 1e-12)))
    below = scores[scores < cuts[best]]
    if len(below):
        return float((cuts[best] + below.max()) / 2)
    return float(np.nextafter(cuts[best], -np.inf))


def fit_thresholds(truth: np.ndarray, scores: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return a threshold for each label.

    A label's own best threshold of few examples is mostly luck. With n positives and the
    shrinkage k, n / (n + k) of it is its own best one, and the rest the one that is best for all
    labels together.

    Parameters
    ----------
    truth : ndarray of shape (n, n_labels)
        Zeros and ones.
    scores : ndarray of shape (n, n_labels)
        Finite, and comparable between labels.
    shrinkage : float
        In positives.

    Returns
    -------
    thresholds : ndarray of shape (n_labels,)
        0 where nothing is known: no label has a positive.
    """
    n_labels = truth.shape[1]
    if not truth.any():
        return np.zeros(n_labels)
    common = best_f1_threshold(truth.ravel(), scores.ravel())
    n_positive = truth.sum(axis=0)
    own = np.full(n_labels, common)
    for label in np.flatnonzero(n_positive):
        own[label] = best_f1_threshold(truth[:, label], scores[:, label])
    weight = n_positive / np.maximum(n_positive + shrinkage, 1e-12)
    return weight * own + (1 - weight) * common


def shares_of(prevalence: float | Mapping[Any, float], labels: Sequence[Any]) -> list[float]:
    """Return the share of images that each label is to hold for."""
    if not isinstance(prevalence, Mapping):
        return [prevalence] * len(labels)
    absent = [label for label in labels if label not in prevalence]
    if absent:
        raise ValueError(f"prevalence has no share for the labels {absent[:5]}.")
    return [prevalence[label] for label in labels]


def check_prevalence(prevalence: Any) -> None:
    """Refuse what are no shares."""
    shares = prevalence.values() if isinstance(prevalence, Mapping) else [prevalence]
    for share in shares:
        if not isinstance(share, float | np.floating) or not 0 < share < 1:
            raise ValueError(f"prevalence must be above 0 and below 1, not {share!r}.")
