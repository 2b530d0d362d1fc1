"""Regularizer that preserves the neighbourhoods of frozen features."""

from __future__ import annotations

import torch
from torch import nn

from ..utils.linalg import l2_normalize
from ..utils.validation import check_integer, check_number


class StructureLoss(nn.Module):
    """The regularizer of STRUCTURE, which preserves the neighbourhoods of the frozen features.

    Rows are L2-normalized and centered. The softmax of the cosines of a row with all rows, itself
    included, is a step of a random walk. Walks of 1 to `levels` steps over features and over
    embeddings are compared by the Jensen-Shannon divergence.

    Parameters
    ----------
    temperature : float, default=0.1
        Divisor of the cosines. Lower values consider only nearer neighbours.
    levels : int, default=1
        Length of the longest walk. Each step takes two products of square matrices.
    max_rows : int, default=1024
        Maximum number of rows of a batch that are compared, the first ones, which are a sample if
        batches are shuffled. Time and memory grow with its square.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    With P and Q the transition matrices over features and embeddings, the loss [1]_ is
    ``1 / levels * sum(JS(P ** l, Q ** l) / l for l in 1, ..., levels)``, with powers
    of matrices and the divergence in nats, averaged over rows. It lies between 0 and log(2).

    References
    ----------
    .. [1] F. Gröger, S. Wen, H. Le and M. Brbić, "With Limited Data for Multimodal Alignment, Let
       the STRUCTURE Guide You", NeurIPS 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.losses import StructureLoss
    >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [-0.8, -0.6]])
    >>> rotated = features.flip(1)
    >>> round(StructureLoss()(features, rotated).item(), 4)
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
        """Return the divergence between the neighbourhoods of features and of embeddings.

        Parameters
        ----------
        features : torch.Tensor of shape (n_rows, n_features)
            Features of the frozen encoder.
        embeddings : torch.Tensor of shape (n_rows, n_components)
            Embeddings of the features.

        Returns
        -------
        loss : torch.Tensor
            A scalar between 0, if the geometry is preserved, and log(2).

        Raises
        ------
        ValueError
            If the numbers of rows differ.
        """
        if len(features) != len(embeddings):
            raise ValueError(
                f"features and embeddings have different numbers of rows, {len(features)} and "
                f"{len(embeddings)}. Pass one embedding per row of features."
            )
        with torch.no_grad():
            p_step = self._compute_transition_matrix(features)
        q_step = self._compute_transition_matrix(embeddings)
        p, q = p_step, q_step
        loss = _compute_divergence(p, q)
        for level in range(2, self.levels + 1):
            p, q = p @ p_step, q @ q_step
            loss = loss + _compute_divergence(p, q) / level
        return loss / self.levels

    def _compute_transition_matrix(self, points: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of steps from row to row."""
        points = l2_normalize(points[: self.max_rows])
        points = nn.functional.normalize(points - points.mean(dim=0), dim=1)
        return (points @ points.T / self.temperature).softmax(dim=1)


def _compute_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence, averaged over rows."""
    # With small temperatures probabilities underflow to 0, where the gradient of x * log(x) is
    # infinite.
    tiny = torch.finfo(p.dtype).tiny
    p, q = p.clamp_min(tiny), q.clamp_min(tiny)
    log_mean = ((p + q) / 2).log()
    terms = p * (p.log() - log_mean) + q * (q.log() - log_mean)
    return terms.sum(dim=1).mean() / 2
