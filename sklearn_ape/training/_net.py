"""The net that skorch trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.utils import to_tensor

from ..heads import TwoTower
from ..losses import StructureLoss

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
    **kwargs : object
        As `*args`.

    See Also
    --------
    sklearn_ape.losses.StructureLoss : Keeps who is whose neighbour.
    skorch.callbacks.GradientNormClipping : Bounds the gradients, given as one of ``callbacks``.
    """

    def __init__(
        self,
        *args: Any,
        structure_weight: float = 0.0,
        structure_temperature: float = 0.1,
        structure_levels: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.structure_weight = structure_weight
        self.structure_temperature = structure_temperature
        self.structure_levels = structure_levels

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Return the criterion of both embeddings, given which of them belong together."""
        positive = to_tensor(y_true, device=self.device) if y_true.ndim == 2 else None
        loss = self.criterion_(*y_pred, positive)
        if not (training and self.structure_weight):
            return loss
        structure = StructureLoss(self.structure_temperature, self.structure_levels)
        for side, embeddings in zip(("image", "text"), y_pred, strict=True):
            head = getattr(self.module_, f"{side}_head")
            if any(parameter.requires_grad for parameter in head.parameters()):
                features = to_tensor(X[side], device=self.device)
                loss = loss + self.structure_weight * structure(features, embeddings)
        return loss

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take a step, then clamp the logit scale."""
        step = super().train_step(batch, **fit_params)
        self.criterion_.clamp_()
        return step


def embed(module: TwoTower, side: str, features: torch.Tensor, device: Any) -> np.ndarray:
    """Return the embeddings of one side's features, a bounded number of rows at a time.

    Parameters
    ----------
    module : TwoTower
        On `device`.
    side : {"image", "text"}
        Whose features they are.
    features : torch.Tensor of shape (n, n_features)
        On any device.
    device : torch.device or str
        Where to compute.

    Returns
    -------
    embeddings : ndarray of shape (n, n_components)
        Of length 1.
    """
    tower = module.embed_image if side == "image" else module.embed_text
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        parts = [tower(rows.to(device)).float().cpu() for rows in features.split(_ROWS_AT_ONCE)]
    module.train(was_training)
    return torch.cat(parts).numpy()
