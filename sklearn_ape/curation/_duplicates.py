"""Groups of near-equal images or captions."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils import gen_batches

from ..utils.validation import check_number, check_sequence
from ._validation import check_groups, normalize_known_rows

_ROWS, _COLUMNS = 1024, 8192  # of a tile of cosines: 32 MiB


def find_near_duplicates(features: Any, *, threshold: float = 0.97) -> np.ndarray:
    """Put rows of near-equal features into groups.

    Two rows whose cosine reaches `threshold` are in one group, and so are rows that a chain of
    such pairs connects.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        Features of images, or of captions.
    threshold : float, default=0.97
        Least cosine, in [-1, 1], of two rows that count as near-equal. The default suits
        EfficientNet's pooled features of drawings: copies, recolourings and slight variants.

    Returns
    -------
    groups : ndarray of int, shape (n_samples,)
        Group numbers from 0 on, in order of appearance; give them to `GroupKFold`, to
        `drop_near_duplicates`, or to `select_relevant`. Rows of NaN (images that could not be
        read) and of zeros are near to none.

    Raises
    ------
    ValueError
        If `threshold` or `features` cannot be used.

    See Also
    --------
    drop_near_duplicates : Keep one of each group.

    Notes
    -----
    All pairs of rows are compared: time grows with the square of their number, memory does not.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import find_near_duplicates
    >>> find_near_duplicates(np.array([[1, 0], [0, 1], [1, 0.1], [0, 2]]))
    array([0, 1, 0, 1])
    """
    check_number(threshold, "threshold", -1, 1, closed="both")
    rows, known = normalize_known_rows(features, "features")
    n_rows = len(rows)
    least = threshold - 1e-6  # equal rows are equal whatever the rounding
    groups = np.arange(n_rows)
    for strip in gen_batches(n_rows, _ROWS):
        for tile in gen_batches(n_rows - strip.start, _COLUMNS):
            columns = slice(strip.start + tile.start, strip.start + tile.stop)
            near = (rows[strip] @ rows[columns].T) >= least
            near &= known[strip, None] & known[None, columns]
            left, right = np.nonzero(near)
            groups = _merged(groups, groups[left + strip.start], groups[right + columns.start])
    first = np.unique(groups, return_index=True)[1]
    order = np.empty(len(first), dtype=np.intp)
    order[np.argsort(first)] = np.arange(len(first))
    return order[np.unique(groups, return_inverse=True)[1]]


def _merged(groups: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the groups after those in `left` and in `right` are put together."""
    apart = left != right
    if not apart.any():
        return groups
    # As int32, since older versions of scipy find no components, in silence, among int64.
    ends = (left[apart].astype(np.int32), right[apart].astype(np.int32))
    edges = (np.ones(int(apart.sum()), dtype=bool), ends)
    graph = coo_array(edges, shape=(len(groups), len(groups)))
    return connected_components(graph, directed=False)[1][groups]


def drop_near_duplicates(groups: Any, scores: Any = None) -> np.ndarray:
    """Keep one row of each group, the one with the highest score.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        What `find_near_duplicates` returns.
    scores : array-like of shape (n_samples,) or None, default=None
        Higher is better, such as ``pair_quality(...).score``. None, and ties, keep the first row.

    Returns
    -------
    indices : ndarray of int, shape (n_groups,)
        Rows to keep, in ascending order.

    Raises
    ------
    ValueError
        If there is not one finite score for each row.

    See Also
    --------
    find_near_duplicates : Makes the groups.

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
            f"scores must have one number for each of the {n_rows} rows, but has the shape "
            f"{values.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"scores must be finite, but row {bad[0]} has {values[bad[0]]} ({bad.size} such rows)."
        )
    order = np.lexsort((np.arange(n_rows), -values, numbers))
    first = np.unique(numbers[order], return_index=True)[1]
    return np.sort(order[first])
