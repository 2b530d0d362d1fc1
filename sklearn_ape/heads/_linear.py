"""Heads without hidden layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._base import Head, row_tensors


class FrozenHead(Head):
    """Nothing to train: standardises a tower's features, and may keep their main directions.

    Parameters
    ----------
    n_in : int
        Width of the features.
    n_out : int
        Size of the embeddings: ``n_in`` keeps the features as they are, fewer keeps the principal
        directions of the training features.

    Raises
    ------
    ValueError
        When more numbers are asked for than there are.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import FrozenHead
    >>> FrozenHead(6, 2)(torch.zeros(3, 6)).shape
    torch.Size([3, 2])
    """

    directions: torch.Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        if n_out > n_in:
            raise ValueError(
                f"A side without a head has {n_in} features, so n_components must be None or at "
                f"most {n_in}, not {n_out}. For more use side='both'."
            )
        super().__init__(n_in, n_out)
        if n_out < n_in:
            self.register_buffer("directions", torch.eye(n_in)[:, :n_out].contiguous())

    def set_statistics(self, features: Any) -> None:
        """Take mean, scale and principal directions from training features."""
        super().set_statistics(features)
        if hasattr(self, "directions"):
            products = torch.zeros(self.n_in, self.n_in, dtype=torch.double)
            for rows in row_tensors(features):
                standard = self.standardize(rows).double()
                products += standard.T @ standard
            directions = torch.linalg.eigh(products).eigenvectors
            self.directions.copy_(directions.flip(1)[:, : self.directions.shape[1]])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        standard = self.standardize(features)
        return standard @ self.directions if hasattr(self, "directions") else standard


class LinearHead(Head):
    """One linear map.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import LinearHead
    >>> LinearHead(6, 2)(torch.zeros(3, 6)).shape
    torch.Size([3, 2])
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.linear(self.standardize(features))
