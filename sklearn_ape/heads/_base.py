"""What all heads share."""

from __future__ import annotations

import torch
from torch import nn


class Standardize(nn.Module):
    """Shift and scale every feature by constants taken from the training set.

    Parameters
    ----------
    n_features : int
        Width of the features.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def set(self, features: torch.Tensor) -> None:
        """Take mean and standard deviation from features of shape (n, n_features)."""
        mean = features.double().mean(dim=0)
        scale = features.double().std(dim=0, unbiased=False)
        # A constant feature says nothing; dividing by its rounding error would make it shout.
        constant = scale <= 1e-6 * (mean.abs() + 1e-6)
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

    def __init__(self, n_in: int, n_out: int, standardize: bool = True) -> None:
        super().__init__()
        self.n_in = n_in
        self.n_out = n_out
        self.standardize: nn.Module = Standardize(n_in) if standardize else nn.Identity()

    def set_statistics(self, features: torch.Tensor) -> None:
        """Take what the head keeps of the training features, of shape (n, n_in)."""
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
