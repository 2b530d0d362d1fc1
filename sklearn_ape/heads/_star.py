"""SAIL's gated head."""

from __future__ import annotations

import torch
from torch import nn

from .._unit import ordinary
from ._base import NORM_LIMITS, Head


class StarHead(Head):
    """SAIL's head: layer norm, the product of two wide linear maps, a linear projection.

    ``W3 (relu6(W1 x) * (W2 x))``, with Xavier's uniform start and biases at zero.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings; SAIL's have 1024 numbers.
    width : int
        Width of the product; SAIL's is eight times `n_in`.
    dropout : float
        Share of the product dropped in training; SAIL drops none.

    Notes
    -----
    The layer norm stands in the place of our standardisation, as in SAIL. SAIL also cuts the
    factors at ±1000, which half precision needs and single precision does not.

    References
    ----------
    .. [1] L. Zhang et al., "Assessing and Learning Alignment of Unimodal Vision and Language
       Models", CVPR 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import StarHead
    >>> StarHead(16, 8, width=128, dropout=0.0)(torch.zeros(2, 16)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_in: int, n_out: int, width: int, dropout: float) -> None:
        super().__init__(n_in, n_out, standardize=False)
        self.norm = nn.LayerNorm(n_in)
        self.gate = nn.Linear(n_in, width)
        self.up = nn.Linear(n_in, width)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(width, n_out)
        for layer in (self.gate, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        normed = self.norm(ordinary(features, *NORM_LIMITS))
        product = nn.functional.relu6(self.gate(normed)) * self.up(normed)
        return self.down(self.dropout(product))
