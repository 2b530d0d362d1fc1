"""The fitted attributes of aligners whose module was trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..heads import BaseMap, TwoTower


def learned(
    module: TwoTower, logit_scale: float, numbers: Iterable[torch.Tensor]
) -> dict[str, Any]:
    """Return what prediction needs, by the names of the attributes.

    Parameters
    ----------
    module : TwoTower
        Moved to the CPU, so that a pickle opens on a machine without the training device.
    logit_scale : float
        Factor of the cosines.
    numbers : iterable of torch.Tensor
        What was trained or solved for, to be counted.
    """
    return {
        "module_": module.to("cpu").eval(),
        "logit_scale_": float(logit_scale),
        "n_parameters_": sum(tensor.numel() for tensor in numbers),
        "n_components_": module.n_components,
        "_n_features_out": module.n_components,
        "fingerprint_": module.fingerprint(),
    }


def learned_heads(module: TwoTower, logit_scale: float) -> dict[str, Any]:
    """Return the same of heads that may stand on a solution in closed form."""
    maps = [part for part in module.modules() if isinstance(part, BaseMap)]
    solved = [buffer for part in maps for buffer in part.buffers()]
    return learned(module, logit_scale, [*module.parameters(), *solved])
