"""Nearest-neighbour indexes, and queries."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
from sklearn.utils import gen_batches

from ..features.memmap import is_table, row_tiles
from ..utils.files import IMAGE_SUFFIXES
from ..utils.validation import check_sequence, format_list, ignores_underflow
from ..utils.warnings import warn

INDEXES = ("exact", "faiss", "usearch")


class Index(Protocol):
    """Finds embeddings that it was made of, by their numbers."""

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of k embeddings near every query, in any order."""

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of these and more; this one stays as it is, for searches under way."""


class ExactIndex:
    """No index: all products, a tile at a time."""

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of the k nearest embeddings of every query."""
        return nearest(embeddings, queries, k)

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of all embeddings."""
        return self


class FaissIndex:
    """A flat index of faiss: all products, in threads of its own."""

    def __init__(self, n_components: int, index: Any = None) -> None:
        try:
            import faiss
        except ImportError as error:
            raise _missing("faiss") from error
        self.index = faiss.IndexFlatIP(n_components) if index is None else index

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of the k nearest embeddings of every query."""
        return self.index.search(np.ascontiguousarray(queries), k)[1].astype(np.intp)

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of all embeddings."""
        import faiss

        index = faiss.clone_index(self.index)
        for rows in row_tiles(len(embeddings) - n_before, embeddings.shape[1]):
            some = embeddings[n_before + rows.start : n_before + rows.stop]
            index.add(np.ascontiguousarray(some, dtype=np.float32))
        return type(self)(embeddings.shape[1], index)


class UsearchIndex:
    """A graph (HNSW) of usearch: much faster in large collections, and approximate."""

    def __init__(self, n_components: int, dtype: str, index: Any = None) -> None:
        try:
            from usearch.index import Index
        except ImportError as error:
            raise _missing("usearch") from error
        kind = {"float32": "f32", "float16": "f16"}[dtype]
        self.dtype = dtype
        self.index = Index(ndim=n_components, metric="ip", dtype=kind) if index is None else index

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of k embeddings near every query."""
        found = self.index.search(queries.reshape(len(queries), -1), k)
        rows = np.asarray(found.keys).astype(np.intp).reshape(len(queries), -1)
        counts = np.asarray(getattr(found, "counts", rows.shape[1]))
        # A graph may have corners that a walk does not reach.
        few = np.flatnonzero(np.broadcast_to(counts, len(queries)) < k)
        if few.size == 0:
            return rows
        whole = np.empty((len(queries), k), dtype=np.intp)
        enough = np.setdiff1d(np.arange(len(queries)), few)
        whole[enough] = rows[enough] if enough.size else 0
        whole[few] = nearest(embeddings, queries[few], k)
        return whole

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of all embeddings."""
        index = self.index.copy()
        index.add(
            np.arange(n_before, len(embeddings), dtype=np.uint64),
            np.ascontiguousarray(embeddings[n_before:]),
        )
        return type(self)(embeddings.shape[1], self.dtype, index)

    def __getstate__(self) -> dict[str, Any]:
        graph: Any = self.index.save()  # to memory, as no path is given
        return {"dtype": self.dtype, "graph": bytes(graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from usearch.index import Index

        self.dtype = state["dtype"]
        self.index = Index.restore(state["graph"])


def make_index(name: str, embeddings: np.ndarray) -> Index:
    """Return an index of embeddings.

    Parameters
    ----------
    name : {"exact", "faiss", "usearch"}
        Which.
    embeddings : ndarray of shape (n, n_components)
        Of float32 or float16, finite.
    """
    if name == "exact":
        return ExactIndex()
    width = embeddings.shape[1]
    empty = FaissIndex(width) if name == "faiss" else UsearchIndex(width, embeddings.dtype.name)
    return empty.with_more(embeddings, 0)


def _missing(package: str) -> ImportError:
    return ImportError(
        f'index={package!r} needs {package}: pip install "sklearn-ape[index]", or pass '
        "index='exact'."
    )


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


MODALITIES = ("auto", "image", "text")


def told_apart(queries: Any, modality: str) -> tuple[Any, bool]:
    """Return queries as what an aligner takes, and whether they are texts.

    Parameters
    ----------
    queries : sequence
        Texts, images or features.
    modality : {"auto", "image", "text"}
        ``"auto"`` takes str as text.

    Raises
    ------
    ValueError
        When there are none, or they are of both kinds, or not of the kind that is asked for.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, not {modality!r}.")
    check_sequence(queries, "queries", "query", "texts, of images or of features")
    if hasattr(queries, "columns") and not hasattr(queries, "iloc"):  # polars: by columns, else
        queries = queries.to_numpy()
    if is_table(queries):
        if queries.shape[0] == 0:
            raise ValueError("queries is empty: there is nothing to search for.")
        return queries, modality == "text"
    items = queries.to_pylist() if hasattr(queries, "to_pylist") else queries
    if not isinstance(items, list) and not _is_numeric(items):
        items = list(items)
    if len(items) == 0:
        raise ValueError("queries is empty: there is nothing to search for.")
    if modality == "image" or _is_numeric(items):
        return items, modality == "text"
    texts = [row for row, item in enumerate(items) if isinstance(item, str)]
    if modality == "auto" and not texts:
        return items, False
    if len(texts) < len(items):
        other = next(row for row, item in enumerate(items) if not isinstance(item, str))
        if modality == "text" and not isinstance(items[other], list | tuple):
            raise ValueError(
                f"modality='text' takes str, and query {other} is of type "
                f"{type(items[other]).__name__}."
            )
        if modality == "auto":
            raise ValueError(
                f"queries mixes texts (query {texts[0]}) with images (query {other}): search "
                "for them one after the other, or pass modality='image' where the texts are paths."
            )
    blank = [row for row in texts if not items[row].strip()]
    if blank:
        raise ValueError(f"Query {blank[0]} is an empty text: there is nothing to search for.")
    if modality == "auto":
        _warn_of_paths(items)
    return items, True


def _is_numeric(items: Any) -> bool:
    return getattr(getattr(items, "dtype", None), "kind", "") in set("fiub")


def _warn_of_paths(texts: list[str]) -> None:
    paths = [
        text for text in texts if text.lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(text)
    ]
    if paths:
        warn(
            f"{len(paths)} of the queries look like paths and are searched as text: "
            f"{format_list(paths)}. Pass modality='image' to search by these images, or "
            "modality='text' where they are words.",
        )
