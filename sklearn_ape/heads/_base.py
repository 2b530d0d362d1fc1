"""Base class of heads, linear and frozen heads, two heads in one, and the pair of heads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import nn

from ..utils.linalg import l2_normalize

_BLOCK_SIZE = 4096
NORM_LIMITS = (1e-2, 1e12)
"""Range of feature scales in which `torch.nn.LayerNorm` (eps=1e-5) is scale-invariant."""


class Standardize(nn.Module):
    """Standardize features by means and standard deviations of the training set.

    Parameters
    ----------
    n_features : int
        Number of features.

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
        """Compute means and standard deviations from features of shape (n, n_features).

        Parameters
        ----------
        features : torch.Tensor or StoredRows
            Features, or any object that has a length and returns rows for a slice. They are read
            once, in blocks of rows.
        """
        # Sums of differences from an approximate mean do not cancel in the variance.
        center = torch.as_tensor(features[:_BLOCK_SIZE]).double().mean(dim=0)
        check_width(center, len(self.mean))
        total, total_square = torch.zeros_like(center), torch.zeros_like(center)
        for rows in iter_row_tensors(features):
            rows = rows.double() - center
            total += rows.sum(dim=0)
            total_square += rows.square_().sum(dim=0)
        offset = total / len(features)
        mean = center + offset
        scale = (total_square / len(features) - offset.square()).clamp_min(0).sqrt()
        # Do not scale constant features: dividing by rounding noise would amplify it. The noise
        # of float32 is relative to the mean; the second term catches features with mean zero.
        positive_scales = scale[scale > 0]
        median = positive_scales.median() if len(positive_scales) else 0.0
        is_constant = scale <= 1e-6 * mean.abs() + 1e-12 * median
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(is_constant, 1.0, scale))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return standardized features of the same shape."""
        check_width(features, len(self.mean))
        return (features - self.mean) / self.scale


def check_width(features: torch.Tensor, n_features: int) -> None:
    """Raise ValueError if features, which PyTorch would broadcast, have another number of columns.

    >>> check_width(torch.zeros(3, 1), 8)
    Traceback (most recent call last):
    ValueError: features must have 8 columns, not 1.
    """
    if features.shape[-1] != n_features:
        raise ValueError(f"features must have {n_features} columns, not {features.shape[-1]}.")


def check_same_sizes(**parts: Any) -> None:
    """Raise ValueError, with the names, if two heads or maps differ in their sizes."""
    (first, first_part), (second, second_part) = parts.items()
    if (first_part.n_in, first_part.n_out) != (second_part.n_in, second_part.n_out):
        raise ValueError(
            f"{first} and {second} have different sizes: {first_part.n_in} to {first_part.n_out}, "
            f"and {second_part.n_in} to {second_part.n_out}. Pass parts with the same sizes."
        )


class Head(nn.Module):
    """Base class of heads, which map features to embeddings that are not yet L2-normalized.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings.
    standardize : bool, default=True
        Whether the head standardizes features first. False is for heads that begin with a layer
        norm.
    """

    # Arguments of `make_head`, which are saved with the weights.
    spec: dict[str, Any] | None = None

    def __init__(self, n_in: int, n_out: int, standardize: bool = True) -> None:
        super().__init__()
        self.n_in = n_in
        self.n_out = n_out
        self.standardize: nn.Module = Standardize(n_in) if standardize else nn.Identity()

    def set_statistics(self, features: Any) -> None:
        """Compute the statistics of the head from training features of shape (n, n_in).

        Parameters
        ----------
        features : torch.Tensor or StoredRows
            Features, or any object that has a length and returns rows for a slice.
        """
        if isinstance(self.standardize, Standardize):
            self.standardize.set(features)

    def start_at_zero(self) -> None:
        """Set the weights so that the output is zero until the first training step.

        Only the last layers are set to zero. They get gradients in the first step, and the layers
        before them from the second step on.

        Raises
        ------
        ValueError
            If the head has no parameters.
        """
        layers = self._list_output_layers()
        if not layers:
            raise ValueError(
                f"{type(self).__name__} has no parameters and cannot start at zero. Pass another "
                "head."
            )
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def _list_output_layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = [m for m in self.modules() if isinstance(m, nn.Linear)]
        return layers[-1:]


def iter_row_tensors(features: Any) -> Iterator[torch.Tensor]:
    """Yield features as tensors, in blocks of up to 4,096 rows."""
    for block in gen_batches(len(features), _BLOCK_SIZE):
        yield torch.as_tensor(features[block])


class FrozenHead(Head):
    """A head without trained parameters, which standardizes features and can reduce them.

    Parameters
    ----------
    n_in : int
        Number of features.
    n_out : int
        Size of the embeddings. ``n_in`` keeps all features, a smaller number the principal
        directions of the training features.

    Raises
    ------
    ValueError
        If `n_out` is greater than `n_in`.

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
                f"most {n_in}, not {n_out}. Use APEAligner with side='both' for more."
            )
        super().__init__(n_in, n_out)
        self.spec = {"kind": None, "depth": 1, "width": 1, "dropout": 0.0}
        if n_out < n_in:
            self.register_buffer("directions", torch.eye(n_in)[:, :n_out].contiguous())

    def set_statistics(self, features: Any) -> None:
        """Compute means, scales and principal directions from training features."""
        super().set_statistics(features)
        if hasattr(self, "directions"):
            products = torch.zeros(self.n_in, self.n_in, dtype=torch.double)
            for rows in iter_row_tensors(features):
                standardized = self.standardize(rows).double()
                products += standardized.T @ standardized
            directions = torch.linalg.eigh(products).eigenvectors  # by ascending eigenvalue
            self.directions.copy_(directions.flip(1)[:, : self.directions.shape[1]])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        standardized = self.standardize(features)
        return standardized @ self.directions if hasattr(self, "directions") else standardized


class LinearHead(Head):
    """A linear map of standardized features.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import LinearHead
    >>> LinearHead(6, 2)(torch.zeros(3, 6)).shape
    torch.Size([3, 2])
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.spec = {"kind": "linear", "depth": 1, "width": 1, "dropout": 0.0}
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.linear(self.standardize(features))


class _TwoHeads(Head):
    """Base class of heads that combine two heads with the same features by a weight."""

    weight: torch.Tensor

    def __init__(self, first: Head, second: Head, weight: float, n_out: int) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, not {weight!r}.")
        super().__init__(first.n_in, n_out, standardize=False)
        self.first = first
        self.second = second
        # A buffer, so that the weight is part of the fingerprint.
        self.register_buffer("weight", torch.tensor(float(weight)))

    def set_statistics(self, features: Any) -> None:
        """Compute the statistics of both heads from training features."""
        self.first.set_statistics(features)
        self.second.set_statistics(features)

    def _compute_outputs(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the L2-normalized outputs of both heads."""
        return l2_normalize(self.first(features)), l2_normalize(self.second(features))


class BlendedHead(_TwoHeads):
    """A weighted sum of the L2-normalized outputs of two heads into the same space.

    Parameters
    ----------
    first, second : Head
        Heads with the same sizes, such as a `ClosedFormHead` and a trained head.
    weight : float
        Share of `second`, between 0 and 1. With 0 the embeddings are those of `first`, with 1
        those of `second`.

    Raises
    ------
    ValueError
        If the sizes of the heads differ or the weight is out of range.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import BlendedHead, ClosedFormHead, LinearMap
    >>> first, second = (
    ...     ClosedFormHead(LinearMap(torch.zeros(2), matrix))
    ...     for matrix in (torch.eye(2), torch.eye(2).flip(0))
    ... )
    >>> BlendedHead(first, second, weight=0.25)(torch.tensor([[2.0, 0.0]]))
    tensor([[0.7500, 0.2500]])
    """

    def __init__(self, first: Head, second: Head, weight: float) -> None:
        check_same_sizes(first=first, second=second)
        super().__init__(first, second, weight, first.n_out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        first, second = self._compute_outputs(features)
        return (1 - self.weight) * first + self.weight * second


class ConcatenatedHead(_TwoHeads):
    """The L2-normalized outputs of two heads, one after the other, with weights.

    If both sides have such heads with the same weight, the cosine of an image and a text is
    ``1 - weight`` times that of the first heads plus ``weight`` times that of the second ones.

    Parameters
    ----------
    first, second : Head
        Heads with the same number of features.
    weight : float
        Share of `second` in the cosines, between 0 and 1.

    Raises
    ------
    ValueError
        If the numbers of features differ or the weight is out of range.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import ClosedFormHead, ConcatenatedHead, LinearMap
    >>> head = ClosedFormHead(LinearMap(torch.zeros(2), torch.eye(2)))
    >>> ConcatenatedHead(head, head, weight=0.25)(torch.tensor([[0.0, 2.0]]))
    tensor([[0.0000, 0.8660, 0.0000, 0.5000]])
    """

    def __init__(self, first: Head, second: Head, weight: float) -> None:
        if first.n_in != second.n_in:
            raise ValueError(
                f"first takes {first.n_in} features, and second {second.n_in}. Pass heads with "
                "the same number of features."
            )
        super().__init__(first, second, weight, first.n_out + second.n_out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.concatenate(*self._compute_outputs(features))

    def concatenate(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the weighted concatenation of outputs of both heads."""
        return torch.cat([(1 - self.weight).sqrt() * first, self.weight.sqrt() * second], dim=-1)


class TwoTower(nn.Module):
    """A head for each side, with L2-normalized embeddings.

    Parameters
    ----------
    image_head : Head
        Head of the images.
    text_head : Head or torch.nn.Module
        Head of the texts, or any module with outputs of the same size, such as a text tower.

    Raises
    ------
    ValueError
        If the embeddings of the heads differ in size.

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
                f"image_head and text_head have embeddings of different sizes, {image_head.n_out} "
                f"and {text_head.n_out}. Pass heads with the same n_out."
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
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy())  # not a copy as bytes
        return digest.hexdigest()
