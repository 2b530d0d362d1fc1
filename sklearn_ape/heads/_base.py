"""Base class for heads, linear and frozen heads, and the pair of heads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import nn

from ..utils.linalg import l2_normalize

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


class TwoTower(nn.Module):
    """A head for each side, with embeddings scaled to length 1.

    Parameters
    ----------
    image_head : Head
        What `make_head` returns, or a `ClosedFormHead`.
    text_head : Head or torch.nn.Module
        The same, or any module that gives as many numbers, such as a whole text tower.

    Raises
    ------
    ValueError
        When the heads' embeddings differ in size.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import FrozenHead, LinearHead, TwoTower
    >>> towers = TwoTower(FrozenHead(8, 8), LinearHead(5, 8))
    >>> towers.embed_text(torch.ones(1, 5)).norm().isclose(torch.tensor(1.0)).item()
    True
    """

    image_head: Head
    text_head: Any

    def __init__(self, image_head: Head, text_head: nn.Module) -> None:
        super().__init__()
        if isinstance(text_head, Head) and image_head.n_out != text_head.n_out:
            raise ValueError(
                f"The image head gives {image_head.n_out} numbers and the text head "
                f"{text_head.n_out}: expected as many."
            )
        self.image_head = image_head
        self.text_head = text_head

    def embed_image(self, features: torch.Tensor) -> torch.Tensor:
        """Map image features to the unit sphere of the shared space."""
        return l2_normalize(self.image_head(features))

    def embed_text(self, features: torch.Tensor) -> torch.Tensor:
        """Map text features to the unit sphere of the shared space."""
        return l2_normalize(self.text_head(features))

    def forward(
        self, image: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of both sides."""
        return self.embed_image(image), self.embed_text(text)

    @property
    def n_components(self) -> int:
        """Size of the embeddings."""
        return self.image_head.n_out

    def fingerprint(self) -> str:
        """Return a digest of all weights and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
