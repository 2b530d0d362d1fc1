"""Closed-form maps of both sides: whitened pictures, and texts that are sent among them."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ..heads import BaseMap, KernelMap, LinearMap, WhitenedMap
from ._moments import covariance, mean
from ._pairs import Pairs

# Found on held-out folders of Open Clip Art.
RIDGE = 0.3
WHITENING = 0.03
MOST_ANCHORS = 16_384

_NO_VARIANCE = 1e-6
_ROWS_AT_ONCE = 4096
# One less the mean cosine of MiniLM's captions times the factor that was best there, 8.
_SPREAD_TIMES_GAMMA = 6.8


class Maps(NamedTuple):
    """What brings both sides into one space."""

    image: WhitenedMap
    text: BaseMap


def kernel_maps(
    data: Pairs,
    *,
    gamma: float | str,
    ridge: float,
    whitening: float,
    n_components: int | None,
    max_anchors: int,
    rng: np.random.RandomState,
) -> Maps:
    """Return whitened pictures and a kernel ridge regression from texts to them."""
    image, texts, counts, targets = _targets(data, whitening, n_components)
    anchors = units(data.text[texts])
    if not anchors.any():  # one text, of zeros, whose target is zero: any anchor will do
        anchors[:, 0] = 1
    gamma = _gamma(anchors, counts) if gamma == "scale" else float(gamma)
    if len(anchors) <= max_anchors:
        matrix = _kernel(anchors, anchors, gamma)
        # A text of several pictures is one row that counts as often.
        matrix[np.diag_indices_from(matrix)] += ridge / counts
        return Maps(image, KernelMap(anchors, _solution(matrix, targets), gamma))
    # Nyström: as many texts as there is room for stand for all.
    chosen = np.sort(rng.choice(len(anchors), max_anchors, replace=False))
    landmarks = anchors[chosen]
    matrix = ridge * _kernel(landmarks, landmarks, gamma)
    right = np.zeros((max_anchors, targets.shape[1]), dtype=np.float32)
    for start in range(0, len(anchors), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        part = _kernel(anchors[some], landmarks, gamma)
        weighted = part * counts[some, None]
        matrix += weighted.T @ part
        right += weighted.T @ targets[some]
    # Landmarks that are nearly the same would make it singular in single precision.
    matrix[np.diag_indices_from(matrix)] += 1e-5 * matrix.diagonal().max()
    return Maps(image, KernelMap(landmarks, _solution(matrix, right), gamma))


def linear_maps(data: Pairs, *, ridge: float, whitening: float, n_components: int | None) -> Maps:
    """Return whitened pictures and a ridge regression from texts to them.

    The ridge is relative to the mean variance of a text feature.
    """
    image, texts, counts, targets = _targets(data, whitening, n_components)
    features = units(data.text[texts]).astype(np.float64)
    middle = counts @ features / counts.sum()
    features -= middle
    matrix = (features * counts[:, None]).T @ features / counts.sum()
    total = matrix.trace() / len(matrix)
    matrix[np.diag_indices_from(matrix)] += ridge * total if total > 0 else 1.0
    right = (features * counts[:, None]).T @ targets / counts.sum()
    weights = cho_solve(cho_factor(matrix, lower=True), right)
    return Maps(image, LinearMap(middle, weights))


def units(features: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; a row of zeros stays."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def _targets(
    data: Pairs, whitening: float, n_components: int | None
) -> tuple[WhitenedMap, np.ndarray, np.ndarray, np.ndarray]:
    """Return the image map, the texts that say something, and for each its count and target.

    A text's target is the mean of its pictures' embeddings, less the mean of all.
    """
    # A text without length has no direction to measure an angle from.
    has_length = np.any(data.text != 0, axis=1)[data.pairs[:, 1]]
    pairs = data.pairs[has_length] if has_length.any() else data.pairs
    image = _whitened(units(data.image[np.unique(pairs[:, 0])]), whitening, n_components)
    directions, around = image.directions.numpy(), image.mean.numpy()
    texts, row, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    targets = np.zeros((len(texts), directions.shape[1]))
    for start in range(0, len(pairs), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        embeddings = units((units(data.image[pairs[some, 0]]) - around) @ directions)
        np.add.at(targets, row[some], embeddings)
    targets = targets / counts[:, None] - targets.sum(axis=0) / len(pairs)
    return image, texts, counts.astype(np.float32), targets.astype(np.float32)


def _whitened(features: np.ndarray, whitening: float, n_components: int | None) -> WhitenedMap:
    if n_components is not None and n_components > features.shape[1]:
        raise ValueError(
            f"n_components must be None or at most {features.shape[1]} (the width of the image "
            f"features), not {n_components}."
        )
    rows = np.arange(len(features))
    middle = mean(features, rows)
    variances, directions = np.linalg.eigh(
        covariance(features, features, (rows, rows), (middle, middle))
    )
    variances, directions = variances[::-1], directions[:, ::-1]
    varies = variances > _NO_VARIANCE * max(variances[0], _NO_VARIANCE)
    if not varies.any():  # all pictures alike: no embedding says anything
        return WhitenedMap(middle, np.zeros((len(middle), 1)))
    directions = directions[:, varies][:, :n_components]
    variances = variances[varies][:n_components] / variances[0]
    # The sign of an eigenvector is the solver's whim.
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(variances))])
    return WhitenedMap(middle, directions * signs / np.sqrt(variances + whitening))


def _gamma(anchors: np.ndarray, counts: np.ndarray) -> float:
    """Return a gamma that suits how far the texts are apart from each other."""
    middle = counts @ anchors / counts.sum()
    return float(_SPREAD_TIMES_GAMMA / max(1 - float(middle @ middle), 1e-3))


def _solution(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a system that is positive definite, but for the rounding of single precision."""
    diagonal, size = np.diag_indices_from(matrix), matrix.diagonal().max()
    for share in (0.0, 1e-5, 1e-4, 1e-3, 1e-2):
        matrix[diagonal] += share * size
        with suppress(LinAlgError):
            return cho_solve(cho_factor(matrix, lower=True, check_finite=False), right)
    raise ValueError("The captions cannot be told apart in single precision: raise ridge.")


def _kernel(left: np.ndarray, right: np.ndarray, gamma: float) -> np.ndarray:
    matrix = left @ right.T
    matrix -= 1
    matrix *= gamma
    return np.exp(matrix, out=matrix)
