"""MLP heads: plain, residual, with batch normalization, gated, skip and star."""

from __future__ import annotations

import torch
from torch import nn

from ..utils.linalg import rescale_extreme_rows
from ._base import NORM_LIMITS, Head


class MLPHead(Head):
    """The plain multi-layer perceptron of the APE paper.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.
    depth : int
        Linear layers; the paper's heads have 4 to 6. Depth 1 is a linear map.
    width : int
        Width of the hidden layers.
    dropout : float
        Share of hidden units dropped in training.

    See Also
    --------
    BatchNormMLPHead : With batch normalisation and ReLU.

    References
    ----------
    .. [1] E. Rosenfeld et al., "APE: Aligning Pretrained Encoders to Quickly Learn Aligned
       Multimodal Representations", HITY workshop, NeurIPS 2022.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import MLPHead
    >>> MLPHead(384, 1280, depth=4, width=1024, dropout=0.0)(torch.zeros(2, 384)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, n_in: int, n_out: int, depth: int, width: int, dropout: float) -> None:
        super().__init__(n_in, n_out)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(n_in, width), *self._between(width), nn.Dropout(dropout)]
            n_in = width
        self.layers = nn.Sequential(*layers, nn.Linear(n_in, n_out))

    def _between(self, width: int) -> list[nn.Module]:
        return [nn.GELU()]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.layers(self.standardize(features))


class BatchNormMLPHead(MLPHead):
    """ShareLock's multi-layer perceptron: batch normalisation and ReLU after each hidden layer.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.
    depth : int
        Linear layers; ShareLock's head has 4.
    width : int
        Width of the hidden layers; ShareLock's are 4096 wide.
    dropout : float
        Share of hidden units dropped in training; ShareLock drops 0.2.

    Raises
    ------
    ValueError
        When it is to be trained on a batch of a single pair.

    Notes
    -----
    ShareLock feeds raw features. That ours are standardised changes the start of training and not
    what the head can express, as a linear layer comes first.

    References
    ----------
    .. [1] J. Ruthardt et al., "Better Language Models Exhibit Higher Visual Alignment", TMLR
       2026.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import BatchNormMLPHead
    >>> BatchNormMLPHead(384, 1280, depth=4, width=64, dropout=0.2)(torch.zeros(2, 384)).shape
    torch.Size([2, 1280])
    """

    def _between(self, width: int) -> list[nn.Module]:
        return [nn.BatchNorm1d(width), nn.ReLU()]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        if self.training and len(features) < 2 < len(self.layers):
            raise ValueError(
                "head='batchnorm_mlp' normalises over a batch, and this one holds a single pair: "
                "raise batch_size."
            )
        return super().forward(features)


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
        normed = self.dropout(self.norm(rescale_extreme_rows(features, *NORM_LIMITS)))
        return self.residuals(self.linear(normed) + self.nonlinear(normed))


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
        normed = self.norm(rescale_extreme_rows(features, *NORM_LIMITS))
        product = nn.functional.relu6(self.gate(normed)) * self.up(normed)
        return self.down(self.dropout(product))
