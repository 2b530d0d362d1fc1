"""Keeps the neighbourhoods of frozen features in the embeddings."""

from __future__ import annotations

import torch
from torch import nn

from ..utils.linalg import l2_normalize
from ..utils.validation import check_integer, check_number


class StructureLoss(nn.Module):
    """The regulariser of STRUCTURE: who is whose neighbour shall stay as the encoder says.

    Rows are scaled to length 1 and centred; the softmax of a row's cosines with all others is a
    step of a random walk, and the walks of 1 to `levels` steps over features and over embeddings
    are compared by the Jensen-Shannon divergence.

    Parameters
    ----------
    temperature : float, default=0.1
        Divides the cosines; lower looks at nearer neighbours only.
    levels : int, default=1
        Longest walk. Each further one costs two products of square matrices.
    max_rows : int, default=1024
        Of a larger batch the first so many rows are compared: time and memory grow with their
        square. Shuffled batches make them a sample.

    Raises
    ------
    ValueError
        When a parameter is out of range.

    Notes
    -----
    With P and Q the walks over features and embeddings, the loss is
    ``1 / levels * sum(JS(P ** l, Q ** l) / l for l in 1, ..., levels)``, the powers being those
    of matrices and the divergence, in nats, a mean over rows. It lies between 0 and log(2).

    References
    ----------
    .. [1] F. Gröger, S. Wen, H. Le and M. Brbić, "With Limited Data for Multimodal Alignment, Let
       the STRUCTURE Guide You", NeurIPS 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.losses import StructureLoss
    >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [-0.8, -0.6]])
    >>> turned = features.flip(1)
    >>> round(StructureLoss()(features, turned).item(), 4)
    0.0
    >>> round(StructureLoss()(features, features[[0, 2, 1, 3]]).item(), 4)
    0.0826
    """

    def __init__(self, temperature: float = 0.1, levels: int = 1, max_rows: int = 1024) -> None:
        super().__init__()
        check_number(temperature, "temperature", 0, closed="neither")
        check_integer(levels, "levels", 1)
        check_integer(max_rows, "max_rows", 2)
        self.temperature = temperature
        self.levels = levels
        self.max_rows = max_rows

    def forward(self, features: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return how far the embeddings' neighbourhoods are from the features'.

        Parameters
        ----------
        features : torch.Tensor of shape (n_rows, n_features)
            What the frozen encoder said.
        embeddings : torch.Tensor of shape (n_rows, n_components)
            What a head made of them.

        Returns
        -------
        loss : torch.Tensor
            A scalar between 0, where the geometry is kept, and log(2).

        Raises
        ------
        ValueError
            When the rows are not as many on both sides.
        """
        if len(features) != len(embeddings):
            raise ValueError(
                f"Each of {len(features)} rows of features needs its embedding, and there are "
                f"{len(embeddings)}."
            )
        with torch.no_grad():
            frozen = self._walk(features)
        learned = self._walk(embeddings)
        first_frozen, first_learned = frozen, learned
        loss = _divergence(frozen, learned)
        for level in range(2, self.levels + 1):
            frozen, learned = frozen @ first_frozen, learned @ first_learned
            loss = loss + _divergence(frozen, learned) / level
        return loss / self.levels

    def _walk(self, points: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of stepping from row to row."""
        points = l2_normalize(points[: self.max_rows])
        points = nn.functional.normalize(points - points.mean(dim=0), dim=1)
        return (points @ points.T / self.temperature).softmax(dim=1)


def _divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence, a mean over rows."""
    # The gradient of x * log(x) is infinite at 0, to which small temperatures underflow.
    tiny = torch.finfo(one.dtype).tiny
    one, other = one.clamp_min(tiny), other.clamp_min(tiny)
    middle = ((one + other) / 2).log()
    terms = one * (one.log() - middle) + other * (other.log() - middle)
    return terms.sum(dim=1).mean() / 2
