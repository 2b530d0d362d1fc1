"""The nearest rows of an array, exactly and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.utils import gen_batches

from ..aligners._feature_tiles import row_tiles

_QUERIES_AT_ONCE = 1024
_PAIR_BYTES = 2**23

Adjust = Callable[[np.ndarray, slice, slice], None]


def nearest(
    embeddings: np.ndarray, queries: np.ndarray, k: int, adjust: Adjust | None = None
) -> np.ndarray:
    """Return the k rows with the largest products with every query, in no order.

    Parameters
    ----------
    embeddings : ndarray of shape (n, n_components)
        Finite, of float32 or float16.
    queries : ndarray of shape (n_queries, n_components)
        Finite, of float32.
    k : int
        At most n. Of equals the first rows are taken.
    adjust : callable or None, default=None
        Changes products of shape (n_some_rows, n_some_queries) in place; is told the slices of
        rows and of queries.

    Returns
    -------
    rows : ndarray of int, shape (n_queries, k)
        Each row in ascending order.
    """
    found = np.empty((len(queries), k), dtype=np.intp)
    for some in gen_batches(len(queries), _QUERIES_AT_ONCE):
        asked = queries[some]
        best = np.empty((len(asked), 0), dtype=np.float32)
        rows_of = np.empty((len(asked), 0), dtype=np.intp)
        for rows in row_tiles(len(embeddings), max(len(asked), embeddings.shape[1])):
            products = embeddings[rows].astype(np.float32, copy=False) @ asked.T
            if adjust is not None:
                adjust(products, rows, some)
            products = np.ascontiguousarray(products.T)
            largest = _largest(products, k)
            best = np.hstack([best, np.take_along_axis(products, largest, axis=1)])
            rows_of = np.hstack([rows_of, rows.start + largest])
            # Rows ascend, so that the first of equals stays the first row.
            largest = _largest(best, k)
            best = np.take_along_axis(best, largest, axis=1)
            rows_of = np.take_along_axis(rows_of, largest, axis=1)
        found[some] = rows_of
    return found


def products_of_pairs(embeddings: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the products of every query with some rows, added up in double precision.

    Blocks of a matrix product differ in their last bits: these do not, so that equal pictures
    have equal scores whatever else was asked.

    Parameters
    ----------
    embeddings : ndarray of shape (n, n_components)
        All rows.
    queries : ndarray of shape (n_queries, n_components)
        The queries.
    rows : ndarray of int, shape (n_queries, k)
        Which rows.

    Returns
    -------
    products : ndarray of shape (n_queries, k)
        In double precision.
    """
    flat, asked = rows.ravel(), np.repeat(np.arange(len(queries)), rows.shape[1])
    products = np.empty(len(flat))
    size = max(1, _PAIR_BYTES // (8 * embeddings.shape[1]))
    for some in gen_batches(max(len(flat), 1), size):
        left = embeddings[flat[some]].astype(np.float64)
        products[some] = np.einsum("ij,ij->i", left, queries[asked[some]].astype(np.float64))
    return products.reshape(rows.shape)


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the k largest values of every row, or all; ascending."""
    n_rows, n_columns = values.shape
    if n_columns <= k:
        return np.broadcast_to(np.arange(n_columns), values.shape)
    least = np.partition(values, n_columns - k, axis=1)[:, n_columns - k, None]
    taken = values >= least
    crowded = np.flatnonzero(np.count_nonzero(taken, axis=1) > k)
    if crowded.size:  # equals: as many of the first as there is room for
        some, bound = values[crowded], least[crowded]
        above, equal = some > bound, some == bound
        room = k - np.count_nonzero(above, axis=1)[:, None]
        taken[crowded] = above | (equal & (equal.cumsum(axis=1) <= room))
    return np.nonzero(taken)[1].reshape(n_rows, k)
