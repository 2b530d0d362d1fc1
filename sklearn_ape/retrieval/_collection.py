"""Embedded collection that a retriever searches, and the results of a search."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from scipy.stats import norm
from sklearn.base import BaseEstimator

from ..aligners.similarity import (
    Bank,
    Standardizer,
    compute_moments,
    drop_missing_rows,
    warn_unreadable,
)
from ..aligners.wrapper import unwrap_aligner
from ..features.matrix import MIN_TILE_ROWS, is_table, iter_feature_tiles, iter_row_tiles
from ..persistence.mixins import FittedState
from ..utils.linalg import choose_evenly_spaced, normalize_rows
from ..utils.messages import import_optional, warn
from ..utils.validation import (
    check_not_masked,
    check_sequence,
    format_list,
    is_missing,
    to_builtin,
    to_list,
)
from ._index import Index, compute_pair_products, find_copies, find_nearest, make_index

if TYPE_CHECKING:
    import pandas as pd

# Share of queries without a related image for which ``min_score="auto"`` would find an image if
# the scores of unrelated images were normal. Their tails are heavier, so the real share is larger.
_FALSE_RESULTS = 0.002
# An image with a higher cosine is related in any case. In a space of few dimensions, unrelated
# images may have cosines near 1.
_RELATED = 0.95

# Number of further images whose exact scores are compared. The products by which images are found
# are rounded, so that they may have another order, in particular those of copies of an image.
_N_FURTHER = 16

_JSON_TYPES = {str, int, float, bool, type(None)}


class SearchResult(NamedTuple):
    """Images found for each query, nearest first.

    Parameters
    ----------
    scores : ndarray of shape (n_queries, k)
        Cosine similarities, standardized if the retriever's `standardize` is set. NaN for
        unreadable queries, and after the last image if fewer than k images were found.
    indices : ndarray of int, shape (n_queries, k)
        Rows of the images in the collection. -1 where `scores` is NaN.
    items : list of n_queries lists
        The images found: paths, or the entries of y. Empty if nothing was found.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.retrieval import SearchResult
    >>> result = SearchResult(np.array([[0.9, 0.2]]), np.array([[4, 1]]), [["a.jpg", "b.jpg"]])
    >>> result.items[0][0]
    'a.jpg'
    >>> result.to_frame(["a red fruit"])
             query  rank  score  index   item
    0  a red fruit     1    0.9      4  a.jpg
    1  a red fruit     2    0.2      1  b.jpg
    """

    scores: np.ndarray
    indices: np.ndarray
    items: list[list[Any]]

    def to_frame(self, queries: Sequence[Any] | None = None) -> pd.DataFrame:
        """Return a table with one row per image found.

        Parameters
        ----------
        queries : sequence of length n_queries or None, default=None
            Names of the queries. None numbers them.

        Returns
        -------
        table : pandas.DataFrame
            Table with the columns query, rank (from 1), score, index and item. Queries without
            results have no rows.

        Raises
        ------
        ValueError
            If `queries` is not a sequence, or its length differs from the number of queries.
        """
        pd = import_optional("pandas", extra="tables", purpose="to_frame")
        names: Any = range(len(self.items)) if queries is None else queries
        check_sequence(names, "queries", "text", "names of the queries")
        if len(names) != len(self.items):
            raise ValueError(
                f"queries has {len(names)} entries, and this is the result of {len(self.items)} "
                "queries. Pass one name per query."
            )
        rows = [
            (name, rank + 1, self.scores[row, rank], self.indices[row, rank], item)
            for row, name in enumerate(names)
            for rank, item in enumerate(self.items[row])
        ]
        return pd.DataFrame(rows, columns=["query", "rank", "score", "index", "item"])


class Collection(NamedTuple):
    """Embeddings of the readable images, with the items of all images; immutable.

    `rows` are the rows of the readable images among all `n_rows` images. If `items` is None, row
    numbers are returned for the images. `cache` holds results that are computed when needed.
    """

    embeddings: np.ndarray
    rows: np.ndarray
    n_rows: int
    items: list[Any] | None
    search_index: Index
    cache: dict[str, Any]

    @classmethod
    def from_embeddings(
        cls, embeddings: np.ndarray, items: list[Any] | None, dtype: str, index: str
    ) -> Self:
        """Return a collection of embeddings with rows of NaN for unreadable images."""
        readable, rows = _drop_unreadable(embeddings, 0, dtype)
        if not len(readable):
            raise ValueError(
                f"None of the {len(embeddings)} images could be read. Check the paths and files."
            )
        return cls(readable, rows, len(embeddings), items, make_index(index, readable), {})

    def extend(self, embeddings: np.ndarray, items: list[Any] | None, has_y: bool) -> Self:
        """Return a collection of these images followed by new ones, with a warning of copies."""
        if items is not None:
            self._warn_about_copies(embeddings, items, has_y)
        readable, rows = _drop_unreadable(embeddings, self.n_rows, self.embeddings.dtype.name)
        all_embeddings = np.concatenate([self.embeddings, readable])
        return self._replace(
            embeddings=all_embeddings,
            rows=np.concatenate([self.rows, rows]),
            n_rows=self.n_rows + len(embeddings),
            items=None if self.items is None or items is None else [*self.items, *items],
            search_index=self.search_index.extend(all_embeddings, len(self.embeddings)),
            cache={},
        )

    def _warn_about_copies(self, embeddings: np.ndarray, items: list[Any], has_y: bool) -> None:
        """Warn about new images with items of the collection and, if these are from y, embeddings.

        Different images may have the same entry of y, such as a caption.
        """
        try:
            new_keys = list(map(_to_key, items))
            keys = list(map(_to_key, self.get_items(self.rows)))
        except TypeError:  # images in memory, which cannot be compared
            return
        # An unreadable image is not found, so it may be added again after it has been replaced.
        copies = find_copies(self.embeddings, keys, embeddings, new_keys, has_y)
        if copies:
            distinct = {new_keys[row]: items[row] for row in copies}.values()
            listed = format_list(distinct, lambda item: repr(to_builtin(item))[:200])
            warn(
                f"{len(copies)} of {len(items)} images were already in the collection and are "
                f"found twice now: {listed}. To undo this, call remove with these items, which "
                "removes all images that have them, and add each of these images once."
            )

    def remove(self, rows: np.ndarray) -> Self:
        """Return a collection without these rows, as if they had never been in it."""
        is_kept = np.ones(self.n_rows, bool)
        is_kept[rows] = False
        if not is_kept[self.rows].any():
            raise ValueError(
                "items holds all readable images, and a collection cannot be empty. Call fit with "
                "the new images instead."
            )
        embeddings = self.embeddings[is_kept[self.rows]]
        new_rows = np.cumsum(is_kept) - 1
        return self._replace(
            embeddings=embeddings,
            rows=new_rows[self.rows[is_kept[self.rows]]],
            n_rows=int(is_kept.sum()),
            items=None if self.items is None else self.get_items(np.flatnonzero(is_kept)),
            search_index=make_index(self.search_index.name, embeddings),
            cache={},
        )

    def search(
        self,
        queries: np.ndarray,
        k: int,
        standardizer: Standardizer | None = None,
        is_candidate: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows of the k nearest images to each query, by decreasing score.

        `is_candidate` selects at least k of the embeddings; None selects all.
        """
        n_candidates = len(self.embeddings) if is_candidate is None else int(is_candidate.sum())
        n_compared = min(k + _N_FURTHER, n_candidates)
        moments = () if standardizer is None else self.get_moments(standardizer.bank.text)
        if standardizer is None and is_candidate is None:
            nearest = self.search_index.search(self.embeddings, queries, n_compared)
        else:

            def adjust(products: np.ndarray, rows: slice, block: slice) -> None:
                if standardizer is not None:
                    image_moments = [values[rows, None] for values in moments]
                    standardizer.apply_moments(products, image_moments, block)
                if is_candidate is not None:
                    products[~is_candidate[rows]] = -np.inf

            nearest = find_nearest(self.embeddings, queries, n_compared, adjust)
        # Products in double precision, since blocks of a matrix product differ in their last bits.
        exact = compute_pair_products(self.embeddings, queries, nearest)
        if standardizer is not None:
            standardizer.apply_moments(exact.T, [values[nearest.T] for values in moments])
        scores = exact.astype(np.float32)
        order = np.lexsort((nearest, -scores), axis=1)[:, :k]
        rows = self.rows[np.take_along_axis(nearest, order, axis=1)]
        return np.take_along_axis(scores, order, axis=1), rows

    def compute_chance_bounds(
        self, queries: np.ndarray, reference: Any, standardizer: Standardizer | None = None
    ) -> np.ndarray:
        """Return the score of each query that an image exceeds if it is related to the query.

        Scores of unrelated images are assumed to be normal, with the mean and the standard
        deviation of those of the `reference` embeddings. The best of as many unrelated images as
        this collection has exceeds the returned score for one in 500 queries.
        """
        scores = reference @ queries.T
        if standardizer is not None:
            standardizer.apply(scores, reference)
        # The best ones may be related to the query.
        n_unrelated = len(scores) - max(1, len(scores) // 100)
        if not n_unrelated:
            return np.full(len(queries), -np.inf, np.float32)
        unrelated = np.sort(scores, axis=0)[:n_unrelated]
        quantile = norm.isf(_FALSE_RESULTS / len(self.embeddings))
        bound = unrelated.mean(axis=0) + np.float32(quantile) * unrelated.std(axis=0)
        return bound if standardizer is not None else np.minimum(bound, _RELATED)

    def select_sample(self) -> np.ndarray:
        """Return up to 1,000 evenly spaced embeddings."""
        return self.embeddings[choose_evenly_spaced(len(self.embeddings))].astype(np.float32)

    def combine_queries(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Return queries that are near images and texts, both with the same influence."""
        sample = self.select_sample()
        combined = np.zeros_like(images, dtype=np.float32)
        for queries in (images, texts):
            # Cosines of images with images vary more than those of texts with images.
            std = (sample @ queries.T).std(axis=0)[:, None]
            combined += queries / np.where(std > 0, std, 1)
        return normalize_rows(combined)

    def get_items(self, rows: np.ndarray) -> list[Any]:
        return rows.tolist() if self.items is None else [self.items[row] for row in rows]

    def get_bank(self, captions: Any) -> Bank:
        """Return a bank of images and of captions or None, which are the same in every call."""
        if "bank" not in self.cache:
            sample = self.select_sample()
            self.cache["bank"] = Bank.from_embeddings(drop_missing_rows(sample), captions)
        return self.cache["bank"]

    def get_moments(self, captions: Any) -> tuple[np.ndarray, ...]:
        """Return the moments of each image's cosines with captions, the same in every call."""
        if captions is None:
            return ()
        if "moments" not in self.cache:
            mean, std = np.empty((2, len(self.embeddings)))
            for rows in iter_row_tiles(len(self.embeddings), self.embeddings.shape[1]):
                block = self.embeddings[rows].astype(np.float32, copy=False)
                mean[rows], std[rows] = compute_moments(block, captions)
            self.cache["moments"] = mean, std
        return self.cache["moments"]

    def get_state(self) -> dict[str, Any]:
        """Return the collection as plain arrays, as it is saved; the index is not included."""
        unreadable = np.setdiff1d(np.arange(self.n_rows), self.rows)
        return {
            "embeddings": self.embeddings,
            "unread": unreadable.astype(np.int64),
            "items": None if self.items is None else _pack_items(self.items),
        }

    @classmethod
    def from_state(cls, state: FittedState, n_components: int, dtype: str, index: str) -> Self:
        """Return the collection that `get_state` returned, with a new index."""
        embeddings = state.array("embeddings", (None, n_components))
        if not len(embeddings) or embeddings.dtype.name != dtype:
            raise ValueError(f"embeddings must be at least one row of {dtype}.")
        unreadable = state.array("unread", (None,), "i")
        n_rows = len(embeddings) + len(unreadable)
        rows = np.setdiff1d(np.arange(n_rows), unreadable)
        if len(rows) != len(embeddings):
            raise ValueError("unread must be distinct rows of the collection.")
        items = None
        if "items" in state:
            items = _unpack_items(state.part("items"))
            if len(items) != n_rows:
                raise ValueError(f"items must hold {n_rows} items, one per image.")
        return cls(embeddings, rows, n_rows, items, make_index(index, embeddings), {})


def embed_images(aligner: BaseEstimator, X: Any) -> np.ndarray:
    """Embed images, or features tile by tile. Rows that could not be encoded are NaN."""
    if not is_table(X):
        return np.asarray(aligner.transform(X), dtype=np.float32)
    # A few queries are one tile in any case, and need not wait for the size of the embeddings.
    if X.shape[0] <= MIN_TILE_ROWS:
        return np.array(aligner.transform(X), dtype=np.float32)
    n_components = int(getattr(unwrap_aligner(aligner), "n_components_", 1))
    embeddings = np.empty((0, 0), dtype=np.float32)
    for rows, tile in iter_feature_tiles(X, n_components, aligner.transform):
        if not embeddings.size:
            embeddings = np.empty((X.shape[0], tile.shape[1]), dtype=np.float32)
        embeddings[rows] = tile
    return embeddings


def resolve_items(images: Any, y: Any) -> list[Any]:
    """Return the entries of y, one per image, as a list."""
    check_sequence(y, "y", "text", "ids or captions")
    y = _to_records(y)
    # tolist would turn numpy dates into integers.
    is_plain = isinstance(y, np.ndarray) and y.dtype.kind not in "mM"
    items = y.tolist() if is_plain else to_list(y)
    n_images = images.shape[0] if getattr(images, "shape", None) else len(images)
    if len(items) != n_images:
        raise ValueError(
            f"y has {len(items)} entries, and there are {n_images} images. Pass one id or "
            "caption per image."
        )
    return items


def resolve_mask(where: Any, collection: Collection) -> np.ndarray | None:
    """Return a mask of the embeddings that a ``where`` parameter selects; None selects all."""
    if where is None:
        return None
    if callable(where):
        mask = np.empty(collection.n_rows, dtype=bool)
        for row, item in enumerate(collection.get_items(np.arange(collection.n_rows))):
            try:
                if (value := where(item)) is not None and is_missing(value):  # bool(nan) is True
                    raise ValueError(f"where returned {value!r}. Return False in its place.")
                mask[row] = bool(value)
            except Exception as error:
                error.add_note(f"`where` was called with item {row}, {reprlib.repr(item)}.")
                raise
    else:
        check_not_masked(where, "where")
        mask = np.asarray(where)
        if mask.dtype != bool or mask.shape != (collection.n_rows,):
            is_object = mask.dtype == object and mask.ndim  # pandas may keep it after fillna
            hint = " Replace missing values, mask.fillna(False).astype(bool)." if is_object else ""
            raise ValueError(
                f"where must be a function of an item, or a mask of {collection.n_rows} booleans, "
                f"one per image, not an array of shape {mask.shape} and type {mask.dtype}.{hint}"
            )
    return mask[collection.rows]


def find_items(collection: Collection, items: Any) -> np.ndarray:
    """Return the rows of items; raise ValueError if one of them is not in the collection."""
    check_sequence(items, "items", "item", "items of the collection")
    rows_of: dict[Any, list[int]] = {}
    try:
        for row, item in enumerate(collection.get_items(np.arange(collection.n_rows))):
            rows_of.setdefault(_to_key(item), []).append(row)
        items = to_list(_to_records(items))
        keys = list(map(_to_key, items))
    except TypeError:
        raise ValueError(
            "items are objects that cannot be compared, such as images. Pass y to fit, with an id "
            "for each image."
        ) from None
    missing = {key: item for item, key in zip(items, keys, strict=True) if key not in rows_of}
    if missing:
        listed = format_list(map(to_builtin, missing.values()))
        raise ValueError(
            f"items has {listed}, which are not in the collection. Pass members of items_."
        )
    return np.array([row for key in keys for row in rows_of[key]], dtype=np.intp)


def _to_records(items: Any) -> Any:
    """Return the rows of a table of pandas, polars or pyarrow as dicts; other items unchanged."""
    if not hasattr(items, "columns") or len(getattr(items, "shape", ())) != 2:
        return items
    if hasattr(items, "iloc"):
        return items.to_dict("records")
    return items.to_dicts() if hasattr(items, "to_dicts") else items.to_pylist()


def _to_key(item: Any) -> Any:
    """Return an item as a hashable object that is equal for equal items, also after loading."""
    if type(item) is str:  # faster
        return item
    item = item.item() if isinstance(item, np.generic) else _to_json_type(item)
    if isinstance(item, dict):
        item = frozenset((key, _to_key(value)) for key, value in item.items())
    hash(item)
    if is_missing(item):  # NaN is not equal to itself
        return None
    return (bool, item) if isinstance(item, bool) else item  # True is equal to 1, a row number


def _drop_unreadable(
    embeddings: np.ndarray, n_before: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings without rows of NaN, and their row numbers; warn about missing rows."""
    is_nan = np.isnan(embeddings[:, 0])
    missing, rows = (n_before + np.flatnonzero(mask) for mask in (is_nan, ~is_nan))
    warn_unreadable(missing, len(embeddings), "cannot be found")
    readable = embeddings[~is_nan] if missing.size else embeddings
    return readable.astype(dtype, copy=False), rows


def _pack_items(items: list[Any]) -> dict[str, Any] | None:
    """Return items as JSON in an array, or None with a warning if that is not possible."""
    plain_items = [_to_json_type(item) for item in items]
    if all(map(_is_json, plain_items)):
        with suppress(ValueError):  # an integer of thousands of digits
            return {"json": np.frombuffer(json.dumps(plain_items).encode(), dtype=np.uint8)}
    values = (v for item in plain_items for v in (item.values() if type(item) is dict else [item]))
    types = {type(value).__name__: None for value in values if type(value) not in _JSON_TYPES}
    warn(
        "The items in results are not saved, because some are not a str, path, number, bool, "
        f"None or record of these ({format_list(types, str) or 'unsupported values'}). After "
        "loading the items are row numbers. Pass ids as y to fit, or convert such values to texts."
    )
    return None


def _to_json_type(item: Any) -> Any:
    """Return an item as a JSON type of Python if that is possible."""
    if type(item).__name__ == "NAType":  # of pandas
        return None
    if isinstance(item, dict):
        return {key: _to_json_type(value) for key, value in item.items()}
    item = to_builtin(os.fspath(item) if isinstance(item, PathLike) else item)
    return float(item) if isinstance(item, float) else item


def _is_json(item: Any) -> bool:
    """Return whether an item is a plain value, or a record of plain values."""
    if type(item) is not dict:
        return type(item) in _JSON_TYPES
    return set(map(type, item)) <= {str} and set(map(type, item.values())) <= _JSON_TYPES


def _unpack_items(state: FittedState) -> list[Any]:
    if "json" in state:
        try:
            items = json.loads(state.array("json", (None,), "u").astype(np.uint8).tobytes())
        except (ValueError, RecursionError):
            items = None
        if isinstance(items, list) and all(map(_is_json, items)):
            return items
        raise ValueError(
            "items must be a JSON list of texts, numbers, booleans, nulls and records of these."
        )
    # Earlier versions stored texts as an array.
    joined = state.array("texts", (None,), "u").astype(np.uint8).tobytes()
    ends = state.array("ends", (None,), "i")
    edges = [0, *ends.tolist()]
    if edges != sorted(edges) or edges[-1] != len(joined):
        raise ValueError("ends must be the ascending ends of the texts of items.")
    return [joined[i:j].decode("utf-8", "surrogateescape") for i, j in pairwise(edges)]
