"""Plain multi-layer perceptrons."""

from __future__ import annotations

import torch
from torch import nn

from ._base import Head


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
