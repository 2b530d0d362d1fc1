"""Means and covariances in double precision, a bounded number of rows at a time.

Features are arrays, or `StoredRows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

_ROWS_AT_ONCE = 8192


def mean(features: Any, rows: np.ndarray) -> np.ndarray:
    """Return the mean of some rows, which may repeat."""
    parts = [part.sum(axis=0) for part in centered(features, rows, np.zeros(features.shape[1]))]
    return np.sum(parts, axis=0) / len(rows)


def covariance(
    left: Any,
    right: Any,
    rows: tuple[np.ndarray, np.ndarray],
    means: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return the covariance of row rows[0][i] of the one with row rows[1][i] of the other."""
    total = np.zeros((left.shape[1], right.shape[1]))
    both = zip(centered(left, rows[0], means[0]), centered(right, rows[1], means[1]), strict=True)
    for a, b in both:
        total += a.T @ b
    return total / len(rows[0])


def centered(features: Any, rows: np.ndarray, around: np.ndarray) -> Iterator[np.ndarray]:
    """Yield some rows less their mean, in double precision."""
    for some in gen_batches(len(rows), _ROWS_AT_ONCE):
        yield features[rows[some]] - around
