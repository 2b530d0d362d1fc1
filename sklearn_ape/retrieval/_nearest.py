"""The nearest rows of an array, exactly and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.utils import gen_batches

from .._numbers import ignores_underflow
from ..aligners._feature_tiles import row_tiles

_QUERIES_AT_ONCE = 1024
_PAIR_BYTES = 2**23
# Of so many products, one that is among the largest so far is few.
_FEW = 16

Adjust = Callable[[np.ndarray, slice, slice], None]


@ignores_underflow
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
        best = _Best(len(asked), k)
        for rows in row_tiles(len(embeddings), max(len(asked), embeddings.shape[1])):
            products = embeddings[rows].astype(np.float32, copy=False) @ asked.T
            if adjust is not None:
                adjust(products, rows, some)
            best.take(products, rows.start)
        found[some] = best.rows
    return found


class _Best:
    """The largest products of every query so far, with their rows in ascending order."""

    def __init__(self, n_queries: int, k: int) -> None:
        self.k = k
        self.values = np.empty((n_queries, 0), dtype=np.float32)
        self.rows = np.empty((n_queries, 0), dtype=np.intp)

    def take(self, products: np.ndarray, first: int) -> None:
        """Take products of shape (n_rows, n_queries) with the rows from `first` on."""
        if self.rows.shape[1] == self.k:
            # An equal does not count: the row that is there comes before.
            row, query = np.nonzero(products > self.values.min(axis=1))
            if len(row) * _FEW <= products.size:
                self._take_few(products[row, query], first + row, query)
                return
        products = np.ascontiguousarray(products.T)
        largest = _largest(products, self.k)
        self._merge(np.take_along_axis(products, largest, axis=1), first + largest)

    def _take_few(self, values: np.ndarray, rows: np.ndarray, query: np.ndarray) -> None:
        order = np.argsort(query, kind="stable")
        values, rows, query = values[order], rows[order], query[order]
        counts = np.bincount(query, minlength=len(self.rows))
        place = np.arange(len(query)) - (counts.cumsum() - counts)[query]
        shape = (len(self.rows), int(counts.max(initial=0)))
        more = np.full(shape, -np.inf, dtype=np.float32)
        rows_of = np.zeros(shape, dtype=np.intp)
        more[query, place], rows_of[query, place] = values, rows
        self._merge(more, rows_of)

    def _merge(self, values: np.ndarray, rows: np.ndarray) -> None:
        values, rows = np.hstack([self.values, values]), np.hstack([self.rows, rows])
        largest = _largest(values, self.k)
        self.values = np.take_along_axis(values, largest, axis=1)
        self.rows = np.take_along_axis(rows, largest, axis=1)


@ignores_underflow
def products_of_pairs(embeddings: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the products of every query with some rows, added up in double precision.

    Blocks of a matrix product differ in their last bits: these do not, so that equal images
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
