"""Loaded networks, shared by all encoders of a process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch

_MOST_KEPT = 4
_networks: OrderedDict[Hashable, Network] = OrderedDict()
_lock = threading.RLock()


class Network(NamedTuple):
    """A frozen network on its device and what prepares its input."""

    model: Any
    prepare: Any
    device: torch.device


def shared_network(key: Hashable, load: Callable[[], Network]) -> Network:
    """Return the network loaded under `key`, loading it the first time.

    The few most recently used stay loaded, so that the clones that a search makes and drops
    share one copy.
    """
    with _lock:
        if key not in _networks:
            # Weights are drawn at random before they are read: not from the user's generator.
            with torch.random.fork_rng(devices=[]):
                network = load()
            network.model.requires_grad_(False).eval()
            _networks[key] = network
            while len(_networks) > _MOST_KEPT:
                _networks.popitem(last=False)
        _networks.move_to_end(key)
        return _networks[key]
