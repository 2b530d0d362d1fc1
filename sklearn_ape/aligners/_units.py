"""Rows of length 1, whatever the scale of their numbers."""

from __future__ import annotations

import numpy as np

from .._unit import _LEAST, _MOST


def unit_rows(features: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Scale rows to length 1; those no longer than `least` become zero.

    Parameters
    ----------
    features : ndarray of shape (n, n_features)
        Of floats.
    least : float, default=0.0
        In the units of the features.

    Returns
    -------
    features : ndarray of shape (n, n_features)
        A copy.
    """
    largest = np.maximum(features.max(axis=1, keepdims=True), -features.min(axis=1, keepdims=True))
    is_ordinary = (largest == 0) | ((largest > _LEAST) & (largest < _MOST))
    scale = np.ones_like(largest)
    if not is_ordinary.all():  # squares would leave float32; a power of two rounds nothing
        scale = np.where(is_ordinary, 1, np.ldexp(scale, np.frexp(largest)[1] - 1))
        features = features / scale
    length = np.linalg.norm(features, axis=1, keepdims=True)
    known = length * scale > least if least else length > 0
    return np.where(known, features / np.where(known, length, 1), 0)
