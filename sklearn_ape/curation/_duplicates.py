"""Groups of near-duplicate images or captions."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import gen_batches

from ..utils.linalg import merge_groups
from ..utils.validation import check_number, check_sequence
from ._validation import check_groups, label_codes, normalize_valid_rows

_TILE_ROWS, _TILE_COLUMNS = 1024, 8192  # a tile of cosine similarities has 32 MiB


def find_near_duplicates(features: Any, *, threshold: float = 0.97) -> np.ndarray:
    """Group rows of features that are near-duplicates.

    Two rows whose cosine similarity reaches `threshold` are in the same group, and so are rows
    that are connected by a chain of such pairs.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        Features of images or of captions.
    threshold : float, default=0.97
        Minimum cosine similarity of near-duplicates, in [-1, 1]. With pooled EfficientNet
        features of drawings, the default finds copies, recolored copies and slight variants.

    Returns
    -------
    groups : ndarray of int, shape (n_samples,)
        Group numbers from 0, in order of appearance, for `GroupKFold`, `drop_near_duplicates` or
        `select_relevant`. Rows of NaN (unreadable images) and rows of zeros are groups of their
        own.

    Raises
    ------
    ValueError
        If `threshold` or `features` are invalid.

    See Also
    --------
    drop_near_duplicates : Keep one row per group.

    Notes
    -----
    All pairs of rows are compared, so time is quadratic in the number of rows. Memory is linear.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import find_near_duplicates
    >>> find_near_duplicates(np.array([[1, 0], [0, 1], [1, 0.1], [0, 2]]))
    array([0, 1, 0, 1])
    """
    check_number(threshold, "threshold", -1, 1, closed="both")
    rows, is_valid = normalize_valid_rows(features, "features")
    n_rows = len(rows)
    min_similarity = threshold - 1e-6  # rounding must not separate equal rows
    groups = np.arange(n_rows)
    for strip in gen_batches(n_rows, _TILE_ROWS):
        for tile in gen_batches(n_rows - strip.start, _TILE_COLUMNS):
            columns = slice(strip.start + tile.start, strip.start + tile.stop)
            is_near = (rows[strip] @ rows[columns].T) >= min_similarity
            is_near &= is_valid[strip, None] & is_valid[None, columns]
            left, right = np.nonzero(is_near)
            left, right = groups[left + strip.start], groups[right + columns.start]
            differs = left != right
            if differs.any():
                groups = merge_groups(groups, left[differs], right[differs], n_rows)
    return label_codes(groups.tolist())


def drop_near_duplicates(groups: Any, scores: Any = None) -> np.ndarray:
    """Select the row with the highest score of each group.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        Output of `find_near_duplicates`.
    scores : array-like of shape (n_samples,) or None, default=None
        Scores, such as ``pair_quality(...).score``; higher is better. With None, and for ties,
        the first row is kept.

    Returns
    -------
    indices : ndarray of int, shape (n_groups,)
        Rows to keep, in ascending order.

    Raises
    ------
    ValueError
        If `scores` does not have one finite number per row.

    See Also
    --------
    find_near_duplicates : Compute the groups.

    Examples
    --------
    >>> from sklearn_ape.curation import drop_near_duplicates
    >>> drop_near_duplicates([0, 1, 0, 1], scores=[0.2, 0.9, 0.7, 0.1])
    array([1, 2])
    """
    check_sequence(groups, "groups", "number")
    n_rows = len(np.asarray(groups))
    numbers = check_groups(groups, n_rows)
    values = np.zeros(n_rows) if scores is None else np.asarray(scores, dtype=float)
    if values.shape != (n_rows,):
        raise ValueError(
            f"scores must have shape ({n_rows},), one number per row, not {values.shape}."
        )
    invalid = np.flatnonzero(~np.isfinite(values))
    if invalid.size:
        raise ValueError(
            f"scores must be finite, but {invalid.size} rows are not (row {invalid[0]} is "
            f"{values[invalid[0]]})."
        )
    order = np.lexsort((np.arange(n_rows), -values, numbers))
    first = np.unique(numbers[order], return_index=True)[1]
    return np.sort(order[first])
