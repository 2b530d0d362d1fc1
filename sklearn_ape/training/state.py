"""The state of a training after an epoch: all that it takes to go on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback, LRScheduler
from torch import nn

from ..persistence import FittedState
from .callbacks import BestEpoch
from .net import AlignmentNet


class SaveState(Callback):
    """Hands on the state of a training after its epochs, and starts from one.

    Comes behind all callbacks whose state it keeps and before what stops the training. A training
    that goes on from a state ends with the weights of one that was never interrupted, to the bit.
    Callbacks of users start anew.

    Parameters
    ----------
    keep : callable
        Takes a function without arguments that returns the state, and calls it if it wants to.
    start : dict or None
        A state to go on from; None begins at the beginning.
    """

    def __init__(
        self,
        keep: Callable[[Callable[[], dict[str, Any]]], None],
        start: dict[str, Any] | None,
    ) -> None:
        self.keep = keep
        self.start = start

    def on_train_begin(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Put back all but the batches, which skorch has yet to make."""
        self.batches_ = None
        if self.start is not None:
            # skorch counts the epochs of this run alone.
            net.max_epochs, self.batches_ = restore_state(net, self.start)
            self.start = None

    def on_epoch_begin(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Go on with the batches after the last one."""
        if self.batches_ is not None:
            net.batches_.restore_generators(self.batches_)
            self.batches_ = None

    def on_epoch_end(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Offer the state; of processes that train together, once all of them go on."""
        if net.ranks is None:
            self.on_agreement(net)

    def on_agreement(self, net: AlignmentNet) -> None:
        """Offer the state."""
        self.keep(lambda: state_of(net))


def state_of(net: AlignmentNet) -> dict[str, Any]:
    """Return the state of a training at the end of an epoch.

    Parameters
    ----------
    net : AlignmentNet
        Being trained on `PairBatches`.

    Returns
    -------
    state : dict
        Of numbers, texts and arrays, which share the memory of the net.
    """
    callbacks = dict(net.callbacks_)
    best = callbacks.get("best")
    generators: Any = _generators(net.device)
    if net.ranks is not None:
        generators = net.ranks.of_all(generators)
    return {
        "module": _arrays(_trained(net.module_, net.module_.state_dict())),
        "criterion": _arrays(net.criterion_.state_dict()),
        "optimizer": _optimizer_state(net.optimizer_),
        "schedules": {name: _plain(vars(s.lr_scheduler_)) for name, s in _schedules(net)},
        "generators": generators if net.ranks is not None else [generators],
        "batches": net.batches_.generators(),
        "history": [
            {key: value for key, value in row.items() if key != "batches"} for row in net.history
        ],
        "best": None if best is None else _best_state(best, net),
    }


def restore_state(net: AlignmentNet, state: dict[str, Any]) -> tuple[int, Any]:
    """Put back what `state_of` returned, into a net that is about to train.

    Parameters
    ----------
    net : AlignmentNet
        Of the same parameters, whose callbacks have been told that training begins.
    state : dict
        As read from a file.

    Returns
    -------
    n_epochs : int
        How many are left.
    batches : dict
        For `PairBatches.restore_generators`.

    Raises
    ------
    ValueError
        When it is the state of another net.
    """
    kept = FittedState(state, "the state of the training")
    try:
        _load(net.module_, kept.value("module"))
        _load(net.criterion_, kept.value("criterion"))
        _restore_optimizer(net.optimizer_, kept.value("optimizer"))
        schedules = kept.value("schedules")
        for name, schedule in _schedules(net):
            scheduler: Any = schedule.lr_scheduler_
            scheduler.load_state_dict({**scheduler.state_dict(), **schedules[name]})
        rows = kept.value("history")
        for row in rows:
            net.history.new_epoch()
            net.history[-1].update(row)
        best: Any = dict(net.callbacks_).get("best")
        of_best = kept.value("best")
        if best is not None:
            _restore_best(best, net, of_best)
        generators = kept.value("generators")
        _restore_generators(net.device, generators[0 if net.ranks is None else net.ranks.rank])
        batches = kept.value("batches")
        kept.close()
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint does not fit this training ({error!r}), though it is named after it: "
            "delete it to train from the beginning, or pass another folder as checkpoint."
        ) from None
    is_over = best is not None and best.misses_ >= best.patience
    return 0 if is_over else net.max_epochs - len(rows), batches


def _trained(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the weights that are locked: they are those of the encoder."""
    locked = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in state.items() if name not in locked}


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _load(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    wanted = _trained(module, module.state_dict())
    if arrays.keys() != wanted.keys():
        raise KeyError(min(arrays.keys() ^ wanted.keys()))
    module.load_state_dict(_tensors(arrays), strict=False)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    found = optimizer.state_dict()
    return {
        # What AdamW and the like remember of a parameter are tensors, by name.
        "parameters": {str(number): _arrays(known) for number, known in found["state"].items()},
        "rates": [[group["lr"], group["initial_lr"]] for group in found["param_groups"]],
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    known = optimizer.state_dict()
    for group, (rate, first) in zip(known["param_groups"], state["rates"], strict=True):
        group.update(lr=rate, initial_lr=first)
    known["state"] = {int(number): _tensors(kept) for number, kept in state["parameters"].items()}
    optimizer.load_state_dict(known)


def _schedules(net: AlignmentNet) -> list[tuple[str, LRScheduler]]:
    # Of ours alone: what users add is theirs.
    return [(name, cb) for name, cb in net.callbacks_ if name == "schedule"]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return where a scheduler stands: numbers, and lists of them."""
    kept = ("last_epoch", "_step_count", "_last_lr", "base_lrs")
    return {name: values[name] for name in kept if name in values}


def _generators(device: Any) -> dict[str, np.ndarray]:
    found = {"cpu": torch.get_rng_state()}
    where = torch.device(device)
    if where.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(where)
    return {name: tensor.numpy() for name, tensor in found.items()}


def _restore_generators(device: Any, states: dict[str, np.ndarray]) -> None:
    torch.set_rng_state(torch.from_numpy(states["cpu"]))
    where = torch.device(device)
    if where.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]), where)


def _best_state(best: BestEpoch, net: AlignmentNet) -> dict[str, Any]:
    found: dict[str, Any] = {
        "misses": best.misses_,
        "threshold": float(best.dynamic_threshold_),
        "epoch": best.best_epoch_,
        "module": None,
        "criterion": None,
    }
    # The weights of the epoch itself are there already.
    if best.best_epoch_ not in (0, net.history[-1, "epoch"]):
        found["module"] = _arrays(_trained(net.module_, best.best_model_weights_))
        found["criterion"] = _arrays(best.best_criterion_)
    return found


def _restore_best(best: BestEpoch, net: AlignmentNet, state: dict[str, Any]) -> None:
    best.misses_ = state["misses"]
    best.dynamic_threshold_ = state["threshold"]
    best.best_epoch_ = state["epoch"]
    if not best.best_epoch_:
        return
    weights = deepcopy(net.module_.state_dict())
    criterion = deepcopy(net.criterion_.state_dict())
    if state["module"] is not None:
        weights.update(_tensors(state["module"]))
        criterion.update(_tensors(state["criterion"]))
    best.best_model_weights_ = weights
    best.best_criterion_ = criterion
