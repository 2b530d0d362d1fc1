"""Nearest-neighbor indexes, and the types of queries."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any, Self

import numpy as np
from scipy.spatial import KDTree
from sklearn.utils import gen_batches

from ..devices import default_state
from ..encoders.text_encoder import TextEncoder, is_image_file
from ..features.matrix import is_table, iter_row_tiles
from ..utils.files import IMAGE_SUFFIXES
from ..utils.linalg import find_largest_columns
from ..utils.messages import import_optional, warn
from ..utils.sklearn_compat import unfreeze
from ..utils.validation import (
    check_choice,
    check_sequence,
    format_list,
    ignores_underflow,
    is_missing,
    to_list,
)

INDEXES = ("exact", "faiss", "usearch")
MODALITIES = ("auto", "image", "text")

_BLOCK_SIZE = 1024  # queries

# Size of the blocks of embeddings in double precision of which single products are computed.
_PAIR_BYTES = 2**23

# If at most one in this number of products exceeds the smallest of the k largest so far, these
# products are merged one by one instead of selecting the k largest of the tile. A search of 1,024
# queries among 100,000 images takes 1.4 s instead of 2.4 s.
_MERGE_RATIO = 16

# Threads that add the first embeddings to a graph at the same time do not see each other's, and
# leave some without neighbors: 2 to 3 % of the nearest of 300 images were missed.
_N_SEQUENTIAL = 2048

# Candidates that a search of a graph keeps. Texts are far from all images: with 64 candidates,
# the default of usearch, searches by text found 90 to 98 % of the nearest images of two
# collections, and with 256 candidates 97 to 100 %.
_EXPANSION_SEARCH = 256

# Largest difference of two embeddings of the same image, if one of them is stored in float16.
_ROUNDING = 1e-3

Adjust = Callable[[np.ndarray, slice, slice], None]


class Index:
    """Index of embeddings that computes all products with queries, in tiles."""

    name = "exact"

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the rows of k embeddings near each query, in any order."""
        return find_nearest(embeddings, queries, k)

    def extend(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of `embeddings`, the first `n_before` of which are in this one.

        This index is not changed, because searches in other threads may use it.
        """
        return self


class FaissIndex(Index):
    """Flat index of faiss: all products, computed by the threads of faiss."""

    name = "faiss"

    def __init__(self, index: Any) -> None:
        self.index = index

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        with default_state():  # which a forked process needs
            return self.index.search(np.ascontiguousarray(queries), k)[1].astype(np.intp)

    def extend(self, embeddings: np.ndarray, n_before: int) -> Self:
        import faiss

        index = faiss.clone_index(self.index)
        new = embeddings[n_before:]
        # Each call copies the index to larger memory. Only float16 is converted, in blocks.
        blocks = [slice(None)] if new.dtype == np.float32 else iter_row_tiles(*new.shape)
        for rows in blocks:
            index.add(np.ascontiguousarray(new[rows], dtype=np.float32))
        return type(self)(index)


class UsearchIndex(Index):
    """HNSW graph of usearch: approximate, and much faster in large collections."""

    name = "usearch"

    def __init__(self, index: Any) -> None:
        self.index = index
        self.index.expansion_search = _EXPANSION_SEARCH  # which is not in a saved graph

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        matches = self.index.search(queries, k)
        rows = np.asarray(matches.keys).astype(np.intp).reshape(len(queries), -1)
        counts = np.asarray(getattr(matches, "counts", rows.shape[1]))
        # Parts of the graph may be unreachable, so that a search returns fewer than k rows.
        incomplete = np.flatnonzero(np.broadcast_to(counts, len(queries)) < k)
        if incomplete.size == 0:
            return rows
        nearest = np.zeros((len(queries), k), dtype=np.intp)
        nearest[:, : rows.shape[1]] = rows
        nearest[incomplete] = find_nearest(embeddings, queries[incomplete], k)
        return nearest

    def extend(self, embeddings: np.ndarray, n_before: int) -> Self:
        index = self.index.copy()
        n_alone = max(n_before, min(len(embeddings), _N_SEQUENTIAL))
        for start, stop, threads in ((n_before, n_alone, 1), (n_alone, len(embeddings), 0)):
            if stop > start:  # 0 threads: all processors
                keys = np.arange(start, stop, dtype=np.uint64)
                index.add(keys, np.ascontiguousarray(embeddings[start:stop]), threads=threads)
        return type(self)(index)

    def __getstate__(self) -> dict[str, Any]:
        graph: Any = self.index.save()  # without a path, save returns the bytes
        return {"graph": bytes(graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import usearch.index as usearch

        UsearchIndex.__init__(self, usearch.Index.restore(state["graph"]))


def make_index(name: str, embeddings: np.ndarray) -> Index:
    """Return an index of finite embeddings in float32 or float16."""
    if name == "exact":
        return Index()
    width, purpose = embeddings.shape[1], f"index={name!r}, unlike 'exact',"
    empty: Index
    if name == "faiss":
        faiss = import_optional("faiss", package="faiss-cpu", extra="index", purpose=purpose)
        empty = FaissIndex(faiss.IndexFlatIP(width))
    else:
        module = "usearch.index"
        usearch = import_optional(module, package="usearch", extra="index", purpose=purpose)
        scalar = {"float32": "f32", "float16": "f16"}[embeddings.dtype.name]
        empty = UsearchIndex(usearch.Index(ndim=width, metric="ip", dtype=scalar))
    return empty.extend(embeddings, 0)


@ignores_underflow
def find_nearest(
    embeddings: np.ndarray, queries: np.ndarray, k: int, adjust: Adjust | None = None
) -> np.ndarray:
    """Return the k rows with the largest products with each query, in ascending order.

    Ties are broken by row number. ``adjust(products, rows, queries)`` modifies the products of a
    slice of rows with a slice of queries in place.
    """
    nearest = np.empty((len(queries), k), dtype=np.intp)
    # Rows of float32 are not copied, so only the products need memory. A few large products are
    # faster than many small ones, each of which waits for all threads.
    copied_width = 0 if embeddings.dtype == np.float32 else embeddings.shape[1]
    for block in gen_batches(len(queries), _BLOCK_SIZE):
        query_block = queries[block]
        best = _Best(len(query_block), k)
        for rows in iter_row_tiles(len(embeddings), max(len(query_block), copied_width)):
            products = embeddings[rows].astype(np.float32, copy=False) @ query_block.T
            if adjust is not None:
                adjust(products, rows, block)
            best.update(products, rows.start)
        nearest[block] = best.rows
    return nearest


class _Best:
    """The k largest products of each query so far, with their rows in ascending order."""

    def __init__(self, n_queries: int, k: int) -> None:
        self.k = k
        self.values = np.empty((n_queries, 0), dtype=np.float32)
        self.rows = np.empty((n_queries, 0), dtype=np.intp)

    def update(self, products: np.ndarray, first: int) -> None:
        """Merge products of shape (n_rows, n_queries) with the rows that start at `first`."""
        if self.rows.shape[1] == self.k:
            # Strictly greater: among equal products the earlier row is kept.
            row, query = np.nonzero(products > self.values.min(axis=1))
            if len(row) * _MERGE_RATIO <= products.size:
                self._merge_entries(products[row, query], first + row, query)
                return
        products = np.ascontiguousarray(products.T)
        largest = find_largest_columns(products, self.k)
        self._merge(np.take_along_axis(products, largest, axis=1), first + largest)

    def _merge_entries(self, values: np.ndarray, rows: np.ndarray, query: np.ndarray) -> None:
        """Merge single products, each with its row and its query."""
        # Written next to each other in the row of their query, padded with -inf.
        order = np.argsort(query, kind="stable")
        values, rows, query = values[order], rows[order], query[order]
        counts = np.bincount(query, minlength=len(self.rows))
        column = np.arange(len(query)) - (counts.cumsum() - counts)[query]
        shape = (len(self.rows), int(counts.max(initial=0)))
        padded_values = np.full(shape, -np.inf, dtype=np.float32)
        padded_rows = np.zeros(shape, dtype=np.intp)
        padded_values[query, column], padded_rows[query, column] = values, rows
        self._merge(padded_values, padded_rows)

    def _merge(self, values: np.ndarray, rows: np.ndarray) -> None:
        values, rows = np.hstack([self.values, values]), np.hstack([self.rows, rows])
        largest = find_largest_columns(values, self.k)
        self.values = np.take_along_axis(values, largest, axis=1)
        self.rows = np.take_along_axis(rows, largest, axis=1)


@ignores_underflow
def compute_pair_products(
    embeddings: np.ndarray, queries: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return the products of each query with its rows, summed in double precision.

    The last bits of a matrix product depend on all queries of a block. These products do not, so
    that equal images always have equal scores.
    """
    flat_rows, query = rows.ravel(), np.repeat(np.arange(len(queries)), rows.shape[1])
    products = np.empty(len(flat_rows))
    size = max(1, _PAIR_BYTES // (8 * embeddings.shape[1]))
    for block in gen_batches(len(flat_rows), size):
        left = embeddings[flat_rows[block]].astype(np.float64)
        right = queries[query[block]].astype(np.float64)
        products[block] = np.einsum("ij,ij->i", left, right)
    return products.reshape(rows.shape)


def find_copies(
    embeddings: np.ndarray,
    keys: Sequence[Any],
    new_embeddings: np.ndarray,
    new_keys: Sequence[Any],
    compares_embeddings: bool,
) -> list[int]:
    """Return the rows of new embeddings that have a key of other embeddings.

    If `compares_embeddings`, one of the embeddings with this key must be equal up to rounding.
    Rows of NaN are not returned.
    """
    key_set, is_readable = set(keys), ~np.isnan(new_embeddings[:, 0])
    copies = [row for row, key in enumerate(new_keys) if is_readable[row] and key in key_set]
    if not (copies and compares_embeddings):
        return copies
    codes = {key: code for code, key in enumerate(key_set)}

    def make_points(rows: np.ndarray, keys: Sequence[Any]) -> np.ndarray:
        # The code of the key is a coordinate, so that points of different keys are never near.
        # The first components exclude most other rows; all of them are compared below.
        return np.column_stack([[codes[key] for key in keys], rows[:, :8]])

    queries = make_points(new_embeddings[copies], [new_keys[row] for row in copies])
    nearby = KDTree(make_points(embeddings, keys)).query_ball_point(queries, _ROUNDING, p=np.inf)
    return [
        row
        for row, old_rows in zip(copies, nearby, strict=True)
        if any(
            np.allclose(embeddings[old], new_embeddings[row], rtol=0, atol=_ROUNDING)
            for old in old_rows
        )
    ]


def resolve_queries(queries: Any, modality: str, text_encoder: Any = None) -> tuple[Any, bool]:
    """Return queries in the form that an aligner takes, and whether they are texts.

    `text_encoder` is the encoder that will encode texts.
    """
    check_choice(modality, "modality", MODALITIES)
    check_sequence(queries, "queries", "query", "texts, of images or of features")
    kind = getattr(getattr(queries, "dtype", None), "kind", "")
    # Tables of polars and pyarrow keep their columns, whose names the aligner checks.
    are_features = is_table(queries) or hasattr(queries, "columns") or kind in set("fiub")
    items: Any = queries if are_features else to_list(queries)
    n_queries = items.shape[0] if are_features else len(items)
    if not n_queries:
        raise ValueError("queries is empty. Pass at least one query.")
    if are_features:
        return items, modality == "text"
    is_text = [isinstance(item, str) for item in items]
    if modality == "image" or (modality == "auto" and not any(is_text)):
        return items, False
    if not all(is_text):
        _check_mixed_queries(items, is_text, modality)
    _check_not_blank(items)
    if modality == "auto":
        _check_image_files(items, text_encoder)
        _warn_about_paths(items)
    return items, True


def _check_mixed_queries(items: list[Any], is_text: list[bool], modality: str) -> None:
    row = is_text.index(False)
    if is_missing(items[row]):
        raise ValueError(f"queries has a missing query in row {row}. Leave it out.")
    if modality == "auto":
        raise ValueError(
            f"queries mixes texts (query {is_text.index(True)}) with images (query {row}). Search "
            "for each type separately, or pass modality='image' if the texts are paths."
        )
    if not isinstance(items[row], list | tuple):  # lists may hold features of texts
        raise ValueError(
            f"queries has an object of type {type(items[row]).__name__} in row {row}, and "
            "modality is 'text'. Pass str."
        )


def separate_pairs(queries: Any, modality: str) -> tuple[list[Any], list[str]] | None:
    """Return the images and the texts of queries that are pairs; None for other queries."""
    if not isinstance(queries, list | tuple) or not queries:
        return None
    check_choice(modality, "modality", MODALITIES)
    are_pairs = [_is_pair(query, row) for row, query in enumerate(queries)]
    if not any(are_pairs):
        return None
    if not all(are_pairs):
        row = are_pairs.index(False)
        raise ValueError(
            f"queries mixes pairs of an image and a text with other queries (query {row}). Search "
            "for each kind separately."
        )
    if modality != "auto":
        raise ValueError(
            f"queries holds pairs of an image and a text, and modality is {modality!r}. Remove "
            "modality, or pass the images or the texts alone."
        )
    texts = [text for _, text in queries]
    _check_not_blank(texts)
    return [image for image, _ in queries], texts


def _is_pair(query: Any, row: int) -> bool:
    """Return whether a query is a tuple of an image and a text; raise ValueError for a wrong pair.

    Other queries are texts, images, and rows of features, which may be lists or tuples of numbers.
    """
    # The first parts are enough to recognize a row of features, which may be long.
    if isinstance(query, list) and any(isinstance(part, str) for part in query[:3]):
        raise ValueError(
            f"queries has a list with a text in row {row}. Pass a text, or a pair of an image "
            "and a text as a tuple: (image, text)."
        )
    if not isinstance(query, tuple) or len(query) != 2:
        return False
    first, second = query
    are_features = isinstance(second, Number) and not isinstance(first, str)
    if not isinstance(second, str) and not are_features:
        raise ValueError(
            f"queries has a pair in row {row} whose text is of type {type(second).__name__}. Pass "
            "the image first and then a text: (image, text)."
        )
    return isinstance(second, str)


def _check_not_blank(texts: list[str]) -> None:
    for row, text in enumerate(texts):
        if isinstance(text, str) and not text.strip():
            raise ValueError(f"queries has an empty text in row {row}. Pass non-empty texts.")


def _check_image_files(texts: list[str], text_encoder: Any) -> None:
    """Raise an error for paths of images if the text encoder would reject them."""
    encoder = unfreeze(text_encoder)
    if not isinstance(encoder, TextEncoder) or encoder.on_error != "raise":
        return
    files = [text for text in texts if is_image_file(text)]
    if files:
        hint = " Search for the texts separately." if len(files) < len(texts) else ""
        raise ValueError(
            f"queries has image files given as str: {format_list(files)}. Pass modality='image' "
            f"to search by these images, or pathlib.Path objects.{hint}"
        )


def _warn_about_paths(texts: list[str]) -> None:
    paths = [
        text for text in texts if text.lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(text)
    ]
    if paths:
        warn(
            f"queries has texts that look like paths: {format_list(paths)}. They are searched as "
            "text. Pass modality='image' to search by images, or modality='text' to hide this "
            "warning."
        )
