"""Base class of all encoders."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self
from weakref import WeakValueDictionary

import numpy as np
import torch
from joblib import cpu_count
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from tqdm import tqdm

from ..devices import resolve_device
from ..features import FeatureCache, open_cache
from ..utils.concurrency import ForkSafeLock, map_threaded
from ..utils.escape import escape_controls
from ..utils.sklearn_compat import CallbackSupportMixin, LazyNamesMixin, reports_fit
from ..utils.torch_state import default_state
from ..utils.warnings import warn
from ._encode_to import EncodesToFile
from ._engines import ENGINES, Engine, Workload, choose_engine, make_engine
from .items import (
    EncodingError,
    EncodingFailedWarning,
    ItemError,
    as_items,
    describe_item,
    exports_folder,
    summarize_errors,
)
from .weights import Network, RecordedEncoder, digest_folder, get_shared_network


class Computes:
    """The part of an encoder that computes batches."""

    # Items from which the export of a small network saves more time than it takes.
    _worth_exporting: int

    batch_size: int | str
    engine: str
    device: str | torch.device | None
    dtype: str
    n_jobs: int | None
    cache: str | PathLike[str] | FeatureCache | None

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Everything but the input that a feature depends on; cheap, no weights loaded."""

    @abstractmethod
    def _network(self) -> Network:
        """Return the loaded network."""

    @abstractmethod
    def _prepare(self, prepare: Any, item: Any) -> Any:
        """Turn one item into what `_tensors` takes; called in threads."""

    @abstractmethod
    def _module(self, network: Network) -> torch.nn.Module:
        """Return what maps the tensors of a batch to features, (n_items, n_features)."""

    @abstractmethod
    def _tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        """Return prepared items as tensors on the CPU, each with a row an item."""

    @abstractmethod
    def _examples(self) -> list[list[Any]]:
        """Return batches of unlike items, to trace a network with and to compare engines on."""

    @abstractmethod
    def _default_batch_size(self, engine: str, device: torch.device) -> int:
        """Return what is fastest."""

    def _forward(self, network: Network, batch: list[Any]) -> torch.Tensor:
        """Return the features of a batch by torch, (n_items, n_features)."""
        tensors = (x.to(network.device) for x in self._tensors(network, batch))
        return self._module(network)(*tensors)

    def _engine(self, n_items: int) -> Engine:
        """Return what computes the network for so many items."""
        network = self._network()
        identity = {"encoder": type(self).__name__, **self._identity()}
        workload = Workload(
            self._module(network),
            lambda: [
                self._tensors(network, [self._prepare(network.prepare, item) for item in batch])
                for batch in self._examples()
            ],
            json.dumps(identity, sort_keys=True),
            network.device,
            self.dtype,
            self._n_threads(),
            exports_folder(self.cache),
        )
        return make_engine(self.engine, workload, n_items, self._worth_exporting)

    def _engine_name(self) -> str:
        return choose_engine(self.engine, self._device(), self.dtype)

    def _device(self) -> torch.device:
        if self.engine in ("onnx", "openvino") and self.device in (None, "auto"):
            return torch.device("cpu")
        return resolve_device(self.device)

    def _n_threads(self) -> int:
        if self.n_jobs is None:
            return torch.get_num_threads()  # which joblib lowers in its workers
        return self.n_jobs if self.n_jobs > 0 else max(1, cpu_count() + 1 + self.n_jobs)

    def _batch_size_for(self, engine: str, device: torch.device) -> int:
        if self.batch_size == "auto":
            return self._default_batch_size(engine, device)
        return int(self.batch_size)


class CacheInfo(NamedTuple):
    """Where features came from.

    Attributes
    ----------
    hits : int
        From the cache.
    misses : int
        From the network.
    """

    hits: int
    misses: int


# Of few items for torch, so that threads read some of them while it computes others.
_PARTS = 4


# Counts are bounded, since a search over parameters of encoders creates many identities.
_MOST_COUNTS = 1024


# Hits and misses by identity, the least recently used first.
_counts: OrderedDict[bytes, list[int]] = OrderedDict()


# Locks by weights, each for as long as a thread holds it or waits for it.
_locks: WeakValueDictionary[str, ForkSafeLock] = WeakValueDictionary()


_registry_lock = ForkSafeLock()


class FrozenEncoder(
    EncodesToFile,
    Computes,
    RecordedEncoder,
    LazyNamesMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Base of the encoders: subclasses say how to load a network and how to call it."""

    _modality: str

    # Declared by every subclass's __init__.
    model_name: str
    pooling: str
    on_error: str
    verbose: int

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
    def _blank(self) -> Any:
        """Return some valid item, to see the width of the features."""

    def _may_change(self, item: Any) -> bool:
        """Tell items that others may change meanwhile, such as files."""
        return False

    def _order(self, items: list[Any]) -> list[int]:
        """Order in which items are encoded."""
        return list(range(len(items)))

    @reports_fit
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
                key = self._key(identity, item)
            except ItemError as error:
                errors[row] = describe_item(item, error)
            else:
                rows.setdefault(key, []).append(row)
        self._raise_or_go_on(errors)

        # Two threads that want the same images must not encode them twice.
        with (
            default_state(),
            _lock_of(self._weights_key()),
            open_cache(self.cache) as cache,
        ):
            found = cache.get_many(rows)
            missing = [key for key in rows if key not in found]
            _count(identity, hits=len(items) - len(errors) - len(missing))
            if missing:
                of_key = {key: [(row, items[row]) for row in rows[key]] for key in missing}
                found |= self._encode(of_key, cache, errors, identity)
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
        return CacheInfo(*_counts.get(self._identity_digest(), (0, 0)))

    def _key(self, identity: bytes, item: Any) -> bytes:
        return hashlib.sha256(identity + self._digest(item)).digest()

    def _encode(
        self,
        of_key: dict[bytes, list[tuple[int, Any]]],
        cache: FeatureCache,
        errors: dict[int, str],
        identity: bytes,
    ) -> dict[bytes, np.ndarray]:
        """Call the network on the first item of every key, adding to `errors` those that fail."""

        def fails(bad: dict[bytes, ItemError]) -> None:
            for key, error in bad.items():
                errors.update({row: describe_item(item, error) for row, item in of_key[key]})
            self._raise_or_go_on(errors)

        items = {key: rows[0][1] for key, rows in of_key.items()}
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
        features: dict[bytes, np.ndarray] = {}
        with tqdm(
            total=len(keys),
            unit=self._modality,
            desc=escape_controls(self.model_name),
            disable=not self.verbose,
            delay=0.5,
        ) as progress:
            for done, bad in self._batches(checked, keys, identity):
                cache.put_many(done)
                features |= done
                _count(identity, misses=len(done))
                progress.update(len(done) + len(bad))
                fails(bad)
        return features

    def _batches(
        self, items: dict[bytes, Any], keys: list[bytes], identity: bytes
    ) -> Iterator[tuple[dict[bytes, np.ndarray], dict[bytes, ItemError]]]:
        """Yield the features of a batch, and what is wrong with those that have none."""
        network, engine, n_threads = self._network(), self._engine(len(keys)), self._n_threads()
        size = self._batch_size_for(engine.name, network.device)
        if self.batch_size == "auto":  # a few items keep all threads busy, too
            # torch rounds by the size of a batch, which must not turn on the number of threads.
            n_parts = n_threads if engine.concurrent else _PARTS
            size = max(1, min(size, -(-len(keys) // n_parts)))
        starts = range(0, len(keys), size)

        def prepare(start: int) -> tuple[list[bytes], Any, dict[bytes, ItemError]]:
            good, bad = {}, {}
            for key in keys[start : start + size]:
                try:
                    prepared = self._prepare(network.prepare, items[key])
                    if self._may_change(items[key]) and self._key(identity, items[key]) != key:
                        raise ItemError("was changed while it was read. Encode it once more.")
                    good[key] = prepared
                except ItemError as error:
                    bad[key] = error
            return list(good), self._tensors(network, list(good.values())) if good else None, bad

        def compute(
            prepared: tuple[list[bytes], Any, dict[bytes, ItemError]],
        ) -> tuple[dict[bytes, np.ndarray], dict[bytes, ItemError]]:
            good, tensors, bad = prepared
            return self._features_of(engine, good, tensors, bad) if good else {}, bad

        if engine.concurrent:
            yield from map_threaded(
                lambda start: compute(prepare(start)), starts, n_threads, alone=True
            )
        else:
            yield from map(compute, map_threaded(prepare, starts, n_threads, alone=True))

    def _features_of(
        self,
        engine: Engine,
        keys: list[bytes],
        tensors: tuple[torch.Tensor, ...],
        bad: dict[bytes, ItemError],
    ) -> dict[bytes, np.ndarray]:
        """Return the finite features of a batch, adding the others to `bad`."""
        numbers = engine(tensors)
        finite = np.isfinite(numbers).all(axis=1)
        for key, is_finite in zip(keys, finite, strict=True):
            if not is_finite:
                bad[key] = ItemError(
                    f"the network gives numbers that are not finite in {self.dtype}."
                )
        return {
            key: feature for key, feature, good in zip(keys, numbers, finite, strict=True) if good
        }

    def _network(self) -> Network:
        return self._shared(type(self).__name__)

    def _shared(self, loader: str) -> Network:
        device = self._device()
        weights = self._weights_key()
        if os.path.isdir(self.model_name):  # another model may lie there by now
            weights += digest_folder(Path(self.model_name))
        key = (loader, weights, str(device))
        return get_shared_network(key, lambda: self._loaded(device))

    def _loaded(self, device: torch.device) -> Network:
        # Weights are drawn at random before they are read: not from the user's generator.
        with default_state(), torch.random.fork_rng(devices=[]):
            network = self._load(device)
            network.model.requires_grad_(False).eval()
        return network

    @abstractmethod
    def _weights_key(self) -> str:
        """Name the weights: encoders with the same key share one loaded network."""

    def _knows_its_width(self) -> bool:
        # Parameters may have been set since.
        return getattr(self, "_width", (b"", 0))[0] == self._identity_digest()

    @property
    def _n_features_out(self) -> int:
        if not self._knows_its_width():
            network = self._network()
            with default_state(), torch.inference_mode():
                blank = self._prepare(network.prepare, self._blank())
                width = self._forward(network, [blank]).shape[1]
            self._width = (self._identity_digest(), width)
        return self._width[1]

    def _identity_digest(self) -> bytes:
        identity = {"encoder": type(self).__name__, "dtype": self.dtype, **self._identity()}
        if self.dtype != "float32":  # in which engines differ by more than rounding
            identity["engine"] = self._engine_name()
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()

    def _digest_parts(self) -> dict[str, Any]:
        """Return everything that features depend on, without loading weights.

        Unlike `_identity_digest`, this does not find out which commit of a model is used: that
        stays the same within a process. The weights in a folder may have changed.
        """
        parts = self.get_params(deep=False)
        for name in self._of_the_machine | {"on_error"}:
            parts.pop(name, None)
        if self.dtype != "float32":
            parts["engine"] = self._engine_name()
        if os.path.isdir(self.model_name):
            parts["weights"] = digest_folder(Path(self.model_name))
        return parts

    def _raise_or_go_on(self, errors: dict[int, str]) -> None:
        if errors and self.on_error == "raise":
            raise EncodingError(
                f"{summarize_errors(errors, self._modality)}Remove them, or pass on_error='nan' "
                f"to {type(self).__name__} to go on without them.",
                dict(sorted(errors.items())),
            )

    def _report(self, errors: dict[int, str]) -> None:
        if errors:
            warn(
                f"{summarize_errors(errors, self._modality)}"
                "Their features are NaN; `errors_` names them all.",
                EncodingFailedWarning,
            )

    def _as_list(self, X: Any) -> list[Any]:
        """Return X as a list of items, refusing what is no sequence of them."""
        return as_items(X, self._modality)

    def _check_parameters(self) -> None:
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ValueError(f"model_name must be a str, not {self.model_name!r}.")
        is_number = isinstance(self.batch_size, int | np.integer)
        if self.batch_size != "auto" and (not is_number or int(self.batch_size) < 1):
            raise ValueError(
                f"batch_size must be 'auto' or an integer >= 1, not {self.batch_size!r}."
            )
        _check_choice("engine", self.engine, ENGINES)
        _check_choice("on_error", self.on_error, ("raise", "nan"))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        if self.n_jobs == 0:
            raise ValueError("n_jobs must be None, a positive number or -1 for one a core, not 0.")
        self._engine_name()

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags


def _lock_of(weights: str) -> ForkSafeLock:
    with _registry_lock:
        return _locks.setdefault(weights, ForkSafeLock())


def _count(identity: bytes, hits: int = 0, misses: int = 0) -> None:
    with _registry_lock:
        counts = _counts.setdefault(identity, [0, 0])
        counts[0] += hits
        counts[1] += misses
        _counts.move_to_end(identity)
        while len(_counts) > _MOST_COUNTS:
            _counts.popitem(last=False)


def _check_choice(parameter: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{parameter} must be one of {', '.join(choices)}, not {value!r}.")
