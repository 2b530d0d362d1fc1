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
        Number of features, and size of the embeddings.
    depth : int
        Number of linear layers; the heads of the paper [1]_ have 4 to 6. Depth 1 is a linear map.
    width : int
        Number of units of a hidden layer.
    dropout : float
        Fraction of the hidden units dropped during training.

    See Also
    --------
    BatchNormMLPHead : MLP with batch normalization and ReLU.

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
            layers += [nn.Linear(n_in, width), *self._make_activation(width), nn.Dropout(dropout)]
            n_in = width
        self.layers = nn.Sequential(*layers, nn.Linear(n_in, n_out))

    def _make_activation(self, width: int) -> list[nn.Module]:
        return [nn.GELU()]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.layers(self.standardize(features))


class BatchNormMLPHead(MLPHead):
    """The multi-layer perceptron of ShareLock, with batch normalization and ReLU.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings.
    depth : int
        Number of linear layers, 4 in ShareLock.
    width : int
        Number of units of a hidden layer, 4096 in ShareLock.
    dropout : float
        Fraction of the hidden units dropped during training, 0.2 in ShareLock.

    Raises
    ------
    ValueError
        If it is trained on a batch of a single pair.

    Notes
    -----
    ShareLock [1]_ does not standardize features. Because a linear layer comes first, this changes
    the initialization of training, but not the functions that the head can represent.

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

    def _make_activation(self, width: int) -> list[nn.Module]:
        return [nn.BatchNorm1d(width), nn.ReLU()]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        if self.training and len(features) < 2 < len(self.layers):
            raise ValueError(
                "head='batchnorm_mlp' normalizes over a batch, and this batch contains a single "
                "pair. Increase batch_size."
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
    """The head of FuseMix: pre-norm residual blocks, layer norm and a linear projection.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings.
    depth : int
        Number of linear layers. There are ``depth // 2`` blocks with two layers each, and the
        projection, so that depths 2 and 3 are the same head. Depth 1 is layer norm and projection.
    width : int
        Number of units in a block. FuseMix has four blocks (depth 9) with four times `n_in`.
    dropout : float
        Fraction of the hidden units dropped during training, 0.6 in FuseMix.

    Notes
    -----
    The residual paths contain standardized features; in FuseMix [1]_ they contain raw features.

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

    _is_gated = False

    def __init__(self, n_in: int, n_out: int, depth: int, width: int, dropout: float) -> None:
        super().__init__(n_in, n_out)
        blocks = [_Block(n_in, width, dropout, self._is_gated) for _ in range(depth // 2)]
        self.layers = nn.Sequential(*blocks, nn.LayerNorm(n_in), nn.Linear(n_in, n_out))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.layers(self.standardize(features))


class GLUHead(ResidualHead):
    """`ResidualHead` whose blocks are gated linear units.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings.
    depth : int
        Number of linear layers. There are ``depth // 2`` blocks with two layers each, and the
        projection.
    width : int
        Number of units in a block, after the gate [1]_.
    dropout : float
        Fraction of the hidden units dropped during training.

    See Also
    --------
    StarHead : The gated head of SAIL, which has no blocks.

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

    _is_gated = True


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
    """The head of Freeze-Align: a linear map plus an MLP, after layer norm and dropout.

    The projector is ``y = A x + C gelu(B x)``. From depth 4 it is followed by the residual MLP
    that Freeze-Align has for texts: ``norm(z + E gelu(z))`` with ``z = D y``.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings, which is 1024 in Freeze-Align.
    depth : int
        Number of linear layers on the longest path. Up to 3 there is only the projector, which
        has two. Each two further layers add a residual MLP.
    width : int
        Number of hidden units of the projector's MLP, `n_out` in Freeze-Align. Residual MLPs have
        `n_out` units.
    dropout : float
        Fraction of the features, and of the outputs of residual MLPs, dropped during training,
        0.1 in Freeze-Align.

    Notes
    -----
    A layer norm replaces the standardization of features, as in Freeze-Align [1]_.

    Freeze-Align projects every token and pools afterwards, with a second projector for the class
    token of the image. This head gets pooled features, so it has one projector per side. It is
    equivalent for features of a single token, such as a class token.

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

    def _list_output_layers(self) -> list[nn.Module]:
        if len(self.residuals):
            return [self.residuals[-1].get_submodule("norm")]
        return [self.linear, self.nonlinear[-1]]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        normed = self.dropout(self.norm(rescale_extreme_rows(features, *NORM_LIMITS)))
        return self.residuals(self.linear(normed) + self.nonlinear(normed))


class StarHead(Head):
    """The head of SAIL: layer norm, the product of two wide linear maps, and a projection.

    It computes ``W3 (relu6(W1 x) * (W2 x))``. Weights are initialized by Xavier's uniform method,
    biases with zeros.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings, which is 1024 in SAIL.
    width : int
        Size of the product, eight times `n_in` in SAIL.
    dropout : float
        Fraction of the product dropped during training, 0 in SAIL.

    Notes
    -----
    A layer norm replaces the standardization of features, as in SAIL [1]_. SAIL also clips the
    factors to ±1000, which is needed in half precision but not in single precision.

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
