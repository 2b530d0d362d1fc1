"""Logits of images over texts, some images at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .._numbers import ignores_underflow
from ._bank import Bank, Standardizer
from ._feature_tiles import feature_tiles, is_table, row_tiles

# In the place of the number of a text.
UNKNOWN, UNREAD = -1, -2


class LogitTile(NamedTuple):
    """Logits of some rows of all; they hold until the next tile, and may be changed."""

    n_rows: int
    rows: slice
    logits: np.ndarray


class LogitTiles:
    """Scaled cosines of images with a fixed set of texts, standardised if there is a bank.

    Parameters
    ----------
    aligner : estimator
        Its `transform` embeds images.
    classes : ndarray of shape (n_texts,)
        What the texts stand for; kept, and not used.
    texts : ndarray of shape (n_texts, n_components)
        Embeddings of length 1.
    scale : float
        Factor of the cosines.
    bank : Bank or None
        What cosines are compared with.
    """

    @ignores_underflow
    def __init__(
        self,
        aligner: Any,
        classes: np.ndarray,
        texts: np.ndarray,
        scale: float,
        bank: Bank | None,
    ) -> None:
        self.aligner = aligner
        self.classes = classes
        self.n_texts, self.n_components = texts.shape
        self.standardizer = None if bank is None else Standardizer(texts, bank, scale)
        # Texts are fewer than images: scaled once, logits need no pass of their own.
        self.columns = (texts if bank is not None else texts * scale).T

    def of(self, X: Any) -> Iterator[LogitTile]:
        """Yield tiles of the logits of X.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Features are embedded by the tile. Images are embedded all at once, as their
            encoders work in batches of their own and name bad ones by their rows.

        Yields
        ------
        tile : LogitTile
            At least one. Rows of NaN where an encoder gave up.
        """
        width = max(self.n_texts, self.n_components)
        if is_table(X):
            n_rows = X.shape[0]
            embedded = feature_tiles(X, width, self.aligner.transform)
        else:
            whole = np.asarray(self.aligner.transform(X))
            n_rows = len(whole)
            embedded = ((rows, whole[rows]) for rows in row_tiles(n_rows, width))
        buffer: np.ndarray | None = None
        for rows, embeddings in embedded:
            if buffer is None:
                dtype = np.result_type(embeddings, self.columns)
                buffer = np.empty((len(embeddings), self.n_texts), dtype)
            logits = np.matmul(embeddings, self.columns, out=buffer[: len(embeddings)])
            if self.standardizer is not None:
                self.standardizer.apply(logits, embeddings)
            yield LogitTile(n_rows, rows, logits)

    @ignores_underflow
    def of_embeddings(self, embeddings: Any) -> np.ndarray:
        """Return the logits of a few images that were embedded before.

        Parameters
        ----------
        embeddings : array of shape (n, n_components)
            Dense or sparse.
        """
        logits = np.asarray(embeddings @ self.columns)
        if self.standardizer is not None:
            self.standardizer.apply(logits, embeddings)
        return logits

    @ignores_underflow
    def collect(
        self, X: Any, make: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        """Return what is made of the logits of X, tile by tile, as whole arrays.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            See `of`.
        make : callable
            Takes logits of shape (n, n_texts), which it may change, and returns arrays of
            length n.
        """
        whole: tuple[np.ndarray, ...] = ()
        for n_rows, rows, logits in self.of(X):
            made = make(logits)
            if not whole:
                whole = tuple(np.empty((n_rows, *one.shape[1:]), one.dtype) for one in made)
            for array, one in zip(whole, made, strict=True):
                array[rows] = one
        return whole


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """Turn logits of shape (n, n_texts) into probabilities in place, and return them."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def best_texts(logits: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return the number of the text with the largest logit in every row.

    `UNKNOWN` where its probability is below the threshold, `UNREAD` where there are no numbers.
    """
    best = np.argmax(logits, axis=1)
    unread = np.isnan(logits[:, 0])
    if threshold is not None:
        best[to_probabilities(logits).max(axis=1) < threshold] = UNKNOWN
    best[unread] = UNREAD
    return best


def top_texts(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the k most probable texts of every row, and their probabilities."""
    first = logits.shape[1] - k
    order = np.argpartition(logits, first, axis=1)[:, first:]
    order.sort(axis=1)  # the first one of equals is the first one
    largest = np.take_along_axis(logits, order, axis=1)
    order = np.take_along_axis(order, np.argsort(-largest, axis=1, kind="stable"), axis=1)
    probabilities = np.take_along_axis(to_probabilities(logits), order, axis=1)
    order[np.isnan(logits[:, 0])] = UNREAD
    return order, probabilities
