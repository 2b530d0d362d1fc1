"""Embeddings of features by a fitted module, on the device asked for."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from ..devices import resolve_device
from ..heads import TwoTower
from ..training import embed


def embedded(
    module: TwoTower, side: str, features: Any, device: str | torch.device | None
) -> np.ndarray:
    """Embed features with a module that lies, and stays, on the CPU."""
    where = resolve_device(device)
    if where.type != "cpu":
        module = deepcopy(module).to(where)
    return embed(module, side, features, where)


def embedders(module: TwoTower) -> tuple[Callable, Callable]:
    """Return what embeds image features, and text features, on the CPU."""
    return (
        lambda features: embedded(module, "image", features, "cpu"),
        lambda features: embedded(module, "text", features, "cpu"),
    )
