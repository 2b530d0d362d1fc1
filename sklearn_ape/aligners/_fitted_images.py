"""Record of the images that an aligner was fitted on, to recognize them in a test set."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.utils import gen_batches

from ._bank import evenly_spaced
from ._pairs import missing_rows

# With at least this many features, the order of the largest ones tells images apart. It is the
# same for every engine and batch, while rounding changes the features themselves.
# Features are centered first: in embeddings such as CLIP's, a few features are the largest of
# every image.
_FEWEST_FEATURES = 64
_N_LARGEST = 8
_ROWS_AT_ONCE = 4096
_FACTOR = np.uint64(1_000_003)


class FittedImages(NamedTuple):
    """Keys of the images of a fit.

    Parameters
    ----------
    keys : ndarray of int64, shape (n_images,)
        One key per image, sorted and without duplicates.
    are_contents : bool
        Whether keys are made from the images' content rather than from their features.
    mean : ndarray of float32, shape (n_features,), or None, default=None
        Mean of the features, which keys of many features are relative to. None for others.
    """

    keys: np.ndarray
    are_contents: bool
    mean: np.ndarray | None = None

    @classmethod
    def of(cls, features: Any, digests: np.ndarray | None) -> Self:
        """Return the record of a fit: of the digests of images, or else of their features.

        Images that could not be encoded are left out of both.
        """
        known = np.flatnonzero(~missing_rows(features))
        if digests is not None:
            return cls(np.unique(_digest_keys(digests)[known]), True)
        mean: np.ndarray | None = None
        if features.shape[1] >= _FEWEST_FEATURES and known.size:
            # A sample is enough to center by, and spares a pass over features in a file.
            sample = np.asarray(features[known[evenly_spaced(known.size)]], dtype=np.float64)
            mean = sample.mean(axis=0).astype(np.float32)
        return cls(np.unique(_feature_keys(features, mean)[known]), False, mean)

    def contain(self, features: Any, digests: np.ndarray | None) -> np.ndarray:
        """Return a bool per image: whether the aligner was fitted on it."""
        if self.are_contents:
            assert digests is not None
            return np.isin(_digest_keys(digests), self.keys)
        known = np.isin(_feature_keys(features, self.mean), self.keys)
        return known & ~missing_rows(features)


def _digest_keys(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view(np.int64).reshape(len(digests), -1)[:, 0]


def _feature_keys(features: Any, mean: np.ndarray | None) -> np.ndarray:
    """Return a number per row which two different images rarely share."""
    keys = np.empty(len(features), dtype=np.int64)
    for rows in gen_batches(len(features), _ROWS_AT_ONCE):
        block = np.asarray(features[rows], dtype=np.float32)
        if mean is None:
            digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block]
            keys[rows] = np.frombuffer(b"".join(digests), dtype=np.int64)
            continue
        block = block - mean
        # Columns in ascending order first, so that of equal features the first one comes first.
        columns = np.sort(np.argpartition(-block, _N_LARGEST, axis=1)[:, :_N_LARGEST], axis=1)
        order = np.argsort(-np.take_along_axis(block, columns, axis=1), axis=1, kind="stable")
        columns = np.take_along_axis(columns, order, axis=1).astype(np.uint64)
        key = np.zeros(len(block), dtype=np.uint64)
        for column in columns.T:
            key = key * _FACTOR + column  # wraps around, as a hash may
        keys[rows] = key.view(np.int64)
    return keys
