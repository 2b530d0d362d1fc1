"""Freeze-Align's heads."""

from __future__ import annotations

import torch
from torch import nn

from .._unit import ordinary
from ._base import NORM_LIMITS, Head


class _ResidualMLP(nn.Module):
    def __init__(self, n_features: int, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Linear(n_features, n_features)
        self.mix = nn.Linear(n_features, n_features)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(n_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected = self.projection(features)
        return self.norm(projected + self.dropout(self.mix(nn.functional.gelu(projected))))


class SkipMLPHead(Head):
    """Freeze-Align's projector: a linear map plus an MLP, after layer norm and dropout.

    ``A x + C gelu(B x)``, and from depth 4 the residual MLP that Freeze-Align has on texts:
    ``norm(z + E gelu(z))`` with ``z = D`` of the former.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings; Freeze-Align's have 1024 numbers.
    depth : int
        Linear layers on the longest path: up to 3 the projector alone, which has two, and one
        residual MLP more for each further two.
    width : int
        Hidden width of the projector's MLP; Freeze-Align's is `n_out`. Residual MLPs are `n_out`
        wide.
    dropout : float
        Share of features, and of each residual MLP's output, dropped in training; Freeze-Align
        drops 0.1.

    Notes
    -----
    The layer norm stands in the place of our standardisation, as in Freeze-Align.

    Freeze-Align projects every token and pools afterwards, with a second projector for the
    image's class token. This head sees features that are pooled already, so it has one
    projector a side; for features that are one token (a class token) it is the same.

    References
    ----------
    .. [1] M. Maniparambil et al., "Harnessing Frozen Unimodal Encoders for Flexible Multimodal
       Alignment", CVPR 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import SkipMLPHead
    >>> SkipMLPHead(16, 8, depth=4, width=8, dropout=0.1)(torch.zeros(2, 16)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_in: int, n_out: int, depth: int, width: int, dropout: float) -> None:
        super().__init__(n_in, n_out, standardize=False)
        self.norm = nn.LayerNorm(n_in)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(n_in, n_out)
        self.nonlinear = nn.Sequential(nn.Linear(n_in, width), nn.GELU(), nn.Linear(width, n_out))
        self.residuals = nn.Sequential(
            *(_ResidualMLP(n_out, dropout) for _ in range(depth // 2 - 1))
        )

    def _output_layers(self) -> list[nn.Module]:
        if len(self.residuals):
            return [self.residuals[-1].get_submodule("norm")]
        return [self.linear, self.nonlinear[-1]]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        normed = self.dropout(self.norm(ordinary(features, *NORM_LIMITS)))
        return self.residuals(self.linear(normed) + self.nonlinear(normed))
