"""A collection of images, embedded."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np

from .._first_few import first_few
from .._sequences import check_sequence
from .._warnings import warn
from ..aligners._bank import Bank, _distinct, evenly_spaced
from ..aligners._captions import holds_images
from ..aligners._feature_tiles import feature_tiles, is_table
from ..encoders import EncodingFailedWarning
from ._indexes import Index, make_index
from ._nearest import nearest, products_of_pairs
from ._relative import Relative, moments_of


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
        f"{first_few(lost, str)}.",
        EncodingFailedWarning,
    )
    return embeddings[~unread].astype(dtype, copy=False), rows
