"""Residual heads."""

from __future__ import annotations

import torch
from torch import nn

from ._base import Head


class _Block(nn.Module):
    def __init__(self, n_features: int, width: int, dropout: float, gated: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_features)
        self.up = nn.Linear(n_features, 2 * width if gated else width)
        self.activation: nn.Module = nn.GLU() if gated else nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(width, n_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.activation(self.up(self.norm(features))))
        return features + self.down(hidden)


class ResidualHead(Head):
    """FuseMix's pre-norm residual blocks, then a normalised linear projection.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.
    depth : int
        Linear layers: a block has two, the projection is one; ``depth // 2`` blocks. Depths 2 and
        3 are therefore one head, and depth 1 is layer norm and projection alone.
    width : int
        Width inside a block. FuseMix has four blocks (depth 9) of four times `n_in`.
    dropout : float
        Share of hidden units dropped in training; FuseMix drops 0.6.

    Notes
    -----
    FuseMix's skips carry the features as they come, these the standardised ones.

    References
    ----------
    .. [1] N. Vouitsis et al., "Data-Efficient Multimodal Fusion on a Single GPU", CVPR 2024.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import ResidualHead
    >>> ResidualHead(16, 8, depth=9, width=64, dropout=0.6)(torch.zeros(2, 16)).shape
    torch.Size([2, 8])
    """

    _gated = False

    def __init__(self, n_in: int, n_out: int, depth: int, width: int, dropout: float) -> None:
        super().__init__(n_in, n_out)
        blocks = [_Block(n_in, width, dropout, self._gated) for _ in range(depth // 2)]
        self.layers = nn.Sequential(*blocks, nn.LayerNorm(n_in), nn.Linear(n_in, n_out))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.layers(self.standardize(features))


class GLUHead(ResidualHead):
    """`ResidualHead` whose blocks are gated linear units.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.
    depth : int
        Linear layers: a block has two, the projection is one; ``depth // 2`` blocks.
    width : int
        Width inside a block, after the gate.
    dropout : float
        Share of hidden units dropped in training.

    See Also
    --------
    StarHead : SAIL's gated head, which has no blocks.

    References
    ----------
    .. [1] N. Shazeer, "GLU Variants Improve Transformer", 2020.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import GLUHead
    >>> GLUHead(16, 8, depth=3, width=64, dropout=0.0)(torch.zeros(2, 16)).shape
    torch.Size([2, 8])
    """

    _gated = True
