"""L2-normalization, moments, singular vectors, largest values, connected groups, fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import softmax
from sklearn.utils import gen_batches
from torch import nn


def choose_evenly_spaced(n_rows: int, limit: int = 1000) -> np.ndarray:
    """Return the indices of at most `limit` evenly spaced rows, which represent all rows."""
    return np.linspace(0, n_rows - 1, min(n_rows, limit)).astype(np.intp)


# The squares of numbers in this range, and their sums, neither overflow nor underflow in float32.
# The range of `metrics.retrieval` is narrower, because it applies to the maximum of all rows.
_LOW, _HIGH = 1e-12, 1e12


def l2_normalize(rows: torch.Tensor) -> torch.Tensor:
    """L2-normalize rows without overflow or underflow; rows of zeros are not changed.

    `torch.nn.functional.normalize` returns zeros for rows whose squares overflow, and does not
    scale rows with a norm below 1e-12 to unit norm. For all other rows the results are bitwise
    identical.
    """
    return nn.functional.normalize(rescale_extreme_rows(rows), dim=-1)


def rescale_extreme_rows(
    rows: torch.Tensor, low: float = _LOW, high: float = _HIGH
) -> torch.Tensor:
    """Divide rows of tiny or huge numbers by a power of two, which is exact.

    Rows whose largest absolute value is between `low` and `high` are not changed; in other rows
    it is in [1, 2) afterwards. Without rows to rescale, the same tensor is returned.
    """
    largest = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=-1, keepdim=True)
    is_ordinary = (largest == 0) | ((largest > low) & (largest < high))
    # An exported graph must not depend on the values of the example.
    if not torch.compiler.is_compiling() and bool(is_ordinary.all()):
        return rows
    return rows / torch.where(is_ordinary, 1.0, torch.exp2(torch.floor(torch.log2(largest))))


def normalize_rows(features: np.ndarray, min_norm: float = 0.0) -> np.ndarray:
    """L2-normalize rows in a copy; rows with a norm of at most `min_norm` become zero.

    Rows with NaN become rows of NaN.
    """
    scale: Any = 1
    with np.errstate(over="ignore", under="ignore"):
        norm = np.linalg.norm(features, axis=1, keepdims=True)
    # The largest value of a row is at most its norm, and at least its norm divided by this root.
    low = _LOW * features.shape[1] ** 0.5
    if not ((norm > low) & (norm < _HIGH)).all():
        features, scale = _divide_extreme_rows(features)
        norm = np.linalg.norm(features, axis=1, keepdims=True)
    is_small = norm * scale <= min_norm if min_norm else norm <= 0
    normalized = features / np.where(is_small, 1, norm)
    normalized[is_small[:, 0]] = 0
    return normalized


def _divide_extreme_rows(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows whose squares neither overflow nor underflow, and the divisors."""
    largest = np.maximum(features.max(axis=1, keepdims=True), -features.min(axis=1, keepdims=True))
    is_ordinary = (largest == 0) | ((largest > _LOW) & (largest < _HIGH))
    scale = np.ones_like(largest)
    if not is_ordinary.all():  # a power of two is exact
        scale = np.where(is_ordinary, 1, np.ldexp(scale, np.frexp(largest)[1] - 1))
        features = features / scale
    return features, scale


# Sums depend on the order of additions: another block size changes the last bits of results.
_BLOCK_SIZE = 8192


def compute_mean(features: Any, rows: np.ndarray) -> np.ndarray:
    """Return the mean of the rows of the given indices, which may repeat."""
    blocks = iter_centered(features, rows, np.zeros(features.shape[1]))
    sums = [block.sum(axis=0) for block in blocks]
    return np.sum(sums, axis=0) / len(rows)


def compute_covariance(
    left: Any,
    right: Any,
    rows: tuple[np.ndarray, np.ndarray],
    means: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return the covariance of rows ``rows[0]`` of `left` with rows ``rows[1]`` of `right`."""
    total = np.zeros((left.shape[1], right.shape[1]))
    left_blocks = iter_centered(left, rows[0], means[0])
    if left is right and rows[0] is rows[1] and means[0] is means[1]:
        for block in left_blocks:  # NumPy computes half of a symmetric product
            total += block.T @ block
        return total / len(rows[0])
    right_blocks = iter_centered(right, rows[1], means[1])
    for left_block, right_block in zip(left_blocks, right_blocks, strict=True):
        total += left_block.T @ right_block
    return total / len(rows[0])


def iter_centered(features: Any, rows: np.ndarray, center: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks of rows minus a center of float64, so that the blocks are float64."""
    for block in gen_batches(len(rows), _BLOCK_SIZE):
        yield features[rows[block]] - center


def eigh_of_covariance(
    matrix: np.ndarray, features: Any, rows: np.ndarray, center: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, ascending, and eigenvectors of a covariance of rows minus a center.

    The eigenvalues that are zero because there are fewer rows than features are left out.
    """
    if 2 * len(rows) > len(matrix):
        return np.linalg.eigh(matrix)
    # The other eigenvectors are in the space of the rows: with 300 rows of 1,280 features, this
    # takes an eighth of the time.
    basis, _ = np.linalg.qr((features[rows] - center).T)
    variances, directions = np.linalg.eigh(basis.T @ matrix @ basis)
    return variances, basis @ directions


def find_directions(
    features: np.ndarray, is_wide: bool, n_max: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `n_max` singular values, ascending, and their vectors.

    These are the left singular vectors if the matrix `is_wide`, otherwise the right ones.
    """
    # Of many directions only the largest are kept, for which float32 is precise enough. It takes
    # half the time.
    is_small = min(features.shape) <= n_max
    features = features.astype(np.float64 if is_small else np.float32)
    gram = features @ features.T if is_wide else features.T @ features
    # torch computes this slightly faster, but 30 times slower if other programs use the cores.
    # With scipy 1.11, this driver fails for a single example.
    eigenvalues, vectors = eigh(gram, driver="evd" if len(gram) > 1 else None)
    is_kept = eigenvalues > (1e-10 if is_small else 1e-6) * eigenvalues[-1]
    is_kept[:-n_max] = False
    return np.sqrt(eigenvalues[is_kept], dtype=np.float64), vectors[:, is_kept]


# Iterations of a softmax regression, and of the search along one direction.
_MAX_ITERATIONS, _MAX_SEARCHES = 200, 20
# Before the first iteration, p (1 - p) is assumed to have this mean, divided by the number of
# classes: near the solution, most rows are fitted well. It is measured after this many iterations.
# A measured value is at least this part of the first one: saturated probabilities have none.
_FIRST_VARIANCE, _MEASURED_AT, _MIN_VARIANCE = 0.02, 10, 1e-4
# The slope at the end of a search, relative to that at its start. Less of it does not save
# iterations.
_MAX_SLOPE = 0.3
# Largest change of a logit by the first step of a search, and largest ratio of two steps. Where
# probabilities are saturated, the curvature of the loss is almost 0, and Newton's method goes much
# too far.
_MAX_CHANGE, _MAX_RATIO = 100, 10


def solve_softmax_regression(
    inputs: np.ndarray,
    base: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray,
    penalty: np.ndarray,
    tolerance: float,
    report_iteration: Callable[[], object],
) -> np.ndarray:
    """Return the coefficients of a softmax regression, one column per class.

    The logits are ``base + inputs @ coef``. The coefficients minimize the sum of the weighted
    cross entropies plus half the sum of ``penalty[:, None] * coef**2``. The largest component of
    the gradient becomes at most `tolerance` times that of coefficients of zero, unless 200
    iterations do not suffice or the rest is lost to rounding.

    These are conjugate gradients (Polak and Ribière), preconditioned by an estimated diagonal of
    the Hessian. The logits are linear in the coefficients, so that the search along a direction
    needs no products of matrices. This takes a third of the time of `scipy.optimize.minimize`.
    """
    rows, n_classes = np.arange(len(inputs)), base.shape[1]
    precision = np.finfo(np.float32)
    penalty = penalty.astype(np.float32).clip(precision.tiny)[:, None]
    coef = np.zeros((inputs.shape[1], n_classes), dtype=np.float32)
    logits, proba = base, softmax(base, axis=1)
    squares = weights @ inputs**2
    first_variance = _FIRST_VARIANCE / max(n_classes, 2)
    variances = np.full(n_classes, first_variance)
    # A smaller gradient is lost to rounding, or changes coefficients by less than rounding does.
    terms = (weights @ np.abs(inputs)).max(initial=0), penalty.min(initial=1)
    allowed = precision.eps * max(terms)
    last_gradient, last_norm = np.zeros_like(coef), 1.0
    for iteration in range(_MAX_ITERATIONS):
        errors = proba.copy()
        errors[rows, codes] -= 1
        errors *= weights[:, None]
        gradient = inputs.T @ errors + penalty * coef
        largest = np.abs(gradient).max(initial=0)  # inputs may have no columns
        if iteration == 0:
            allowed = max(allowed, tolerance * largest)
        if largest <= allowed:
            break
        if iteration == _MEASURED_AT:
            variances = np.average(proba * (1 - proba), axis=0, weights=weights)
            variances = variances.clip(_MIN_VARIANCE * first_variance)
        if iteration in (0, _MEASURED_AT):
            preconditioner = (1 / (np.outer(squares, variances) + penalty)).astype(np.float32)
            direction = np.zeros_like(coef)
        scaled = preconditioner * gradient
        norm = np.vdot(scaled, gradient)
        direction *= max(0, (norm - np.vdot(scaled, last_gradient)) / last_norm)
        direction -= scaled
        last_gradient, last_norm = gradient, norm
        change = inputs @ direction
        slope = float(np.vdot(penalty * coef, direction))
        curvature = float(np.vdot(penalty * direction, direction))
        step, proba = _search_line(logits, proba, change, codes, weights, slope, curvature)
        logits = logits + step * change
        coef += step * direction
        report_iteration()
    return coef


def _search_line(
    logits: np.ndarray,
    proba: np.ndarray,
    change: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray,
    penalty_slope: float,
    penalty_curvature: float,
) -> tuple[np.float32, np.ndarray]:
    """Return the step with about the smallest loss along a direction, and probabilities there.

    `change` is what a step of 1 adds to the logits. Newton's method finds the zero of the slope,
    which increases along the direction, within bounds that become narrower. The step is 0 if the
    direction is not a descent.
    """
    change_of_class = change[np.arange(len(change)), codes]
    step = low = np.float32(0)
    high = np.float32(np.inf)
    limit = _MAX_CHANGE / (np.abs(change).max() + np.finfo(np.float32).eps)
    for search in range(_MAX_SEARCHES):
        mean = np.einsum("ij,ij->i", proba, change)
        slope = weights @ (mean - change_of_class) + penalty_slope + step * penalty_curvature
        if search == 0:
            first_slope = slope
        if first_slope >= 0 or abs(slope) <= -_MAX_SLOPE * first_slope:
            break
        low, high = (step, high) if slope < 0 else (low, step)
        end = min(high, limit)
        variance = np.sum(proba * (change - mean[:, None]) ** 2, axis=1)
        curvature = weights @ variance + penalty_curvature
        is_between = abs(slope) < curvature * (end - low)
        step = np.float32(step - slope / curvature if is_between else (low + end) / 2)
        limit = max(limit, _MAX_RATIO * step)
        proba = softmax(logits + step * change, axis=1)
    return step, proba


def sum_by_group(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the sums of the rows of each group, in double precision.

    A product with a sparse matrix takes a tenth of the time of `numpy.add.at`.
    """
    indicator = (np.ones(len(rows)), (groups, np.arange(len(rows))))
    return coo_array(indicator, shape=(groups.max() + 1, len(rows))) @ rows


def find_largest_columns(values: np.ndarray, k: int) -> np.ndarray:
    """Return the columns, in order, of the k largest values of each row, or all columns.

    Of equal values, the first ones are selected. `numpy.argpartition` would select any of them,
    depending on the processor.
    """
    n_rows, n_columns = values.shape
    if n_columns <= k:
        return np.broadcast_to(np.arange(n_columns), values.shape)
    kth_largest = np.partition(values, n_columns - k, axis=1)[:, n_columns - k, None]
    is_selected = values >= kth_largest
    rows = np.flatnonzero(np.count_nonzero(is_selected, axis=1) > k)
    if rows.size:  # of the values equal to the k-th largest only the first ones are selected
        is_above = values[rows] > kth_largest[rows]
        is_equal = values[rows] == kth_largest[rows]
        n_equal = k - np.count_nonzero(is_above, axis=1)[:, None]
        is_selected[rows] = is_above | (is_equal & (is_equal.cumsum(axis=1) <= n_equal))
    return np.nonzero(is_selected)[1].reshape(n_rows, k)


def merge_groups(
    groups: np.ndarray, left: np.ndarray, right: np.ndarray, n_groups: int
) -> np.ndarray:
    """Merge each group of `left` with the corresponding group of `right`."""
    # Older versions of SciPy silently return wrong components for int64.
    ends = (left.astype(np.int32), right.astype(np.int32))
    graph = coo_array((np.ones(len(left), dtype=bool), ends), shape=(n_groups, n_groups))
    return connected_components(graph, directed=False)[1][groups]


def fingerprint(*arrays: np.ndarray) -> str:
    """Return a digest of the values, shapes and types of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
