"""Rows of features a few at a time, from arrays in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import gen_batches

from ..features._maps import forget

# Arrays of this size stay near the processor, and the allocator hands them out again.
TILE_BYTES = 2**23
_FEWEST_ROWS = 16


def row_tiles(n_rows: int, width: int) -> Iterator[slice]:
    """Return slices of rows, few enough for float32 arrays of a width to be small.

    Parameters
    ----------
    n_rows : int
        How many there are; of none comes one empty tile.
    width : int
        Numbers a row in the widest array made of it.
    """
    size = max(_FEWEST_ROWS, TILE_BYTES // (4 * max(width, 1)))
    return gen_batches(n_rows, size) if n_rows else iter([slice(0, 0)])


def is_table(X: Any) -> bool:
    """Say whether X is rows of numbers that can be sliced, rather than images or lists."""
    if getattr(X, "ndim", 0) != 2:
        return False
    if issparse(X):
        return X.format == "csr"
    return hasattr(X, "iloc") or getattr(getattr(X, "dtype", None), "kind", "") in set("fiub")


def feature_tiles(
    X: Any, width: int, embed: Callable[[Any], Any]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of a table and their embeddings.

    Parameters
    ----------
    X : table
        See `is_table`.
    width : int
        Numbers a row in the widest array made of it, X aside.
    embed : callable
        Takes some rows of X.

    Raises
    ------
    ValueError
        As `embed` does; the message says in which rows.
    """
    n_rows = X.shape[0]
    for rows in row_tiles(n_rows, max(width, X.shape[1])):
        if rows == slice(0, n_rows):
            yield rows, np.asarray(embed(X))
            return
        some = X.iloc[rows] if hasattr(X, "iloc") else X[rows]
        try:
            embeddings = np.asarray(embed(some))
        except ValueError as error:
            if type(error) is not ValueError or not rows.start:
                raise
            raise ValueError(
                f"In rows {rows.start} to {rows.stop - 1} of X, counted from the first of these: "
                f"{error}"
            ) from error
        yield rows, embeddings
        forget(some)
