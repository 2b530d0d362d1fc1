"""Network that is trained, optimizers, learning-rate schedule and seeding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import gen_batches
from skorch import NeuralNet
from skorch.callbacks import LRScheduler

from ..heads import TwoTower
from ..losses import InfoNCELoss, SigmoidLoss, StructureLoss
from ..utils.concurrency import ForkSafeLock
from ..utils.torch_state import default_state
from .data import as_tensor
from .distributed import Ranks

LOSSES = {"infonce": InfoNCELoss, "sigmoid": SigmoidLoss}


_lock = ForkSafeLock()


@contextmanager
def seed_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch's global generator start at a seed, and put it back where it was.

    One thread of a process at a time: weights and dropped units are drawn from that generator
    alone, so two trainings side by side would draw each other's numbers.

    Parameters
    ----------
    seed : int
        Of the numbers drawn inside.
    device : torch.device
        Whose generator is used besides that of the CPU.
    """
    devices = [device] if device.type == "cuda" else []
    with _lock, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


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


_ROWS_AT_ONCE = 8192


class AlignmentNet(NeuralNet):
    """A skorch net whose module gives two embeddings and whose criterion compares them.

    Parameters
    ----------
    *args : object
        Those of `skorch.NeuralNet`; the module is a `TwoTower`, the dataset a `PairDataset`.
    structure_weight : float, default=0.0
        Above 0, `StructureLoss` of every side that has a trained head is added so many times.
    structure_temperature : float, default=0.1
        Of `StructureLoss`.
    structure_levels : int, default=1
        Of `StructureLoss`.
    ranks : Ranks or None, default=None
        Processes to train with, of which each is given its share of a batch by `PairBatches`.
        Every step is that of the whole batch.
    **kwargs : object
        As `*args`.

    See Also
    --------
    sklearn_ape.losses.StructureLoss : Keeps who is whose neighbour.
    skorch.callbacks.GradientNormClipping : Bounds the gradients, given as one of ``callbacks``.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklearn_ape.heads import LinearHead, TwoTower
    >>> from sklearn_ape.losses import InfoNCELoss
    >>> from sklearn_ape.training import AlignmentNet, PairBatches, PairDataset
    >>> pairs = np.column_stack([np.arange(20)] * 2)
    >>> dataset = PairDataset(torch.randn(20, 4), torch.randn(20, 3), pairs)
    >>> net = AlignmentNet(
    ...     TwoTower(LinearHead(4, 2), LinearHead(3, 2)),
    ...     criterion=InfoNCELoss,
    ...     iterator_train=PairBatches,
    ...     train_split=None,
    ...     max_epochs=2,
    ...     verbose=0,
    ... )
    >>> len(net.fit(dataset, y=None).history)
    2
    """

    def __init__(
        self,
        *args: Any,
        structure_weight: float = 0.0,
        structure_temperature: float = 0.1,
        structure_levels: int = 1,
        ranks: Ranks | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.structure_weight = structure_weight
        self.structure_temperature = structure_temperature
        self.structure_levels = structure_levels
        self.ranks = ranks

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Make batches, and remember those of training: a checkpoint asks where they stand."""
        iterator = super().get_iterator(dataset, training=training)
        if training:
            self.batches_ = iterator
        return iterator

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Return the criterion of both embeddings, given which of them belong together."""
        positive = y_true.to(self.device) if y_true.ndim == 2 else None
        ranks = self.ranks if training else None
        if ranks is None:
            loss = self.criterion_(*y_pred, positive)
        else:
            n_pairs = n_pairs_of(y_true)
            y_pred = [ranks.gather(rows, n_pairs) for rows in y_pred]
            loss = self.criterion_.share(*y_pred, positive, ranks.rows(n_pairs))
        if not (training and self.structure_weight):
            return loss
        structure = StructureLoss(self.structure_temperature, self.structure_levels)
        weight = self.structure_weight
        for side, embeddings in zip(("image", "text"), y_pred, strict=True):
            head = getattr(self.module_, f"{side}_head")
            if any(parameter.requires_grad for parameter in head.parameters()):
                features = X[side].to(self.device)
                if ranks is not None:  # all of them compute all of it
                    features = ranks.gather(features, n_pairs)
                    weight = self.structure_weight / ranks.size
                loss = loss + weight * structure(features, embeddings)
        return loss

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Return the embeddings of both sides' features."""
        return self.module_(**{side: rows.to(self.device) for side, rows in x.items()})

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute a batch's loss and gradients; those of the whole batch, with other processes."""
        inputs, positive = batch
        embeddings = self.infer(inputs)
        loss = self.get_loss(embeddings, positive, X=inputs, training=True)
        loss.backward()
        if self.ranks is not None:
            parameters = (parameter for _, parameter in self.get_all_learnable_params())
            loss = self.ranks.joined(loss, parameters)
        return {"loss": loss, "y_pred": embeddings}

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take a step, then clamp the logit scale."""
        step = super().train_step(batch, **fit_params)
        self.criterion_.clamp_()
        return step

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Go once through the batches, as skorch does, whose own way sets modes at every step."""
        if iterator is None:
            return
        self._set_training(training)
        n_batches = 0
        for batch in iterator:
            n_batches += 1
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            self.history.record_batch(f"{prefix}_loss", step["loss"].item())
            self.history.record_batch(f"{prefix}_batch_size", n_pairs_of(batch[1]))
            self.notify("on_batch_end", batch=batch, training=training, **step)
        self.history.record(f"{prefix}_batch_count", n_batches)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Tell the callbacks; what stops one process after an epoch stops all."""
        if self.ranks is None or method_name != "on_epoch_end":
            super().notify(method_name, **cb_kwargs)
            return
        stop = False
        try:
            super().notify(method_name, **cb_kwargs)
        except KeyboardInterrupt:
            stop = True
        if self.ranks.any(stop):
            raise KeyboardInterrupt
        for _, callback in self.callbacks_:
            if hasattr(callback, "on_agreement"):
                callback.on_agreement(self)


def n_pairs_of(positive: torch.Tensor) -> int:
    """Count the pairs of a batch by its positives, which hold every pair's own."""
    return len(positive) if positive.ndim == 1 else int(positive.max()) + 1


def embed(module: TwoTower, side: str, features: Any, device: Any) -> np.ndarray:
    """Return the embeddings of one side's features, a bounded number of rows at a time.

    Parameters
    ----------
    module : TwoTower
        On `device`.
    side : {"image", "text"}
        Whose features they are.
    features : torch.Tensor, ndarray or StoredRows of shape (n, n_features)
        On any device. Or anything else that has a length and returns rows for a slice.
    device : torch.device or str
        Where to compute.

    Returns
    -------
    embeddings : ndarray of shape (n, n_components)
        Of length 1.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import LinearHead, TwoTower
    >>> from sklearn_ape.training import embed
    >>> towers = TwoTower(LinearHead(4, 2), LinearHead(3, 2))
    >>> embed(towers, "text", torch.ones(5, 3), "cpu").shape
    (5, 2)
    """
    tower = module.embed_image if side == "image" else module.embed_text
    was_training = module.training
    module.eval()
    embeddings = np.empty((len(features), module.n_components), dtype=np.float32)
    with default_state(), torch.inference_mode():
        for some in gen_batches(len(features), _ROWS_AT_ONCE):
            rows = features[some]
            rows = as_tensor(rows) if isinstance(rows, np.ndarray) else rows
            embeddings[some] = tower(rows.to(device)).float().cpu().numpy()
    module.train(was_training)
    return embeddings
