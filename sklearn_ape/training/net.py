"""Network that is trained, training parameters, optimizers and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import gen_batches
from skorch import NeuralNet
from skorch.callbacks import LRScheduler

from ..devices import default_state
from ..heads import Head, TwoTower
from ..losses import LOSSES, StructureLoss
from ..utils.concurrency import ForkSafeLock, delay_forks
from .data import PairBatches, PairDataset, as_tensor
from .distributed import Ranks, is_first_rank

# Weights and dropout masks are drawn from torch's global generator: two threads that train at the
# same time would draw each other's numbers.
_generator_lock = ForkSafeLock()

_BLOCK_SIZE = 8192  # rows of features that are embedded together


@contextmanager
def seed_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of CPU and device, and restore their states at the end.

    Only one thread of a process can be in this context at a time.
    """
    devices = [device] if device.type == "cuda" else []
    with _generator_lock, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class TrainingConfig:
    """Parameters of a training run; see `APEAligner` for their meaning.

    `device` is the resolved device. All other values are those of the aligner's parameters, with
    the keys of ``loss_params`` and ``optimizer_params`` as attributes.
    """

    loss: str
    logit_scale: float
    learn_logit_scale: bool
    max_logit_scale: float
    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    verbose: int | None
    callbacks: Sequence[Any] | None
    device: torch.device
    # Of the following parameters, LiTAligner has `dtype` only.
    tile_size: int | str | None = "auto"
    structure_weight: float = 0.0
    optimizer: str = "adamw"
    warmup: float | int = 0.05
    clip_norm: float | None = None
    mixup: float = 0.0
    refit: bool = False
    dtype: str = "float32"

    @property
    def shows_table(self) -> bool:
        """Whether skorch prints its table of epochs, which replaces progress bars."""
        return (self.verbose or 0) >= 2


def adamw(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make AdamW with weight decay for matrices, but not for biases, norms and the logit scale.

    Parameters
    ----------
    groups : list of dict
        Parameter groups in the form of torch's optimizers: each has a list under ``"params"``.
    lr : float
        Learning rate.
    weight_decay : float
        Decoupled weight decay of matrices: each step multiplies them by ``1 - lr * weight_decay``.

    Returns
    -------
    optimizer : torch.optim.Optimizer
        Optimizer with one group for matrices and one for all other parameters.

    See Also
    --------
    adam : Adds the decay to the gradient.
    lion : Steps by the sign of the momentum.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.training import adamw
    >>> groups = [{"params": list(torch.nn.Linear(3, 2).parameters())}]
    >>> [group["weight_decay"] for group in adamw(groups, lr=1e-3, weight_decay=0.1).param_groups]
    [0.1, 0.0]
    """
    return torch.optim.AdamW(_split_by_decay(groups, weight_decay), lr=lr)


def adam(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make Adam with an L2 penalty on matrices, but not on biases, norms and the logit scale.

    Parameters
    ----------
    groups : list of dict
        Parameter groups in the form of torch's optimizers: each has a list under ``"params"``.
    lr : float
        Learning rate.
    weight_decay : float
        Weight of the L2 penalty on matrices. Adam rescales it together with the gradients, so it
        is not comparable with the weight decay of `adamw`.

    Returns
    -------
    optimizer : torch.optim.Optimizer
        Optimizer with one group for matrices and one for all other parameters.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.training import adam
    >>> groups = [{"params": list(torch.nn.Linear(3, 2).parameters())}]
    >>> [group["weight_decay"] for group in adam(groups, lr=1e-3, weight_decay=0.1).param_groups]
    [0.1, 0.0]
    """
    return torch.optim.Adam(_split_by_decay(groups, weight_decay), lr=lr)


def lion(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make timm's Lion, which steps by the sign of its momentum, with decay of matrices only.

    Parameters
    ----------
    groups : list of dict
        Parameter groups in the form of torch's optimizers: each has a list under ``"params"``.
    lr : float
        Learning rate. Use a third to a tenth of that of AdamW, because steps by a sign are long
        [1]_.
    weight_decay : float
        Decoupled weight decay of matrices. Use three to ten times that of AdamW, because it is
        multiplied by the lower learning rate.

    Returns
    -------
    optimizer : torch.optim.Optimizer
        Optimizer with one group for matrices and one for all other parameters.

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

    return Lion(_split_by_decay(groups, weight_decay), lr=lr)


OPTIMIZERS = {"adamw": adamw, "adam": adam, "lion": lion}
"""Functions that make an optimizer, by the names that `APEAligner` takes."""


def _split_by_decay(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Split every group into its matrices, which decay, and its other trained parameters."""
    split = []
    for group in groups:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        for decay, parameters in (
            (weight_decay, [p for p in trained if p.ndim >= 2]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            if parameters:
                split.append({**group, "params": parameters, "weight_decay": decay})
    return split


def check_warmup(warmup: Any, name: str) -> None:
    """Raise ValueError unless a parameter is a number of steps (int) or a fraction of them."""
    longest = math.inf if isinstance(warmup, Integral) else 1
    is_number = isinstance(warmup, Real) and not isinstance(warmup, bool)
    if not (is_number and 0 <= float(warmup) <= longest):
        raise ValueError(
            f"{name} must be a number in [0, 1], a fraction of all steps, or an integer >= 0, a "
            f"number of steps, not {warmup!r}."
        )


def cosine_schedule(n_steps: int, warmup: float = 0.05) -> LRScheduler:
    """Make a callback that warms the learning rate up linearly, then decays it by a cosine.

    Parameters
    ----------
    n_steps : int
        Number of steps of the whole training.
    warmup : float or int, default=0.05
        Length of the warm-up: a float from 0.0 to 1.0 is a fraction of all steps, an int a number
        of steps.

    Returns
    -------
    schedule : skorch.callbacks.LRScheduler
        Callback that updates the learning rate after every batch. It reaches 0 at the end.

    Raises
    ------
    ValueError
        If `warmup` is out of range.

    Examples
    --------
    >>> from sklearn_ape.training import cosine_schedule
    >>> factor = cosine_schedule(n_steps=100, warmup=4).kwargs["lr_lambda"]
    >>> [round(factor(step), 2) for step in (0, 1, 2, 3, 52, 100)]
    [0.25, 0.5, 0.75, 1.0, 0.5, 0.0]
    """
    check_warmup(warmup, "warmup")
    is_number = isinstance(warmup, Integral)
    n_warmup = max(1, int(warmup) if is_number else round(warmup * n_steps))

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return LRScheduler(
        policy=torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor, step_every="batch"
    )


class AlignmentNet(NeuralNet):
    """A skorch net whose module returns the embeddings of both sides, which a loss compares.

    Parameters
    ----------
    *args : object
        Positional parameters of `skorch.NeuralNet`. The module is a `TwoTower`, the dataset a
        `PairDataset`.
    structure_weight : float, default=0.0
        Weight of `StructureLoss`, which is added for every side that has a trained head.
    ranks : Ranks or None, default=None
        Ranks of distributed training, each of which gets its part of a batch from `PairBatches`.
        Every step is that of the whole batch.
    **kwargs : object
        Other parameters of `skorch.NeuralNet`.

    See Also
    --------
    sklearn_ape.losses.StructureLoss : Preserves the neighbourhoods of the frozen features.
    skorch.callbacks.GradientNormClipping : Callback that clips gradients.

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
        ranks: Ranks | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.structure_weight = structure_weight
        self.ranks = ranks

    @property
    def logit_scale(self) -> float:
        """Present logit scale of the criterion."""
        return float(self.criterion_.logit_scale.item())

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return batches; those of training are kept for checkpoints, as ``batches_``."""
        iterator = super().get_iterator(dataset, training=training)
        if training:
            self.batches_ = iterator
        return iterator

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Return the loss of a batch of embeddings."""
        positive = y_true.to(self.device) if y_true.ndim == 2 else None
        ranks = self.ranks if training else None
        if ranks is None:
            loss = self.criterion_(*y_pred, positive)
        else:
            n_pairs = _count_pairs(y_true)
            y_pred = [ranks.gather(rows, n_pairs) for rows in y_pred]
            loss = self.criterion_.share(*y_pred, positive, ranks.rows(n_pairs))
        if training and self.structure_weight:
            for term in self._iter_structure_losses(X, y_true, y_pred):
                loss = loss + term
        return loss

    def _iter_structure_losses(
        self, X: Any, y_true: Any, embeddings: Sequence[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Yield the weighted `StructureLoss` of the whole batch for sides with a trained head."""
        ranks = self.ranks
        # Every rank computes this loss for the whole batch, and the losses of ranks are summed.
        weight = self.structure_weight / (1 if ranks is None else ranks.size)
        for side, embeddings_of_side in zip(("image", "text"), embeddings, strict=True):
            head = getattr(self.module_, f"{side}_head")
            if not any(parameter.requires_grad for parameter in head.parameters()):
                continue
            # The output of a closed-form map may follow the features in the columns of the inputs.
            n_features = head.n_in if isinstance(head, Head) else None
            features = X[side][:, :n_features].to(self.device)
            if ranks is not None:
                features = ranks.gather(features, _count_pairs(y_true))
            yield weight * StructureLoss()(features, embeddings_of_side)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute the loss and the gradients of a batch, summed over ranks."""
        step = super().train_step_single(batch, **fit_params)
        if self.ranks is not None:
            parameters = (parameter for _, parameter in self.get_all_learnable_params())
            step["loss"] = self.ranks.sum_gradients(step["loss"], parameters)
        return step

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take an optimizer step, then clamp the logit scale."""
        step = super().train_step(batch, **fit_params)
        self.criterion_.clamp_()
        return step

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Iterate over the batches.

        Unlike skorch, count all pairs of a batch, not only those of this rank.
        """
        if iterator is None:
            return
        n_batches = 0
        for batch in iterator:
            n_batches += 1
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            self.history.record_batch(f"{prefix}_loss", step["loss"].item())
            self.history.record_batch(f"{prefix}_batch_size", _count_pairs(batch[1]))
            self.notify("on_batch_end", batch=batch, training=training, **step)
        self.history.record(f"{prefix}_batch_count", n_batches)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks; if one stops a rank after an epoch, all ranks stop."""
        if self.ranks is None or method_name != "on_epoch_end":
            super().notify(method_name, **cb_kwargs)
            return
        is_stopped = False
        try:
            super().notify(method_name, **cb_kwargs)
        except KeyboardInterrupt:
            is_stopped = True
        if self.ranks.any(is_stopped):
            raise KeyboardInterrupt
        for _, callback in self.callbacks_:
            if hasattr(callback, "on_agreement"):
                callback.on_agreement(self)


def make_net(
    config: TrainingConfig,
    module: TwoTower,
    seed: int,
    callbacks: list[Any],
    ranks: Ranks | None = None,
    **parameters: Any,
) -> AlignmentNet:
    """Return the net that trains a module, with all callbacks in order and a seed of the batches.

    Further parameters of the net replace those of `config`.
    """
    options: dict[str, Any] = {
        "criterion": LOSSES[config.loss],
        "criterion__logit_scale": config.logit_scale,
        "criterion__max_logit_scale": config.max_logit_scale,
        "criterion__learn_logit_scale": config.learn_logit_scale,
        "criterion__tile_size": config.tile_size,
        "structure_weight": config.structure_weight,
        "optimizer": OPTIMIZERS[config.optimizer],
        "optimizer__weight_decay": config.weight_decay,
        "lr": config.learning_rate,
        "batch_size": config.batch_size,
        "max_epochs": config.max_epochs,
        "iterator_train": PairBatches,
        "iterator_train__shuffle": True,
        "iterator_train__seed": seed,
        "iterator_train__mixup": config.mixup,
        "iterator_train__rank": 0 if ranks is None else ranks.rank,
        "iterator_train__n_ranks": 1 if ranks is None else ranks.size,
        "train_split": None,
        "device": config.device,
        "verbose": int(config.shows_table and is_first_rank(ranks)),
    }
    return AlignmentNet(module, callbacks=callbacks, ranks=ranks, **options | parameters)


def _count_pairs(positive: torch.Tensor) -> int:
    """Count the pairs of a batch by its positives, which include (i, i) for every pair."""
    return len(positive) if positive.ndim == 1 else int(positive.max()) + 1


def embed(module: TwoTower, side: str, features: Any, device: Any) -> np.ndarray:
    """Return the embeddings of one side's features, computed in blocks of rows.

    Parameters
    ----------
    module : TwoTower
        Heads, on `device`.
    side : {"image", "text"}
        Side of the features.
    features : torch.Tensor, ndarray or StoredRows of shape (n, n_features)
        Features on any device. Any other object that has a length and returns rows for a slice is
        accepted, too.
    device : torch.device or str
        Device to compute on.

    Returns
    -------
    embeddings : ndarray of shape (n, n_components)
        L2-normalized embeddings.

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
        for block in gen_batches(len(features), _BLOCK_SIZE):
            rows = features[block]
            rows = as_tensor(rows) if isinstance(rows, np.ndarray) else rows
            with delay_forks:
                embeddings[block] = tower(rows.to(device)).float().cpu().numpy()
    module.train(was_training)
    return embeddings


def embed_pairs(
    module: TwoTower, data: PairDataset, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the L2-normalized embeddings of images and captions."""
    image, text = (embed(module, side, getattr(data, side), device) for side in ("image", "text"))
    return image, text
