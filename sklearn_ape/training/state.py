"""State of a training run at the end of an epoch, sufficient to resume exactly."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from ..persistence.mixins import FittedState
from ..persistence.serialize import Serializer
from .callbacks import BestEpoch, find_best_epoch
from .net import AlignmentNet

# Attributes of a schedule that say at which step it is.
_SCHEDULE_KEYS = ("last_epoch", "_step_count", "_last_lr", "base_lrs")


class SaveState(Callback):
    """Save the state of a training run after its epochs, and resume from a state, if any.

    This callback must come after all callbacks whose state it saves, and before those that stop
    training. A resumed training ends with weights that are bitwise identical to those of a
    training that was never interrupted. Callbacks of users are not restored, and neither are
    objects without a file format, such as tensors, that they recorded in the history. `save` is
    called after each epoch with a function that returns the state.
    """

    def __init__(
        self, save: Callable[[Callable[[], dict[str, Any]]], None], state: dict[str, Any] | None
    ) -> None:
        self.save = save
        self.state = state

    def on_train_begin(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Restore everything except the batches, which skorch has not made yet."""
        self.batches_ = None
        if self.state is not None:
            # skorch counts only the epochs of this run.
            net.max_epochs, self.batches_ = restore_state(net, self.state)
            self.state = None

    def on_epoch_begin(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Restore the random generators of the batches."""
        if self.batches_ is not None:
            net.batches_.restore_generators(self.batches_)
            self.batches_ = None

    def on_epoch_end(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Save the state; in distributed training `on_agreement` does so."""
        if net.ranks is None:
            self.on_agreement(net)

    def on_agreement(self, net: AlignmentNet) -> None:
        """Save the state once all ranks are known to continue."""
        self.save(lambda: get_state(net))


def get_state(net: AlignmentNet) -> dict[str, Any]:
    """Return the state of a training run at the end of an epoch.

    Its arrays share the memory of the net, which is being trained on `PairBatches`.
    """
    schedule = _get_schedule(net)
    best = find_best_epoch(net)
    generators: Any = _get_generators(net.device)
    generators = [generators] if net.ranks is None else net.ranks.all_gather(generators)
    return {
        "module": _to_arrays(_drop_frozen(net.module_, net.module_.state_dict())),
        "criterion": _to_arrays(net.criterion_.state_dict()),
        "optimizer": _get_optimizer_state(net.optimizer_),
        "schedules": {"schedule": {name: getattr(schedule, name) for name in _SCHEDULE_KEYS}},
        "generators": generators,
        "batches": net.batches_.generator_states(),
        "history": [
            {key: value for key, value in row.items() if key != "batches" and _is_savable(value)}
            for row in net.history
        ],
        "best": None if best is None else _get_best_state(best, net),
    }


def restore_state(net: AlignmentNet, state: dict[str, Any]) -> tuple[int, Any]:
    """Restore the state that `get_state` returned into a net that is about to train.

    The net has the same parameters, and ``on_train_begin`` of the callbacks to restore was called.
    Return the number of remaining epochs, and the argument of `PairBatches.restore_generators`.
    ValueError is raised if the state does not fit the net.
    """
    values = FittedState(state, "the state of the training")
    try:
        _load_weights(net.module_, values.value("module"))
        _load_weights(net.criterion_, values.value("criterion"))
        _restore_optimizer(net.optimizer_, values.value("optimizer"))
        schedule = _get_schedule(net)
        schedule.load_state_dict(schedule.state_dict() | values.value("schedules")["schedule"])
        rows = values.value("history")
        for row in rows:
            net.history.new_epoch()
            net.history[-1].update(row)
        best = find_best_epoch(net)
        best_state = values.optional("best")
        if best is not None:
            _restore_best(best, net, best_state)
        generators = values.value("generators")
        _restore_generators(net.device, generators[0 if net.ranks is None else net.ranks.rank])
        batches = values.value("batches")
        values.close()
    # The state of a different net leads to any of these errors.
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint does not fit this training ({error!r}), although its name matches. "
            "Delete it to train from the beginning, or pass another folder as checkpoint."
        ) from None
    is_finished = best is not None and best.is_patience_exhausted
    return 0 if is_finished else net.max_epochs - len(rows), batches


def _is_savable(value: Any) -> bool:
    """Return whether a file can hold a value, which a callback of a user may have recorded."""
    try:
        Serializer().encode(value, "history")
    except (TypeError, ValueError):
        return False
    return True


def _drop_frozen(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the frozen weights of the encoder, which the checkpoint need not contain."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in state.items() if name not in frozen}


def _to_arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _to_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _load_weights(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    expected = _drop_frozen(module, module.state_dict())
    if arrays.keys() != expected.keys():
        raise KeyError(min(arrays.keys() ^ expected.keys()))
    module.load_state_dict(_to_tensors(arrays), strict=False)


def _get_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    return {
        # AdamW, Adam and Lion store tensors by name for each parameter.
        "parameters": {str(index): _to_arrays(values) for index, values in state["state"].items()},
        "rates": [[group["lr"], group["initial_lr"]] for group in state["param_groups"]],
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, values: dict[str, Any]) -> None:
    state = optimizer.state_dict()
    for group, (lr, initial_lr) in zip(state["param_groups"], values["rates"], strict=True):
        group.update(lr=lr, initial_lr=initial_lr)
    state["state"] = {
        int(index): _to_tensors(arrays) for index, arrays in values["parameters"].items()
    }
    optimizer.load_state_dict(state)


def _get_schedule(net: AlignmentNet) -> Any:
    return dict(net.callbacks_)["schedule"].lr_scheduler_


def _get_generators(device: torch.device) -> dict[str, np.ndarray]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: tensor.numpy() for name, tensor in states.items()}


def _restore_generators(device: torch.device, states: dict[str, np.ndarray]) -> None:
    torch.set_rng_state(torch.from_numpy(states["cpu"]))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]), device)


def _get_best_state(best: BestEpoch, net: AlignmentNet) -> dict[str, Any]:
    state: dict[str, Any] = {
        "misses": best.misses_,
        "threshold": float(best.dynamic_threshold_),
        "epoch": best.best_epoch_,
        "module": None,
        "criterion": None,
    }
    # The weights of the present epoch are in the state already.
    if best.best_epoch_ not in (0, net.history[-1, "epoch"]):
        state["module"] = _to_arrays(_drop_frozen(net.module_, best.best_model_weights_))
        state["criterion"] = _to_arrays(best.best_criterion_)
    return state


def _restore_best(best: BestEpoch, net: AlignmentNet, state: dict[str, Any]) -> None:
    best.misses_ = state["misses"]
    best.dynamic_threshold_ = state["threshold"]
    best.best_epoch_ = state["epoch"]
    if not best.best_epoch_:
        return
    weights = deepcopy(net.module_.state_dict())
    criterion = deepcopy(net.criterion_.state_dict())
    if state["module"] is not None:
        weights.update(_to_tensors(state["module"]))
        criterion.update(_to_tensors(state["criterion"]))
    best.best_model_weights_ = weights
    best.best_criterion_ = criterion
