"""Small networks that map a frozen feature to the shared space."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = [
    "FrozenHead",
    "GLUHead",
    "Head",
    "LinearHead",
    "MLPHead",
    "ResidualHead",
    "TwoTower",
    "make_head",
]


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
    """Base of the heads: all begin by standardising the features."""

    standardize: Standardize

    def set_statistics(self, features: torch.Tensor) -> None:
        """Take mean and scale from training features of shape (n, n_in)."""
        self.standardize.set(features)


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
    """

    directions: torch.Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        if n_out > n_in:
            raise ValueError(
                f"A side without a head has {n_in} features, so n_components must be None or at "
                f"most {n_in}, not {n_out}. For more use side='both'."
            )
        self.standardize = Standardize(n_in)
        if n_out < n_in:
            self.register_buffer("directions", torch.eye(n_in)[:, :n_out].contiguous())

    def set_statistics(self, features: torch.Tensor) -> None:
        """Take mean, scale and principal directions from training features."""
        super().set_statistics(features)
        if hasattr(self, "directions"):
            standard = self.standardize(features).double()
            directions = torch.linalg.eigh(standard.T @ standard).eigenvectors
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
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.standardize = Standardize(n_in)
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.linear(self.standardize(features))


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
        super().__init__()
        self.standardize = Standardize(n_in)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(n_in, width), nn.GELU(), nn.Dropout(dropout)]
            n_in = width
        self.layers = nn.Sequential(*layers, nn.Linear(n_in, n_out))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.layers(self.standardize(features))


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
    """Pre-norm residual blocks, then a normalised linear projection.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.
    depth : int
        Linear layers: a block has two, the projection is one; ``depth // 2`` blocks.
    width : int
        Width inside a block.
    dropout : float
        Share of hidden units dropped in training.

    References
    ----------
    .. [1] N. Vouitsis et al., "Data-Efficient Multimodal Fusion on a Single GPU", CVPR 2024.
    """

    _gated = False

    def __init__(self, n_in: int, n_out: int, depth: int, width: int, dropout: float) -> None:
        super().__init__()
        self.standardize = Standardize(n_in)
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

    References
    ----------
    .. [1] N. Shazeer, "GLU Variants Improve Transformer", 2020.
    .. [2] L. Zhang et al., "Assessing and Learning Alignment of Unimodal Vision and Language
       Models", CVPR 2025.
    """

    _gated = True


def make_head(
    kind: str | None, n_in: int, n_out: int, *, depth: int, width: int, dropout: float
) -> Head:
    """Return a head by name; None trains nothing.

    Parameters
    ----------
    kind : {"mlp", "residual", "glu", "linear"} or None
        Which head.
    n_in, n_out : int
        Widths of features and embeddings.
    depth, width : int
        Linear layers, and units in a hidden one.
    dropout : float
        Share of hidden units dropped in training.

    Returns
    -------
    head : Head
        Its ``set_statistics`` is to be given the training features.

    Raises
    ------
    ValueError
        When the kind is unknown, or None with more numbers out than in.

    Examples
    --------
    >>> from sklearn_ape.heads import make_head
    >>> head = make_head("linear", 4, 2, depth=1, width=8, dropout=0.0)
    >>> sum(p.numel() for p in head.parameters())
    10
    """
    if kind is None:
        return FrozenHead(n_in, n_out)
    if kind == "linear":
        return LinearHead(n_in, n_out)
    kinds = {"mlp": MLPHead, "residual": ResidualHead, "glu": GLUHead}
    if kind not in kinds:
        raise ValueError(f"head must be one of linear, {', '.join(kinds)}, not {kind!r}.")
    return kinds[kind](n_in, n_out, depth, width, dropout)


class TwoTower(nn.Module):
    """A head for each side, with embeddings scaled to length 1.

    Parameters
    ----------
    image_head, text_head : Head
        What `make_head` returns.
    """

    image_head: Head
    text_head: Head

    def __init__(self, image_head: Head, text_head: Head) -> None:
        super().__init__()
        self.image_head = image_head
        self.text_head = text_head

    def embed_image(self, features: torch.Tensor) -> torch.Tensor:
        """Map image features to the unit sphere of the shared space."""
        return nn.functional.normalize(self.image_head(features), dim=-1)

    def embed_text(self, features: torch.Tensor) -> torch.Tensor:
        """Map text features to the unit sphere of the shared space."""
        return nn.functional.normalize(self.text_head(features), dim=-1)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of both sides."""
        return self.embed_image(image), self.embed_text(text)

    @property
    def n_components(self) -> int:
        """Size of the embeddings."""
        with torch.inference_mode():
            return self.embed_image(self.image_head.standardize.mean[None]).shape[1]

    def fingerprint(self) -> str:
        """Return a digest of all weights and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
