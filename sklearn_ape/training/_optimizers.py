"""Optimizers by name, and the course of the learning rate."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from skorch.callbacks import LRScheduler


def adamw(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices and leaves biases, norms and the logit scale alone.

    Parameters
    ----------
    groups : list of dict
        Parameters as torch's optimizers take them: each has a list under ``"params"``.
    lr : float
        Learning rate.
    weight_decay : float
        Share of a matrix that a step takes away, times the learning rate.

    Returns
    -------
    optimizer : torch.optim.Optimizer
        With a group of matrices and a group of all else.

    See Also
    --------
    adam : Adds the decay to the gradient.
    lion : Steps of the gradient's sign.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.training import adamw
    >>> groups = [{"params": list(torch.nn.Linear(3, 2).parameters())}]
    >>> [group["weight_decay"] for group in adamw(groups, lr=1e-3, weight_decay=0.1).param_groups]
    [0.1, 0.0]
    """
    return torch.optim.AdamW(_decaying_matrices(groups, weight_decay), lr=lr)


def adam(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return Adam, whose decay is a part of the gradient (an L2 penalty); else as `adamw`.

    Parameters
    ----------
    groups : list of dict
        See `adamw`.
    lr : float
        Learning rate.
    weight_decay : float
        Factor of the matrices in their gradient. Adam scales it as it scales gradients, so it is
        no number to compare with that of `adamw`.

    Returns
    -------
    optimizer : torch.optim.Optimizer
        With a group of matrices and a group of all else.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.training import adam
    >>> groups = [{"params": list(torch.nn.Linear(3, 2).parameters())}]
    >>> [group["weight_decay"] for group in adam(groups, lr=1e-3, weight_decay=0.1).param_groups]
    [0.1, 0.0]
    """
    return torch.optim.Adam(_decaying_matrices(groups, weight_decay), lr=lr)


def lion(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return timm's Lion, which steps by the sign of its momentum; else as `adamw`.

    Parameters
    ----------
    groups : list of dict
        See `adamw`.
    lr : float
        Learning rate. Steps of a sign are long: a third to a tenth of AdamW's suits.
    weight_decay : float
        As of `adamw`: three to ten times as much goes with the lower learning rate.

    Returns
    -------
    optimizer : torch.optim.Optimizer
        With a group of matrices and a group of all else.

    References
    ----------
    .. [1] X. Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.training import lion
    >>> groups = [{"params": list(torch.nn.Linear(3, 2).parameters())}]
    >>> [group["weight_decay"] for group in lion(groups, lr=1e-4, weight_decay=0.5).param_groups]
    [0.5, 0.0]
    """
    from timm.optim import Lion  # timm takes seconds to import

    return Lion(_decaying_matrices(groups, weight_decay), lr=lr)


OPTIMIZERS = {"adamw": adamw, "adam": adam, "lion": lion}


def _decaying_matrices(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    parameters = [parameter for group in groups for parameter in group["params"]]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def cosine_schedule(n_steps: int, warmup: float = 0.05) -> LRScheduler:
    """Return a callback: a linear rise of the learning rate, then a cosine to zero.

    Parameters
    ----------
    n_steps : int
        Steps of the whole training.
    warmup : float or int, default=0.05
        Length of the rise: a float is a share of all steps, from 0.0 to 1.0, an int a number of
        steps.

    Returns
    -------
    schedule : skorch.callbacks.LRScheduler
        Moves on with every batch.

    Raises
    ------
    ValueError
        When `warmup` is out of range.

    Examples
    --------
    >>> from sklearn_ape.training import cosine_schedule
    >>> factor = cosine_schedule(n_steps=100, warmup=4).kwargs["lr_lambda"]
    >>> [round(factor(step), 2) for step in (0, 1, 2, 3, 52, 100)]
    [0.25, 0.5, 0.75, 1.0, 0.5, 0.0]
    """
    if isinstance(warmup, Integral):
        in_range, n_warmup = warmup >= 0, max(1, int(warmup))
    else:
        in_range = 0 <= warmup <= 1
        n_warmup = max(1, round(warmup * n_steps)) if in_range else 1
    if not in_range:
        raise ValueError(
            "warmup must be a float from 0.0 to 1.0, a share of the steps, or an int from 0, a "
            f"number of steps, not {warmup!r}."
        )

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        done = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    return LRScheduler(
        policy=torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor, step_every="batch"
    )
