"""How an encoder's network is computed: on what, by what, and how much of it at once."""

from __future__ import annotations

import json
from abc import abstractmethod
from os import PathLike
from typing import Any

import torch
from joblib import cpu_count

from ..devices import resolve_device
from ..features import FeatureCache
from ._engines import Engine, Workload, chosen_engine, engine_for
from ._items import exports_folder
from ._networks import Network


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
        return engine_for(self.engine, workload, n_items, self._worth_exporting)

    def _engine_name(self) -> str:
        return chosen_engine(self.engine, self._device(), self.dtype)

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
