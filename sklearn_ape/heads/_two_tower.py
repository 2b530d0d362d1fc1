"""Both sides' heads as one module."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from .._unit import unit
from ._base import Head


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
        return unit(self.image_head(features))

    def embed_text(self, features: torch.Tensor) -> torch.Tensor:
        """Map text features to the unit sphere of the shared space."""
        return unit(self.text_head(features))

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
