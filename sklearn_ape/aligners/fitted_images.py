"""Keys of the training images, and digests of the state that embeddings depend on."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils import gen_batches, get_tags

from ..features.matrix import find_missing_rows
from ..persistence.mixins import FittedState
from ..utils.concurrency import ForkSafeLock
from ..utils.linalg import choose_evenly_spaced, find_largest_columns, fingerprint

# With at least this many features, the order of the largest ones identifies an image. It is the
# same for every engine and batch size, while the features themselves differ by rounding.
# Features are centered first: in embeddings such as CLIP's, the same few features are the largest
# for every image.
_MIN_FEATURES = 64
_N_LARGEST = 8

# Features of the same image in different batches differ less, relative to the largest one.
_TOLERANCE = 1e-3

_BLOCK_SIZE = 4096
_HASH_FACTOR = np.uint64(1_000_003)

# By convention these attributes of an estimator do not change its results.
_RUNTIME_OPTIONS = frozenset(
    {"batch_size", "cache", "device", "errors_", "memory", "n_jobs", "on_error", "verbose"}
)

# pickle raises ValueError for memory that is not contiguous. Objects of libraries raise the other
# errors.
_PICKLING_ERRORS = (
    pickle.PicklingError,
    AttributeError,
    TypeError,
    ValueError,
    NotImplementedError,
    RecursionError,
)

# Numbers of objects, such as a lambda that cannot be pickled. `id` is not suitable, because Python
# reuses its values.
_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_next_number = itertools.count()
_lock = ForkSafeLock()


class FittedImages(NamedTuple):
    """Keys of the training images: sorted int64 without duplicates.

    They are made from the images' content if `are_contents`, else from their features. `mean` is
    subtracted from the features first, if there are many.
    """

    keys: np.ndarray
    are_contents: bool
    mean: np.ndarray | None = None

    @classmethod
    def from_features(cls, features: Any, digests: np.ndarray | None) -> Self:
        """Return the keys of training images, made from digests of their content if available.

        Images that could not be encoded are left out.
        """
        rows = np.flatnonzero(~find_missing_rows(features))
        if digests is not None:
            return cls(np.unique(_digest_keys(digests)[rows]), True)
        mean: np.ndarray | None = None
        if features.shape[1] >= _MIN_FEATURES and rows.size:
            # A sample is sufficient, and avoids reading all features from a file once more.
            sample = np.asarray(features[rows[choose_evenly_spaced(rows.size)]], dtype=np.float64)
            mean = sample.mean(axis=0).astype(np.float32)
        return cls(np.unique(_make_feature_keys(features, mean)[rows]), False, mean)

    def match_digests(self, digests: np.ndarray) -> np.ndarray:
        """Return for each digest whether it is that of a training image."""
        return np.isin(_digest_keys(digests), self.keys)

    def match_features(self, features: Any) -> np.ndarray:
        """Return for each row whether it has the features of a training image."""
        is_key = np.isin(_make_feature_keys(features, self.mean), self.keys)
        return is_key & ~find_missing_rows(features)

    @classmethod
    def from_state(cls, state: FittedState, n_features: int) -> Self:
        """Return the record that was saved as the dict of `_asdict`."""
        keys, are_contents = state.array("keys", (None,), "i"), state.boolean("are_contents")
        mean = state.array("mean", (n_features,)) if "mean" in state else None
        return cls(np.unique(keys), are_contents, mean)


def _digest_keys(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view(np.int64).reshape(len(digests), -1)[:, 0]


def _make_feature_keys(features: Any, mean: np.ndarray | None) -> np.ndarray:
    """Return one integer per row, which rarely is the same for two different images.

    It is a hash of the features, or, with a mean, of the columns in which the centered features
    are largest.
    """
    keys = np.empty(len(features), dtype=np.int64)
    for rows in gen_batches(len(features), _BLOCK_SIZE):
        block = np.asarray(features[rows], dtype=np.float32) + 0.0  # turns -0.0 into 0.0
        if mean is None:
            digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block]
            keys[rows] = np.frombuffer(b"".join(digests), dtype=np.int64)
            continue
        block = block - mean
        # If all images are equal, what remains is rounding error. Rows of NaN cannot be sorted.
        block[~(np.abs(block).max(axis=1) > _TOLERANCE * np.abs(mean).max())] = 0
        keys[rows] = _hash_largest_columns(block)
    return keys


def _hash_largest_columns(features: np.ndarray) -> np.ndarray:
    """Return one integer per row, made from the columns of the largest features in their order."""
    # Ties are broken by the number of the column, so that keys are the same on any processor.
    columns = find_largest_columns(features, _N_LARGEST)
    order = np.argsort(-np.take_along_axis(features, columns, axis=1), axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, axis=1).astype(np.uint64)
    keys = np.zeros(len(features), dtype=np.uint64)
    for column in columns.T:
        keys = keys * _HASH_FACTOR + column  # overflow wraps around, which suits a hash
    return keys.view(np.int64)


def group_equal_images(features: np.ndarray) -> np.ndarray:
    """Return the number of a group for each row; rows of the same image are in the same group.

    Rows of the same image may differ by rounding, since batches differ.
    """
    mean = features.mean(axis=0) if features.shape[1] >= _MIN_FEATURES else None
    groups = np.unique(_make_feature_keys(features, mean), return_inverse=True)[1].ravel()
    sizes = np.bincount(groups)
    n_groups = len(sizes)
    order, ends = np.argsort(groups, kind="stable"), np.cumsum(sizes)
    for group in np.flatnonzero(sizes > 1):  # in rare cases, keys of different images are equal
        rows = order[ends[group] - sizes[group] : ends[group]]
        scale = np.abs(features[rows[0]]).max()
        while True:
            distance = np.abs(features[rows] - features[rows[0]]).max(axis=1)
            rows = rows[distance > _TOLERANCE * scale]
            if not len(rows):
                break
            groups[rows] = n_groups
            n_groups += 1
    return groups


def find_label_conflicts(groups: np.ndarray, labels: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the first row and the first row with another label, for each group that has two."""
    first_rows: dict[int, int] = {}
    conflicts: dict[int, tuple[int, int]] = {}
    for row, group in enumerate(groups.tolist()):
        first = first_rows.setdefault(group, row)
        if labels[first] != labels[row]:
            conflicts.setdefault(group, (first, row))
    return list(conflicts.values())


def digest_embedding(aligner: Any) -> str:
    """Return a digest of everything that the embeddings of an aligner depend on.

    The digest covers the fitted parameters of the aligner, the parameters of its encoders, and the
    parameters and fitted attributes of all other steps of a Pipeline. Options such as ``n_jobs``,
    ``device`` or ``cache``, which do not change results, are left out. No weights are loaded. The
    digest is valid in this process only. Objects that cannot be pickled are compared by identity,
    so changes within them are not detected.
    """
    return _digest(aligner, by_object=True)


def digest_exactly(*values: Any) -> str | None:
    """Return a digest of values, in which estimators are digested as in `digest_embedding`.

    None is returned if an object cannot be pickled.
    """
    try:
        return _digest(values, by_object=False)
    except _PICKLING_ERRORS:
        return None


def _digest(value: Any, by_object: bool) -> str:
    """Return a digest of an object by its content.

    Objects that cannot be pickled are digested by their identity if `by_object`, else they raise
    an error.
    """
    digest = hashlib.sha256()
    try:
        _Pickler(SimpleNamespace(write=digest.update), by_object).dump(value)
    except _PICKLING_ERRORS:
        if not by_object:
            raise
        return f"object {number_object(value)}"
    return digest.hexdigest()


class _Pickler(pickle.Pickler):
    """Pickler that replaces estimators and arrays by their digests."""

    def __init__(self, file: Any, by_object: bool) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.by_object = by_object

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, np.ndarray) and not obj.dtype.hasobject:
            return fingerprint(np.asarray(obj))
        is_estimator = isinstance(obj, BaseEstimator) or hasattr(obj, "transform_text")
        if not is_estimator or isinstance(obj, type):
            return None
        kind = type(obj)
        parts = {
            name: _digest(value, self.by_object)
            for name, value in sorted(_collect_parts(obj).items())
        }
        return f"{kind.__module__}.{kind.__qualname__} {parts}"


def _collect_parts(estimator: Any) -> dict[str, Any]:
    """Return everything that the results of an estimator depend on, by name."""
    if hasattr(estimator, "_get_parts_of_digest"):  # an encoder of this package
        return estimator._get_parts_of_digest()
    if isinstance(estimator, FrozenEstimator):
        return {"estimator": estimator.estimator}
    attributes = vars(estimator)
    if "best_estimator_" in attributes:
        return {"best_estimator_": attributes["best_estimator_"]}
    needs_fit = not isinstance(estimator, BaseEstimator) or get_tags(estimator).requires_fit
    if hasattr(estimator, "transform_text") and not needs_fit:  # CLIPAligner: its two encoders
        return {name: getattr(estimator, name) for name in ("image_encoder", "text_encoder")}
    if hasattr(estimator, "fingerprint_"):  # a fitted aligner, which reads `dtype` in `transform`
        names = ("fingerprint_", "dtype", "image_encoder_", "text_encoder_")
        return {name: getattr(estimator, name) for name in names if hasattr(estimator, name)}
    parameters = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    fitted = attributes if needs_fit else {}
    parts = parameters | {name: v for name, v in fitted.items() if _is_fitted(name, v)}
    return {name: value for name, value in parts.items() if name not in _RUNTIME_OPTIONS}


def _is_fitted(name: str, value: Any) -> bool:
    """Return whether an attribute was set by `fit`, rather than later by another method."""
    if name.endswith("_") and not name.startswith("_"):
        return True
    return isinstance(value, np.ndarray | BaseEstimator) or issparse(value)


def number_object(value: Any) -> int:
    """Return a number that no other object of this process has, even after it is deleted."""
    with _lock:
        try:
            return _numbers.setdefault(value, next(_next_number))
        except TypeError:  # not hashable, or without support for weak references
            return id(value)
