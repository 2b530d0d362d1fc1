"""Records of the images and the embeddings that an aligner was fitted with."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils import gen_batches, get_tags

from ..encoders.base import FrozenEncoder
from ..encoders.weights import digest_folder
from ..features.memmap import find_missing_rows
from ..utils.concurrency import ForkSafeLock
from ..utils.linalg import evenly_spaced, fingerprint

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
        known = np.flatnonzero(~find_missing_rows(features))
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
        return known & ~find_missing_rows(features)


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


# By convention these attributes of an estimator do not change its results.
_RUNTIME_OPTIONS = frozenset(
    {"batch_size", "cache", "device", "errors_", "memory", "n_jobs", "on_error", "verbose"}
)


# Objects that cannot be pickled, such as a lambda, are numbered, since Python reuses ids.
_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


_next_number = itertools.count()


_lock = ForkSafeLock()


def embedding_digest(aligner: Any) -> str:
    """Return a digest of everything that the embeddings of an aligner depend on.

    That is what the aligner has learned, the parameters of its encoders, and parameters and
    fitted attributes of the other steps of a Pipeline. Options such as ``n_jobs``, ``device`` or
    ``cache``, which do not change results, are left out. No weights are loaded.

    Parameters
    ----------
    aligner : estimator
        A fitted aligner, or an estimator around one, such as a Pipeline.

    Returns
    -------
    digest : str
        Valid in this process only. An object that cannot be pickled counts as the same for as
        long as it is the same object, so that changes within it are not noticed.
    """
    return _Digest(by_object=True).of(aligner)


def exact_digest(*values: Any) -> str | None:
    """Return a digest of values, in which estimators count as in `embedding_digest`.

    Parameters
    ----------
    *values : object
        Any objects.

    Returns
    -------
    digest : str or None
        None when there is an object that cannot be pickled.
    """
    try:
        return _Digest(by_object=False).of(values)
    except _CANNOT_BE_PICKLED:
        return None


# pickle raises ValueError for memory that is not contiguous, and libraries raise the others.
_CANNOT_BE_PICKLED = (
    pickle.PicklingError,
    AttributeError,
    TypeError,
    ValueError,
    NotImplementedError,
    RecursionError,
)


class _Digest:
    """Digests objects by what they hold.

    Parameters
    ----------
    by_object : bool
        Whether an object that cannot be pickled counts by its identity. Otherwise it is an error.
    """

    def __init__(self, by_object: bool) -> None:
        self.by_object = by_object

    def of(self, value: Any) -> str:
        """Return the digest of an object."""
        digest = hashlib.sha256()
        try:
            _Pickler(SimpleNamespace(write=digest.update), self).dump(value)
        except _CANNOT_BE_PICKLED:
            if not self.by_object:
                raise
            return f"object {_number_of(value)}"
        return digest.hexdigest()

    def of_estimator(self, estimator: Any) -> str:
        """Return the digest of what the results of an estimator depend on."""
        kind = type(estimator)
        parts = {name: self.of(value) for name, value in sorted(_parts(estimator).items())}
        return f"{kind.__module__}.{kind.__qualname__} {parts}"


class _Pickler(pickle.Pickler):
    """Pickles to no file; estimators and arrays are replaced by their digests."""

    def __init__(self, file: Any, digest: _Digest) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.digest = digest

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, np.ndarray) and not obj.dtype.hasobject:
            return fingerprint(np.asarray(obj))
        is_estimator = isinstance(obj, BaseEstimator) or hasattr(obj, "transform_text")
        if is_estimator and not isinstance(obj, type):
            return self.digest.of_estimator(obj)
        return None


def _parts(estimator: Any) -> dict[str, Any]:
    """Return what the results of an estimator depend on, by name."""
    if isinstance(estimator, FrozenEncoder):
        return _parts_of_encoder(estimator)
    if isinstance(estimator, FrozenEstimator):
        return {"estimator": estimator.estimator}
    attributes = vars(estimator)
    if "best_estimator_" in attributes:
        return {"best_estimator_": attributes["best_estimator_"]}
    needs_fit = not isinstance(estimator, BaseEstimator) or get_tags(estimator).requires_fit
    if hasattr(estimator, "transform_text") and not needs_fit:  # CLIP, which is its two towers
        return {name: getattr(estimator, name) for name in ("image_encoder", "text_encoder")}
    if hasattr(estimator, "fingerprint_"):  # a fitted aligner; it reads `dtype` when it embeds
        names = ("fingerprint_", "dtype", "image_encoder_", "text_encoder_")
        return {name: getattr(estimator, name) for name in names if hasattr(estimator, name)}
    parameters = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    fitted = attributes if needs_fit else {}
    parts = parameters | {name: v for name, v in fitted.items() if _is_fitted(name, v)}
    return {name: value for name, value in parts.items() if name not in _RUNTIME_OPTIONS}


def _parts_of_encoder(encoder: FrozenEncoder) -> dict[str, Any]:
    """Return what the features of an encoder depend on.

    Unlike `_identity_digest` this does not load weights to find out which commit the hub has,
    since they stay the same within a process. The weights in a folder may have changed.
    """
    parts = encoder.get_params(deep=False)
    for name in encoder._runtime_params | {"on_error"}:
        parts.pop(name, None)
    if encoder.dtype != "float32":
        parts["engine"] = encoder._engine_name()
    if os.path.isdir(encoder.model_name):
        parts["weights"] = digest_folder(Path(encoder.model_name))
    return parts


def _is_fitted(name: str, value: Any) -> bool:
    """Say whether `fit` learned an attribute, rather than a method storing it during use."""
    if name.endswith("_") and not name.startswith("_"):
        return True
    return isinstance(value, np.ndarray | BaseEstimator) or issparse(value)


def _number_of(value: Any) -> int:
    with _lock:
        try:
            return _numbers.setdefault(value, next(_next_number))
        except TypeError:  # no weak reference to it, or no hash
            return id(value)
