"""Base class for encoders."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from joblib import cpu_count
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags

from ..devices import default_state, resolve_device
from ..features import FeatureCache, open_cache
from ..persistence.mixins import FittedState, SerializableMixin
from ..utils.files import expand_user
from ..utils.messages import warn
from ..utils.sklearn_compat import CallbackSupportMixin, LazyNamesMixin, reports_fit
from ..utils.validation import check_choice, check_integer, to_builtin
from ._encoding import CacheInfo, cache_info, encode, encode_to_file, n_features_by_identity
from ._engine import ENGINES, Engine, TorchEngine, Workload, choose_dtype, choose_engine
from ._engine_factory import get_exports_folder, is_export_worthwhile, make_engine
from .items import EncodingError, EncodingFailedWarning, as_items, summarize_errors
from .weights import (
    PACKAGED,
    Network,
    check_fitted_weights,
    check_outside_model,
    digest_folder,
    find_hub_commit,
    format_library_version,
    shared_networks,
)

# Version of the computation in low precision. A new one makes older cached features unused.
_LOW_PRECISION_VERSION = 3


class FrozenEncoder(
    SerializableMixin,
    LazyNamesMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Base class for encoders: caching, batching, error handling and saving.

    Subclasses load a network and define how it is called.
    """

    _modality: str
    # Smallest number of items for which exporting a small network saves more time than it takes.
    _min_items_to_export: int
    _cpu_batch_size: int  # fastest on a CPU, one core of which computes a batch
    _gpu_batch_size: int
    _library: str  # which loads the network
    _loader: str | None = None  # name of the classes that share a network, by default this class
    _runtime_params: ClassVar = frozenset(
        {"batch_size", "cache", "device", "engine", "n_jobs", "verbose"}
    )

    # Parameters of all encoders. Subclasses are dataclasses, whose fields are their parameters.
    model_name: str
    revision: str | None
    batch_size: int | str
    engine: str
    device: str | torch.device | None
    dtype: str
    n_jobs: int | None
    cache: str | os.PathLike[str] | FeatureCache | None
    on_error: str
    verbose: int | None
    # Fingerprint of the weights at `fit`. None if they had not been downloaded, or before `fit`.
    _fitted_weights: str | None = None

    # Methods of subclasses: weights and identity

    @abstractmethod
    def _load_network(self, device: torch.device) -> Network:
        """Load the weights."""

    def _get_weights_key(self) -> str:
        """Return the name of the weights; encoders with the same name share a loaded network."""
        return f"{self.model_name}@{self.revision}"

    def _compute_weights_fingerprint(self) -> str | None:
        """Return a digest or commit of the weights, or None if the model must be loaded first."""
        if self.model_name in PACKAGED:
            return PACKAGED[self.model_name].sha256
        if os.path.isdir(self.model_name):
            return digest_folder(self.model_name)
        commit = find_hub_commit(self._get_hub_id(), self.revision)
        return f"{self.model_name}@{commit}" if commit else None

    def _get_hub_id(self) -> str:
        """Return the hub name of a model that is neither packaged nor a folder."""
        return self.model_name

    def _get_identity(self) -> dict[str, Any]:
        """Return what a feature depends on, except item and precision; may download the model."""
        weights = self._compute_weights_fingerprint()
        check_fitted_weights(self, weights)
        if weights is None:
            self._get_network()  # downloads the weights
            weights = self._compute_weights_fingerprint() or f"{self.model_name}@{self.revision}"
            check_fitted_weights(self, weights)
        excluded = self._runtime_params | {"model_name", "revision", "dtype", "on_error"}
        # Not get_params, which takes longer than the rest of a key.
        names = [field.name for field in fields(self) if field.name not in excluded]
        params = {name: to_builtin(getattr(self, name)) for name in names}
        library = format_library_version(self._library)
        return {"encoder": type(self).__name__, "weights": weights, "library": library, **params}

    # Methods of subclasses: items

    @abstractmethod
    def _digest_item(self, item: Any) -> bytes:
        """Return a digest of an item's content, or raise ItemError."""

    @abstractmethod
    def _check_item(self, item: Any) -> None:
        """Raise ItemError for an item whose defects can be found cheaply."""

    @abstractmethod
    def _prepare_item(self, prepare: Any, item: Any) -> Any:
        """Convert an item for `_make_tensors`; called in threads."""

    @abstractmethod
    def _make_blank(self) -> Any:
        """Return a valid item, used to find the number of features."""

    @abstractmethod
    def _make_examples(self) -> list[list[Any]]:
        """Return batches of varied items, used to trace a network and to compare engines."""

    def _may_change(self, item: Any) -> bool:
        """Return whether an item's content may change while it is read, because it is a file."""
        return False

    def _sort_rows(self, items: list[Any]) -> list[int]:
        """Return the order in which items are encoded."""
        return list(range(len(items)))

    def _warn_about_unsuitable(self, items: list[Any]) -> None:
        """Warn about valid items of a kind that the network was not trained on."""

    # Methods of subclasses: batches

    @abstractmethod
    def _make_tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        """Return prepared items as tensors on the CPU, each with one row per item."""

    @abstractmethod
    def _make_module(self, network: Network) -> torch.nn.Module:
        """Return the module that maps tensors of a batch to features, (n_items, n_features)."""

    # Public methods

    @reports_fit
    def fit(self, X: Sequence[Any], y: Any = None) -> Self:
        """Check the parameters and X. The encoder is frozen, so nothing is learned.

        Parameters
        ----------
        X : sequence of length n_samples
            Items, as for `transform`.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : object
            The encoder itself.
        """
        self._check_parameters()
        self._as_list(X)
        self._fitted_weights = self._compute_weights_fingerprint()
        return self

    def transform(self, X: Sequence[Any]) -> np.ndarray:
        """Encode all items. Duplicates are encoded once.

        Parameters
        ----------
        X : sequence of length n_samples
            Items as a list, an array, a pandas or polars column or a Hugging Face ``Column``.

        Returns
        -------
        features : ndarray of shape (n_samples, n_features) and dtype float32
            Features. With ``on_error="nan"``, rows of items that cannot be encoded are NaN.

        Raises
        ------
        EncodingError
            With ``on_error="raise"``, if items cannot be encoded. Batches that were finished
            before the error are in the cache.
        """
        self._check_parameters()
        items = self._as_list(X)
        self._warn_about_unsuitable(items)
        features, self.errors_ = encode(self, items)
        self._warn_about_errors()
        return features

    def encode_to(
        self,
        path: str | os.PathLike[str],
        X: Iterable[Any],
        *,
        chunk_size: int = 1024,
        n_jobs: int | None = None,
        dtype: str = "float32",
        overwrite: bool = False,
        verbose: int | None = None,
    ) -> np.memmap:
        """Encode items into a ``.npy`` file, chunk by chunk, in bounded memory.

        A run that was killed resumes where it stopped when it is started again. If the file is
        already complete, a second run with the same items only checks it, which reads every image
        but encodes none.

        Parameters
        ----------
        path : str or path-like
            File to write. Until it is complete, the rows are in ``path + ".partial"``. The
            finished chunks are listed in ``path + ".journal"``, which is kept.
        X : sequence or sized iterable of length n_samples
            Items, as for `transform`, or the images or captions of
            :func:`~sklearn_ape.datasets.load_webdataset`, which are read chunk by chunk.
        chunk_size : int, default=1024
            Number of rows that are encoded and written together.
        n_jobs : int or None, default=None
            Number of chunks that joblib encodes in parallel. Under
            ``joblib.parallel_config(backend="dask")``, the workers of the cluster encode them and
            this process writes. None means 1 unless a backend is chosen.
        dtype : {"float32", "float16"}, default="float32"
            Data type of the file.
        overwrite : bool, default=False
            Whether to replace a file of other items or of another encoder.
        verbose : int or None, default=None
            1 shows a progress bar. None uses the encoder's ``verbose``.

        Returns
        -------
        features : memmap of shape (n_samples, n_features)
            The file, opened for reading. With ``on_error="nan"``, rows of items that cannot be
            encoded are NaN and listed in ``errors_``.

        Raises
        ------
        EncodingError
            With ``on_error="raise"``, if items cannot be encoded. Finished chunks are kept.
        OtherContentError
            A `FileExistsError`, if the file or the partial file contains features of other items
            or of another encoder.
        ValueError
            If a feature does not fit in float16, a parameter is invalid, the file is in the folder
            of the model, or the model is replaced during the run or differs on a worker.
        OSError
            If the file cannot be written, or another process is writing it (`FileLockedError`).

        See Also
        --------
        sklearn_ape.features.DiskFeatureCache : Cache on disk, for items that are encoded again.

        Examples
        --------
        >>> import tempfile
        >>> from sklearn_ape.encoders import TransformersTextEncoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encoder = TransformersTextEncoder()
        ...     encoder.encode_to(f"{folder}/captions.npy", ["a cat", "a dog"]).shape
        (2, 384)
        """
        self._check_parameters()
        check_outside_model(self.model_name, expand_user(path), f"path={str(path)!r}")
        features, self.errors_ = encode_to_file(
            self, path, X, chunk_size, n_jobs, dtype, overwrite, verbose
        )
        self._warn_about_errors()
        return features

    @property
    def dtype_(self) -> str:
        """Precision in which the network is computed; the choice made for ``dtype="auto"``."""
        if self.dtype != "auto":
            return self.dtype
        return choose_dtype(self.engine, self._resolve_device())

    def cache_info(self) -> CacheInfo:
        """Return how many features came from the cache and from the network in this process.

        Returns
        -------
        info : CacheInfo
            Named tuple ``(hits, misses)``, summed over all encoders with the same parameters.
        """
        return cache_info(self._digest_identity())

    def _forward(self, network: Network, batch: list[Any]) -> torch.Tensor:
        """Return the features of a batch, (n_items, n_features), computed by torch."""
        tensors = (x.to(network.device) for x in self._make_tensors(network, batch))
        return self._make_module(network)(*tensors)

    def _get_engine(self, n_items: int) -> Engine:
        """Return the engine that computes features of some number of items.

        Engines are shared within the process. With ``engine="auto"``, torch computes a few items,
        for which the start of another engine takes longer than it saves.
        """
        network = self._get_network()
        prepare = partial(self._prepare_item, network.prepare)
        workload = Workload(
            module=self._make_module(network),
            examples=lambda: [
                self._make_tensors(network, list(map(prepare, batch)))
                for batch in self._make_examples()
            ],
            key=json.dumps(self._get_identity(), sort_keys=True),
            device=network.device,
            dtype=self.dtype_,
            n_threads=self._count_threads(),
            folder=get_exports_folder(self.cache),
        )
        name = self._resolve_engine_name()
        # The key has the process id, because an engine's threads do not exist in a forked process.
        key = (name, workload.key, workload.dtype, workload.n_threads, os.getpid())
        is_automatic = self.engine == "auto"
        if name == "torch" or (
            is_automatic
            and key not in shared_networks
            and not is_export_worthwhile(name, workload, n_items, self._min_items_to_export)
        ):
            return TorchEngine(workload)
        return shared_networks.get_or_create(
            key, lambda: make_engine(name, workload, warns=not is_automatic)
        )

    def _resolve_engine_name(self) -> str:
        return choose_engine(self.engine, self._resolve_device(), self.dtype_)

    def _resolve_device(self) -> torch.device:
        """Return the device; engines other than torch compute on the CPU, even beside a GPU."""
        if self.engine in ("onnx", "openvino") and self.device in (None, "auto"):
            return torch.device("cpu")
        return resolve_device(self.device)

    def _count_threads(self) -> int:
        if self.n_jobs is None:
            return torch.get_num_threads()  # joblib lowers the number in its workers
        return self.n_jobs if self.n_jobs > 0 else max(1, cpu_count() + 1 + self.n_jobs)

    def _choose_batch_size(self, device: torch.device) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        return self._cpu_batch_size if device.type == "cpu" else self._gpu_batch_size

    def _get_network(self) -> Network:
        """Return the network that all encoders with the same weights and loader share."""
        device = self._resolve_device()

        def load() -> Network:
            # Libraries initialize weights at random first. The fork keeps the user's generator.
            with default_state(), torch.random.fork_rng(devices=[]):
                network = self._load_network(device)
            network.model.requires_grad_(False).eval()
            return network

        key = (self._loader or type(self).__name__, self._get_weights_key(), str(device))
        weights = self._compute_weights_fingerprint()  # a folder or a branch may have changed
        network = shared_networks.get_or_create((*key, weights), load)
        if weights is None:  # they have been downloaded now
            shared_networks.put((*key, self._compute_weights_fingerprint()), network)
        return network

    def _is_width_known(self) -> bool:
        # The identity of a model that is not in the hub's local cache would download it.
        has_weights = self._compute_weights_fingerprint() is not None
        return has_weights and self._digest_identity() in n_features_by_identity

    @property
    def _n_features_out(self) -> int:
        identity = self._digest_identity()
        width = n_features_by_identity.get(identity)
        if width is None:
            network = self._get_network()
            with default_state(), torch.inference_mode():
                blank = self._prepare_item(network.prepare, self._make_blank())
                width = self._forward(network, [blank]).shape[1]
            n_features_by_identity.put(identity, width)
        return width

    def _digest_identity(self) -> bytes:
        """Return a digest of `_get_identity` and the precision, a part of the keys of caches."""
        identity = self._get_precision_parts() | self._get_identity()
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()

    def _get_parts_of_digest(self) -> dict[str, Any]:
        """Return everything that features depend on, without loading weights.

        Unlike `_digest_identity`, the parts do not include the commit of a hub model, which is
        not known before the model is downloaded.
        """
        parts = self.get_params(deep=False)  # with those of subclasses that are not dataclasses
        for name in self._runtime_params | {"on_error"}:
            parts.pop(name, None)
        parts |= self._get_precision_parts()
        if os.path.isdir(self.model_name):
            parts["weights"] = digest_folder(self.model_name)
        return parts

    def _get_precision_parts(self) -> dict[str, Any]:
        """Return the parts of keys and digests that depend on the precision."""
        dtype = self.dtype_
        if dtype == "float32":
            return {"dtype": dtype}
        # Engines differ by more than rounding in low precision.
        engine = self._resolve_engine_name()
        return {"dtype": dtype, "engine": engine, "precision_version": _LOW_PRECISION_VERSION}

    def _raise_for(self, errors: Mapping[int, str]) -> None:
        """Raise EncodingError if there are errors, unless on_error="nan"."""
        if errors and self.on_error == "raise":
            raise EncodingError(
                f"{summarize_errors(errors, self._modality)}Remove them, or pass on_error='nan' "
                f"to {type(self).__name__} to skip them.",
                dict(sorted(errors.items())),
            )

    def _warn_about_errors(self) -> None:
        if self.errors_:
            warn(
                f"{summarize_errors(self.errors_, self._modality)}"
                "Their features are NaN; `errors_` lists all of them.",
                EncodingFailedWarning,
            )

    def _as_list(self, X: Any) -> list[Any]:
        """Return X as a list of items; raise ValueError unless it is a sequence of them."""
        return as_items(X, self._modality)

    def _check_parameters(self) -> None:
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ValueError(f"model_name must be a str, not {self.model_name!r}.")
        check_integer(self.batch_size, "batch_size", 1, auto=True)
        check_choice(self.engine, "engine", ENGINES)
        check_choice(self.on_error, "on_error", ("raise", "nan"))
        check_choice(self.dtype, "dtype", ("auto", "float32", "bfloat16", "float16"))
        is_count = isinstance(self.n_jobs, int | np.integer) and not isinstance(self.n_jobs, bool)
        if self.n_jobs is not None and not (is_count and self.n_jobs):
            raise ValueError(
                f"n_jobs must be None, a positive integer or -1 (all cores), not {self.n_jobs!r}."
            )
        exports = get_exports_folder(self.cache)  # next to the features
        check_outside_model(self.model_name, exports, f"cache={self.cache!r}")
        self._resolve_engine_name()
        open_cache(self.cache)  # raises an error if it is not valid

    # Saving: the record holds the fingerprint of the weights, not the weights themselves

    def _find_weights_to_record(self) -> str | None:
        """Return the fingerprint of the weights that the fitted model depends on."""
        return self._fitted_weights or self._compute_weights_fingerprint()

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        is_fitted = "_fitted_weights" in state
        return state | ({"_fitted_weights": self._find_weights_to_record()} if is_fitted else {})

    def _get_recorded_params(self) -> dict[str, Any]:
        params = super()._get_recorded_params()
        _, at, commit = (self._find_weights_to_record() or "").rpartition("@")
        # Record the commit that the features came from: a branch may move.
        if at and "revision" in params:
            params["revision"] = commit
        return params

    def _get_state(self) -> dict[str, Any]:
        return {"weights": self._find_weights_to_record()}

    def _set_state(self, state: FittedState) -> None:
        weights = state.optional("weights")
        self._fitted_weights = None if weights is None else str(weights)
        check_fitted_weights(self, self._compute_weights_fingerprint())

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags
