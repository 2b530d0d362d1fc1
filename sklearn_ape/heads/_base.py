"""What all heads share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import nn

_ROWS_AT_ONCE = 4096
NORM_LIMITS = (1e-2, 1e12)
"""Sizes of features beyond which a layer norm is not blind to them, its epsilon being 1e-5."""


class Standardize(nn.Module):
    """Shift and scale every feature by constants taken from the training set.

    Parameters
    ----------
    n_features : int
        Width of the features.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import Standardize
    >>> standardize = Standardize(2)
    >>> standardize.set(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    >>> standardize(torch.tensor([[2.0, 5.0]]))
    tensor([[1., 0.]])
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def set(self, features: Any) -> None:
        """Take mean and standard deviation from features of shape (n, n_features).

        Parameters
        ----------
        features : torch.Tensor, or what returns rows for a slice
            Such as `StoredRows`. They are read once, a bounded number of rows at a time.
        """
        # Sums around a mean of some rows lose nothing to cancellation.
        first = torch.as_tensor(features[:_ROWS_AT_ONCE]).double().mean(dim=0)
        sum_of, square_of = torch.zeros_like(first), torch.zeros_like(first)
        for rows in row_tensors(features):
            rows = rows.double() - first
            sum_of += rows.sum(dim=0)
            square_of += rows.square_().sum(dim=0)
        off = sum_of / len(features)
        mean = first + off
        scale = (square_of / len(features) - off.square()).clamp_min(0).sqrt()
        # A constant feature says nothing; dividing by its rounding error would make it shout.
        varies = scale[scale > 0]
        usual = varies.median() if len(varies) else 0.0
        constant = scale <= 1e-6 * mean.abs() + 1e-12 * usual
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, 1.0, scale))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return standardised features of the same shape."""
        return (features - self.mean) / self.scale


class Head(nn.Module):
    """Base of the heads: a map from features to embeddings, not yet of length 1.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.
    standardize : bool, default=True
        Whether the head begins by standardising the features; False for those that begin with a
        norm of their own.
    """

    # What `make_head` made it of, for a file to say.
    made_of: dict[str, Any] | None = None

    def __init__(self, n_in: int, n_out: int, standardize: bool = True) -> None:
        super().__init__()
        self.n_in = n_in
        self.n_out = n_out
        self.standardize: nn.Module = Standardize(n_in) if standardize else nn.Identity()

    def set_statistics(self, features: Any) -> None:
        """Take what the head keeps of the training features, of shape (n, n_in).

        Parameters
        ----------
        features : torch.Tensor, or what returns rows for a slice
            Such as `StoredRows`.
        """
        if isinstance(self.standardize, Standardize):
            self.standardize.set(features)

    def start_at_zero(self) -> None:
        """Make the output zero until training moves it.

        Only the layers that make the output are set to zero, so that gradients reach them at once
        and the layers below from the second step.

        Raises
        ------
        ValueError
            When the head has nothing to train.
        """
        layers = self._output_layers()
        if not layers:
            raise ValueError(
                f"{type(self).__name__} has nothing to train, so it cannot start at zero."
            )
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def _output_layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = [m for m in self.modules() if isinstance(m, nn.Linear)]
        return layers[-1:]


def row_tensors(features: Any) -> Iterator[torch.Tensor]:
    """Yield features as tensors, a bounded number of rows at a time.

    Parameters
    ----------
    features : torch.Tensor, or what returns rows for a slice
        Of shape (n, n_features).

    Yields
    ------
    rows : torch.Tensor
        Up to 4,096 rows.
    """
    for rows in gen_batches(len(features), _ROWS_AT_ONCE):
        yield torch.as_tensor(features[rows])
