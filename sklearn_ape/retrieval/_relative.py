"""Cosines of texts with indexed images, relative to what is usual for both."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..aligners._bank import Bank, Standardizer, _divisor, _moments
from ..aligners._feature_tiles import row_tiles


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
