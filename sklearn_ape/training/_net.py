"""The net that skorch trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import gen_batches
from skorch import NeuralNet

from .._caller_state import default_state
from ..heads import TwoTower
from ..losses import StructureLoss
from ._dataset import as_tensor
from ._ranks import Ranks

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
