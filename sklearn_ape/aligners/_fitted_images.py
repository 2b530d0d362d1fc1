"""Record of the images that an aligner was fitted on, to recognize them in a test set."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Self

import numpy as np

from ..training import row_blocks

# With at least this many features, the order of the largest ones tells images apart. It is the
# same for every engine and batch, while rounding changes the features themselves.
_FEWEST_FEATURES = 64
_N_LARGEST = 8
_FACTOR = np.uint64(1_000_003)


class FittedImages(NamedTuple):
    """Keys of the images of a fit.

    Parameters
    ----------
    keys : ndarray of int64, shape (n_images,)
        One key per image, sorted and without duplicates.
    are_contents : bool
        Whether keys are made from the images' content rather than from their features.
    """

    keys: np.ndarray
    are_contents: bool

    @classmethod
    def of(cls, features: Any, digests: np.ndarray | None) -> Self:
        """Return the record of a fit, from the digests of images or else from their features."""
        keys = _feature_keys(features) if digests is None else _digest_keys(digests)
        return cls(np.unique(keys), digests is not None)

    def contain(self, features: Any, digests: np.ndarray | None) -> np.ndarray:
        """Return a bool per image: whether the aligner was fitted on it."""
        if self.are_contents:
            assert digests is not None
            return np.isin(_digest_keys(digests), self.keys)
        return np.isin(_feature_keys(features), self.keys)


def _digest_keys(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view(np.int64).reshape(len(digests), -1)[:, 0]


def _feature_keys(features: Any) -> np.ndarray:
    """Return a number per row, which two different images rarely share."""
    keys = np.empty(len(features), dtype=np.int64)
    for rows in row_blocks(features):
        block = np.asarray(features[rows], dtype=np.float32)
        if block.shape[1] < _FEWEST_FEATURES:
            digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block]
            keys[rows] = np.frombuffer(b"".join(digests), dtype=np.int64)
            continue
        # Columns in ascending order first, so that of equal features the first one comes first.
        columns = np.sort(np.argpartition(-block, _N_LARGEST, axis=1)[:, :_N_LARGEST], axis=1)
        order = np.argsort(-np.take_along_axis(block, columns, axis=1), axis=1, kind="stable")
        columns = np.take_along_axis(columns, order, axis=1).astype(np.uint64)
        key = np.zeros(len(block), dtype=np.uint64)
        for column in columns.T:
            key = key * _FACTOR + column  # wraps around, as a hash may
        keys[rows] = key.view(np.int64)
    return keys
