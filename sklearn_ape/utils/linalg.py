"""L2-normalization, means and covariances in blocks, and fingerprints of arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import gen_batches
from torch import nn

_MOST_ROWS = 1000


def evenly_spaced(n_rows: int) -> np.ndarray:
    """Return the rows that stand for all in a bank: 1,000 at equal distances, or all."""
    return np.linspace(0, n_rows - 1, min(n_rows, _MOST_ROWS)).astype(np.intp)


# Squares of numbers between these, and their sums, are numbers of float32.
_LEAST, _MOST = 1e-12, 1e12


def l2_normalize(rows: torch.Tensor) -> torch.Tensor:
    """Scale rows to length 1; a row of zeros stays.

    torch's own `normalize` takes rows shorter than 1e-12 for zeros, and those whose squares
    leave float32 become zeros. Ordinary rows are scaled by it to the same bits.

    Parameters
    ----------
    rows : torch.Tensor of shape (..., n)
        Features or embeddings.

    Returns
    -------
    rows : torch.Tensor of the same shape
        Of length 1.
    """
    return nn.functional.normalize(rescale_extreme_rows(rows), dim=-1)


def rescale_extreme_rows(
    rows: torch.Tensor, least: float = _LEAST, most: float = _MOST
) -> torch.Tensor:
    """Divide rows of tiny or huge numbers by a power of two, which rounds nothing.

    Parameters
    ----------
    rows : torch.Tensor of shape (..., n)
        Features or embeddings.
    least, most : float
        A row whose largest number lies between them stays as it is.

    Returns
    -------
    rows : torch.Tensor of the same shape
        Those that were divided have a largest number from 1 to 2.
    """
    largest = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=-1, keepdim=True)
    stays = (largest == 0) | ((largest > least) & (largest < most))
    if not torch.compiler.is_compiling() and bool(stays.all()):  # an export is for all rows
        return rows
    return rows / torch.where(stays, 1.0, torch.exp2(torch.floor(torch.log2(largest))))


def normalize_rows(features: np.ndarray, least: float = 0.0) -> np.ndarray:
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


def fingerprint(*arrays: np.ndarray) -> str:
    """Return a digest of arrays: of their numbers, shapes and types."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
