"""What all frozen encoders share: batching, device, cache and errors."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import threading
import warnings
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from tqdm import tqdm

from ..devices import resolve_device
from ..features import FeatureCache, open_cache
from ._errors import EncodingError, ItemError
from ._networks import Network, shared_network
from ._registry import folder_digest

_NAMED_IN_ERRORS = 5


class CacheInfo(NamedTuple):
    """How many features came from the cache (hits) and how many from the network (misses)."""

    hits: int
    misses: int


_counts: defaultdict[bytes, list[int]] = defaultdict(lambda: [0, 0])
_locks: dict[str, threading.RLock] = {}


class FrozenEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of the encoders: subclasses say how to load a network and how to call it."""

    _modality: str

    # Declared by every subclass's __init__.
    model_name: str
    pooling: str
    batch_size: int
    device: str | torch.device | None
    dtype: str
    n_jobs: int | None
    cache: str | PathLike[str] | None
    on_error: str
    verbose: int

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Everything but the input that a feature depends on; cheap, no weights loaded."""

    @abstractmethod
    def _load(self, device: torch.device) -> Network:
        """Load the weights."""

    @abstractmethod
    def _digest(self, item: Any) -> bytes:
        """Return a digest of one item's content, or raise ItemError."""

    @abstractmethod
    def _check(self, item: Any) -> None:
        """Raise ItemError for what is seen to be bad without much work."""

    @abstractmethod
    def _prepare(self, prepare: Any, item: Any) -> Any:
        """Turn one item into what `_forward` takes; may run in a worker."""

    @abstractmethod
    def _blank(self) -> Any:
        """Return some valid item, to see the width of the features."""

    @abstractmethod
    def _forward(self, network: Network, batch: list[Any]) -> torch.Tensor:
        """Return the features of a batch, (n_items, n_features)."""

    def _order(self, items: list[Any]) -> list[int]:
        """Order in which items are encoded."""
        return list(range(len(items)))

    def fit(self, X: Sequence[Any], y: Any = None) -> Self:
        """Check the parameters and the form of X; a frozen encoder learns nothing.

        Parameters
        ----------
        X : sequence of length n_samples
            What `transform` takes.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : object
            The encoder itself.
        """
        self._check_parameters()
        self._as_list(X)
        return self

    def transform(self, X: Sequence[Any]) -> np.ndarray:
        """Encode every item; equal ones are encoded once.

        Parameters
        ----------
        X : sequence of length n_samples
            A list, an array, a pandas or polars column or a Hugging Face ``Column``.

        Returns
        -------
        features : ndarray of shape (n_samples, n_features) and dtype float32
            With ``on_error="nan"``, a row of NaN for each bad item.

        Raises
        ------
        EncodingError
            With ``on_error="raise"``, when items cannot be encoded. Batches finished before are
            in the cache.
        """
        self._check_parameters()
        items = self._as_list(X)
        identity = self._identity_digest()
        errors: dict[int, str] = {}
        rows: dict[bytes, list[int]] = {}
        for row, item in enumerate(items):
            try:
                key = hashlib.sha256(identity + self._digest(item)).digest()
            except ItemError as error:
                errors[row] = self._describe(item, error)
            else:
                rows.setdefault(key, []).append(row)
        self._raise_or_go_on(errors)

        # Two threads that want the same pictures must not encode them twice, and a tokenizer
        # serves one thread at a time.
        lock = _locks.setdefault(self._weights_key(), threading.RLock())
        with lock, open_cache(self.cache) as cache:
            found = cache.get_many(rows)
            missing = [key for key in rows if key not in found]
            _counts[identity][0] += len(items) - len(errors) - len(missing)
            if missing:
                first = {key: items[rows[key][0]] for key in missing}
                found |= self._encode(first, cache, rows, errors, identity)
        self._report(errors)
        self.errors_ = dict(sorted(errors.items()))

        if found:
            self._width = (identity, len(next(iter(found.values()))))
        features = np.full((len(items), self._n_features_out), np.nan, dtype=np.float32)
        for key, feature in found.items():
            features[rows[key]] = feature
        return features

    def cache_info(self) -> CacheInfo:
        """Count, for this process, the features from the cache and those from the network.

        Returns
        -------
        info : CacheInfo
            Named tuple ``(hits, misses)``, over all encoders with these parameters.
        """
        return CacheInfo(*_counts[self._identity_digest()])

    def _encode(
        self,
        items: dict[bytes, Any],
        cache: FeatureCache,
        rows: dict[bytes, list[int]],
        errors: dict[int, str],
        identity: bytes,
    ) -> dict[bytes, np.ndarray]:
        """Call the network on items by key, adding to `errors` those that fail."""

        def fails(bad: dict[bytes, ItemError]) -> None:
            for key, error in bad.items():
                message = self._describe(items[key], error)
                errors.update(dict.fromkeys(rows[key], message))
            self._raise_or_go_on(errors)

        checked = {}
        bad = {}
        for key, item in items.items():
            try:
                self._check(item)
            except ItemError as error:
                bad[key] = error
            else:
                checked[key] = item
        fails(bad)

        keys = list(checked)
        keys = [keys[place] for place in self._order(list(checked.values()))]
        network = self._network()
        features: dict[bytes, np.ndarray] = {}
        with tqdm(
            total=len(keys),
            unit=self._modality,
            desc=self.model_name,
            disable=not self.verbose,
            delay=0.5,
        ) as progress:
            for batch, bad in self._batches(network, checked, keys):
                done = self._features_of(network, batch, bad)
                cache.put_many(done)
                features |= done
                _counts[identity][1] += len(batch)
                progress.update(len(batch) + len(bad.keys() - batch.keys()))
                fails(bad)
        return features

    def _batches(
        self, network: Network, items: dict[bytes, Any], keys: list[bytes]
    ) -> Iterator[tuple[dict[bytes, Any], dict[bytes, ItemError]]]:
        """Yield prepared batches and the items that could not be prepared."""
        parallel = Parallel(n_jobs=self.n_jobs, prefer="threads")
        for start in range(0, len(keys), self.batch_size):
            some = keys[start : start + self.batch_size]
            prepared = parallel(
                delayed(_prepared_or_error)(self, network.prepare, items[key]) for key in some
            )
            good = {
                k: p for k, p in zip(some, prepared, strict=True) if not isinstance(p, ItemError)
            }
            yield (
                good,
                {k: p for k, p in zip(some, prepared, strict=True) if isinstance(p, ItemError)},
            )

    def _features_of(
        self, network: Network, batch: dict[bytes, Any], bad: dict[bytes, ItemError]
    ) -> dict[bytes, np.ndarray]:
        """Return the finite features of a batch, adding the others to `bad`."""
        if not batch:
            return {}
        precision: Any = nullcontext()
        if self.dtype != "float32":
            precision = torch.autocast(network.device.type, dtype=getattr(torch, self.dtype))
        with torch.inference_mode(), precision:
            features = self._forward(network, list(batch.values()))
        numbers = features.float().cpu().numpy()
        finite = np.isfinite(numbers).all(axis=1)
        for key, is_finite in zip(batch, finite, strict=True):
            if not is_finite:
                bad[key] = ItemError(
                    f"the network gives numbers that are not finite in {self.dtype}."
                )
        return {
            key: feature for key, feature, good in zip(batch, numbers, finite, strict=True) if good
        }

    def _network(self) -> Network:
        return self._shared(type(self).__name__)

    def _shared(self, loader: str) -> Network:
        device = resolve_device(self.device)
        weights = self._weights_key()
        if os.path.isdir(self.model_name):  # another model may lie there by now
            weights += folder_digest(Path(self.model_name))
        key = (loader, weights, str(device))
        return shared_network(key, lambda: self._load(device))

    @abstractmethod
    def _weights_key(self) -> str:
        """Name the weights: encoders with the same key share one loaded network."""

    @property
    def _n_features_out(self) -> int:
        identity = self._identity_digest()  # parameters may have been set since
        if getattr(self, "_width", (b"", 0))[0] != identity:
            network = self._network()
            blank = self._prepare(network.prepare, self._blank())
            with torch.inference_mode():
                self._width = (identity, self._forward(network, [blank]).shape[1])
        return self._width[1]

    def _identity_digest(self) -> bytes:
        identity = {"encoder": type(self).__name__, "dtype": self.dtype, **self._identity()}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()

    def _describe(self, item: Any, error: ItemError) -> str:
        if isinstance(item, str | PathLike):
            return f"{str(item)[:200]!r} {error}"
        if isinstance(item, bytes | bytearray | memoryview):
            return f"the {type(item).__name__} object {error}"
        if hasattr(item, "getexif") or isinstance(item, np.ndarray):
            return f"the {'array' if isinstance(item, np.ndarray) else 'PIL image'} {error}"
        return f"{reprlib.repr(item)} {error}"

    def _raise_or_go_on(self, errors: dict[int, str]) -> None:
        if errors and self.on_error == "raise":
            raise EncodingError(
                f"{self._summary(errors)}Remove them, or pass on_error='nan' to "
                f"{type(self).__name__} to go on without them.",
                dict(sorted(errors.items())),
            )

    def _report(self, errors: dict[int, str]) -> None:
        if errors:
            warnings.warn(
                f"{self._summary(errors)}Their features are NaN; `errors_` names them all.",
                UserWarning,
                stacklevel=4,  # past scikit-learn's wrapper of transform
            )

    def _summary(self, errors: dict[int, str]) -> str:
        plural = "s" if len(errors) > 1 else ""
        lines = [f"  row {row}: {errors[row]}" for row in sorted(errors)[:_NAMED_IN_ERRORS]]
        if len(errors) > _NAMED_IN_ERRORS:
            lines.append(f"  and {len(errors) - _NAMED_IN_ERRORS} more.")
        start = f"{len(errors)} {self._modality}{plural} cannot be encoded:"
        return "\n".join([start, *lines, ""])

    def _as_list(self, X: Any) -> list[Any]:
        """Return X as a list of items, refusing what is no sequence of them."""
        single = str | bytes | bytearray | memoryview | PathLike
        if isinstance(X, single) or hasattr(X, "getexif"):
            raise ValueError(
                f"X is a single {self._modality}, not a sequence of them: pass a list, [X]."
            )
        if X is None or not hasattr(X, "__len__") or isinstance(X, dict | set | frozenset):
            raise ValueError(
                f"X must be a sequence of {self._modality}s (a list, an array, a column), not "
                f"{type(X).__name__}."
            )
        columns = getattr(X, "column_names", getattr(X, "columns", None))
        if columns is not None:
            raise ValueError(
                f"X is a table with the columns {list(columns)}: pass the one column that "
                f"holds the {self._modality}s."
            )
        if getattr(X, "ndim", 1) == 0:
            raise ValueError(f"X must be a sequence of {self._modality}s, not a single object.")
        items = X.to_pylist() if hasattr(X, "to_pylist") else list(X)  # pyarrow, or any other
        if not items:
            raise ValueError(f"X is empty: 0 {self._modality}s to encode.")
        return items

    def _check_parameters(self) -> None:
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ValueError(f"model_name must be a str, not {self.model_name!r}.")
        if not isinstance(self.batch_size, int | np.integer) or self.batch_size < 1:
            raise ValueError(f"batch_size must be an integer >= 1, not {self.batch_size!r}.")
        _check_choice("on_error", self.on_error, ("raise", "nan"))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        resolve_device(self.device)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags


def _check_choice(parameter: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{parameter} must be one of {', '.join(choices)}, not {value!r}.")


def _prepared_or_error(encoder: FrozenEncoder, prepare: Any, item: Any) -> Any:
    """Return the error as a value: workers must give back the good items of the batch."""
    try:
        return encoder._prepare(prepare, item)
    except ItemError as error:
        return error
