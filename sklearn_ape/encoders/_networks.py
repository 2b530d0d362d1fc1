"""Loaded networks and their engines, shared by all encoders of a process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch

from .._forks import ForkSafeLock

T = TypeVar("T")

_MOST_KEPT = 8
_kept: OrderedDict[Hashable, Any] = OrderedDict()
_lock = ForkSafeLock()


class Network(NamedTuple):
    """A frozen network on its device and what prepares its input."""

    model: Any
    prepare: Any
    device: torch.device


def is_shared(key: Hashable) -> bool:
    """Tell whether something is kept under `key`."""
    return key in _kept


def shared(key: Hashable, make: Callable[[], T]) -> T:
    """Return what was made under `key`, making it the first time.

    The few most recently used are kept, so that the clones that a search makes and drops share
    one copy.
    """
    with _lock:
        if key not in _kept:
            _kept[key] = make()
            while len(_kept) > _MOST_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return _kept[key]
