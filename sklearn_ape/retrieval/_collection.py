"""Embedded collection that a retriever searches, and how it is saved."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from os import PathLike
from typing import Any, NamedTuple, Self

import numpy as np

from ..aligners.pairs import holds_images
from ..aligners.similarity import Bank, Standardizer, _distinct, _divisor, _moments
from ..aligners.wrapper import AlignerWrapperMixin, unwrap_aligner
from ..encoders import EncodingFailedWarning
from ..features.memmap import feature_tiles, is_table, row_tiles
from ..persistence import FittedState
from ..persistence.hub import Facts
from ..utils.linalg import evenly_spaced
from ..utils.validation import check_sequence, format_list
from ..utils.warnings import warn
from ._index import Index, make_index, nearest, products_of_pairs


class Relative:
    """Standardises as an aligner's ``similarity`` does, with what is known of images kept.

    Parameters
    ----------
    texts : ndarray of shape (n_texts, n_components)
        Embeddings of the queries.
    bank : Bank
        What cosines are compared with.
    moments : tuple of ndarray of shape (n_images,), or None
        Of all images' cosines with the captions of the bank; None where it has none.
    """

    def __init__(
        self, texts: np.ndarray, bank: Bank, moments: tuple[np.ndarray, np.ndarray] | None
    ) -> None:
        standardizer = Standardizer(texts, bank)
        self.middle, self.factor = standardizer.middle, standardizer.factor
        self.own_middle = self.own_factor = None
        if moments is not None:
            self.own_middle = moments[0]
            self.own_factor = standardizer.scale / _divisor(moments[1])

    def adjust(self, cosines: np.ndarray, rows: slice, queries: slice) -> None:
        """Change cosines of shape (n_rows, n_queries) in place."""
        cosines[:] = self._of(cosines, (rows, None), queries, cosines.dtype)

    def of_pairs(self, cosines: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return cosines of shape (n_queries, k) with the images in `rows`, standardised."""
        return self._of(cosines, rows, (slice(None), None), np.dtype(np.float64))

    def _of(self, cosines: np.ndarray, rows: Any, queries: Any, dtype: np.dtype) -> np.ndarray:
        middle, factor = self.middle[queries].astype(dtype), self.factor[queries].astype(dtype)
        if self.own_middle is None or self.own_factor is None:
            return (cosines - middle) * factor
        own_middle = self.own_middle[rows].astype(dtype)
        own_factor = self.own_factor[rows].astype(dtype)
        return (cosines - middle) * factor + (cosines - own_middle) * own_factor


def moments_of(embeddings: np.ndarray, captions: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of every image's cosines with some captions."""
    both = np.empty((2, len(embeddings)))
    for rows in row_tiles(len(embeddings), embeddings.shape[1]):
        both[:, rows] = _moments(embeddings[rows].astype(np.float32, copy=False), captions)
    return both[0], both[1]


class Collection(NamedTuple):
    """Embeddings of the images that could be read, and what stands for them; never changed.

    Parameters
    ----------
    embeddings : ndarray of shape (n_read, n_components)
        Of length 1.
    rows : ndarray of int, shape (n_read,)
        Where they stood among all images.
    n_rows : int
        How many images there were.
    items : list of length n_rows, or None
        What to show for them; None shows their numbers.
    finder : object
        Finds embeddings.
    known : dict
        What was computed of the collection when it was first needed.
    """

    embeddings: np.ndarray
    rows: np.ndarray
    n_rows: int
    items: list[Any] | None
    finder: Index
    known: dict[str, Any]

    @classmethod
    def of(cls, embeddings: np.ndarray, items: list[Any] | None, dtype: str, index: str) -> Self:
        """Make a collection of embeddings with rows of NaN where images could not be read."""
        kept, rows = _read(embeddings, 0, dtype)
        if not len(kept):
            raise ValueError(
                f"None of the {len(embeddings)} images could be read: nothing can be found."
            )
        return cls(kept, rows, len(embeddings), items, make_index(index, kept), {})

    def with_more(self, embeddings: np.ndarray, items: list[Any] | None) -> Self:
        """Return a collection of these images and more."""
        more, rows = _read(embeddings, self.n_rows, self.embeddings.dtype.name)
        whole = np.concatenate([self.embeddings, more])
        return self._replace(
            embeddings=whole,
            rows=np.concatenate([self.rows, rows]),
            n_rows=self.n_rows + len(embeddings),
            items=None if self.items is None or items is None else [*self.items, *items],
            finder=self.finder.with_more(whole, len(self.embeddings)),
            known={},
        )

    def nearest(
        self, queries: np.ndarray, k: int, relative: Relative | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows of the k images nearest to every query, in order."""
        if relative is None:
            near = self.finder.search(self.embeddings, queries, k)
        else:
            near = nearest(self.embeddings, queries, k, relative.adjust)
        exact = products_of_pairs(self.embeddings, queries, near)
        if relative is not None:
            exact = relative.of_pairs(exact, near)
        scores = exact.astype(np.float32)
        order = np.lexsort((near, -scores), axis=1)
        rows = self.rows[np.take_along_axis(near, order, axis=1)]
        return np.take_along_axis(scores, order, axis=1), rows

    def items_at(self, rows: np.ndarray) -> list[Any]:
        """Return what stands for some rows."""
        if self.items is None:
            return rows.tolist()
        return [self.items[row] for row in rows]

    def bank(self, captions: Any) -> Bank:
        """Return a bank of images of this collection, and of captions if there are any."""
        if "bank" not in self.known:
            some = self.embeddings[evenly_spaced(len(self.embeddings))].astype(np.float32)
            self.known["bank"] = Bank.of(_distinct(some), captions)
        return self.known["bank"]

    def moments(self, captions: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return moments of the images' cosines with captions, always the same ones."""
        if "moments" not in self.known:
            self.known["moments"] = moments_of(self.embeddings, captions)
        return self.known["moments"]


def embedded(aligner: Any, X: Any, width: int) -> np.ndarray:
    """Embed images, or features a tile at a time; rows of NaN where an encoder gave up.

    Parameters
    ----------
    aligner : estimator
        Its `transform` embeds images.
    X : sequence of images, or array-like of shape (n_samples, n_features)
        Features in a memory map are read by rows.
    width : int
        About the width of the embeddings.
    """
    if not is_table(X):
        return np.asarray(aligner.transform(X), dtype=np.float32)
    whole = np.empty((0, 0), dtype=np.float32)
    for rows, embeddings in feature_tiles(X, width, aligner.transform):
        if not whole.size:
            whole = np.empty((X.shape[0], embeddings.shape[1]), dtype=np.float32)
        whole[rows] = embeddings
    return whole


def items_of(images: Any, y: Any) -> list[Any] | None:
    """Return what stands for images: y, else the images; None for features."""
    if y is not None:
        check_sequence(y, "y", "text", "ids or captions")
        shape = getattr(y, "shape", None)
        # Dates of numpy would become integers.
        listed = (
            y.tolist() if isinstance(y, np.ndarray) and y.dtype.kind not in "mM" else _listed(y)
        )
        n_images = images.shape[0] if getattr(images, "shape", None) else len(images)
        if shape == () or len(listed) != n_images:
            raise ValueError(
                f"y has {len(listed)} entries, and there are {n_images} images: pass one id or "
                "caption for each image."
            )
        return listed
    if is_table(images):
        return None
    listed = _listed(images)
    first = listed[0]
    return listed if holds_images(listed) or np.ndim(first) >= 2 else None


def _listed(column: Any) -> list[Any]:
    return column.to_pylist() if hasattr(column, "to_pylist") else list(column)


def _read(embeddings: np.ndarray, n_before: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Leave out rows of NaN, telling of them."""
    unread = np.isnan(embeddings[:, 0])
    rows = n_before + np.flatnonzero(~unread)
    if not unread.any():
        return embeddings.astype(dtype, copy=False), rows
    lost = n_before + np.flatnonzero(unread)
    warn(
        f"{len(lost)} of {len(embeddings)} images could not be read and are in no answer: rows "
        f"{format_list(lost, str)}.",
        EncodingFailedWarning,
    )
    return embeddings[~unread].astype(dtype, copy=False), rows


# Of file names that are no text, as Python itself has it.
_ENCODING = ("utf-8", "surrogateescape")


_INT64 = np.iinfo(np.int64)


_JSON_TYPES = {str, int, float, bool, type(None)}


class SavedRetriever(AlignerWrapperMixin):
    """The part of `CrossModalRetriever` that is saved and loaded.

    Embeddings and what stands for the images are tensors, however many there are; an index is
    made anew.
    """

    dtype: str
    index: str
    _collection: Collection

    def _own_state(self) -> dict[str, Any]:
        self._check_current()
        collection = self._collection
        unread = np.setdiff1d(np.arange(collection.n_rows), collection.rows)
        return {
            "embeddings": collection.embeddings,
            "unread": unread.astype(np.int64),
            "items": None if collection.items is None else _packed(collection.items),
            "has_y": self._has_y,
            "fingerprint": getattr(unwrap_aligner(self.aligner_), "fingerprint_", None),
        }

    def _restore_own(self, state: FittedState) -> None:
        texts = unwrap_aligner(self.aligner_)
        embeddings = state.array("embeddings", (None, int(texts.n_components_)))
        if not len(embeddings) or embeddings.dtype.name != self.dtype:
            raise ValueError(f"embeddings must be rows of {self.dtype}, one at least.")
        unread = state.array("unread", (None,), "i")
        n_rows = len(embeddings) + len(unread)
        if len(unread) and not (
            (np.diff(unread) > 0).all() and unread[0] >= 0 and unread[-1] < n_rows
        ):
            raise ValueError("unread must be rows of the collection, in ascending order.")
        items = None
        if "items" in state:
            items = _unpacked(state.part("items"))
            if len(items) != n_rows:
                raise ValueError(f"items must be {n_rows}, one for each image.")
        state.optional("items")
        has_y = state.value("has_y")
        if not isinstance(has_y, bool):
            raise ValueError("has_y must be true or false.")
        if state.optional("fingerprint") != getattr(texts, "fingerprint_", None):
            raise ValueError(
                "The aligner is not the one that the images were embedded with (its weights or "
                "settings are others here): index the images again."
            )
        self._has_y = has_y
        rows = np.setdiff1d(np.arange(n_rows), unread)
        finder = make_index(self.index, embeddings)
        self._collection = Collection(embeddings, rows, n_rows, items, finder, {})

    def _check_restored(self) -> None:
        self._check_parameters()  # type: ignore[attr-defined]

    def _card_facts(self) -> Facts:
        facts = self._aligner_facts()
        facts.what = (
            "Finds the images of a collection that are nearest to words or to other images. "
            "It holds their embeddings, not the images. " + facts.what
        )
        facts.facts = {"images indexed": f"{len(self._collection.rows):,}"} | facts.facts
        facts.usage = "print(model.search(['a red fruit'], k=5).items)"
        return facts


def _packed(items: list[Any]) -> dict[str, Any] | None:
    """Return the items in results as arrays, or None with a warning if that is not possible."""
    plain = [_plain(item) for item in items]
    kinds = set(map(type, plain))
    if kinds <= {str}:
        with suppress(UnicodeEncodeError):  # half a surrogate pair
            parts = [text.encode(*_ENCODING) for text in plain]
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            return {"texts": np.frombuffer(b"".join(parts), dtype=np.uint8), "ends": ends}
    if kinds == {float} or (
        kinds == {int} and _INT64.min <= min(plain) and max(plain) <= _INT64.max
    ):
        return {"numbers": np.array(plain)}
    if kinds <= _JSON_TYPES:  # of several types, or integers of any size
        with suppress(ValueError):  # an integer of thousands of digits
            return {"json": np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8)}
    warn(
        "The items in results are not saved, because some are not a str, path, number, bool or "
        "None. After loading the items are row numbers. Pass y to fit to give the images ids.",
    )
    return None


def _plain(item: Any) -> Any:
    """Return an item as a plain object of Python, if it is one of those that JSON has."""
    if isinstance(item, PathLike):
        item = os.fspath(item)
    elif isinstance(item, np.generic) and item.dtype.kind not in "mM":  # dates become integers
        item = item.item()
    if isinstance(item, str):  # such as one of an Enum
        return str.__str__(item)
    if isinstance(item, int) and not isinstance(item, bool):
        return int(item)
    return float(item) if isinstance(item, float) else item


def _unpacked(state: FittedState) -> list[Any]:
    if "numbers" in state:
        return state.array("numbers", (None,), "if", finite=False).tolist()
    if "json" in state:
        return _from_json(state.array("json", (None,), "u").astype(np.uint8).tobytes())
    whole = state.array("texts", (None,), "u").astype(np.uint8).tobytes()
    ends = state.array("ends", (None,), "i")
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    if (starts > ends).any() or (len(whole) != ends[-1] if len(ends) else len(whole)):
        raise ValueError("ends must say where the texts of items end.")
    return [
        whole[start:end].decode(*_ENCODING)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _from_json(text: bytes) -> list[Any]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not set(map(type, items)) <= _JSON_TYPES:
        raise ValueError("items must be a JSON list of texts, numbers, booleans and nulls.")
    return items
