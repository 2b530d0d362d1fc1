"""What both contrastive losses have: a learned logit scale, and tiles."""

from __future__ import annotations

import math
from abc import abstractmethod
from numbers import Integral

import torch
from torch import nn

from ._positives import as_pairs

MOST_DENSE_ROWS = 4096
AUTO_TILE = 1024


class ScaledLoss(nn.Module):
    """Holds the logit scale, learned in the logarithm and clamped, and the size of a tile."""

    log_scale: torch.Tensor

    def __init__(
        self,
        logit_scale: float,
        max_logit_scale: float,
        learn_scale: bool,
        tile_size: int | str | None,
    ) -> None:
        super().__init__()
        is_size = isinstance(tile_size, Integral) and tile_size >= 1
        if not (tile_size is None or tile_size == "auto" or is_size):
            raise ValueError(
                f"tile_size must be None, 'auto' or a whole number of rows from 1, "
                f"not {tile_size!r}."
            )
        start = torch.tensor(math.log(logit_scale))
        if learn_scale:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.max_log_scale = math.log(max_logit_scale)
        self.tile_size = tile_size

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor that cosines are multiplied by."""
        return self.log_scale.clamp(max=self.max_log_scale).exp()

    def clamp_(self) -> None:
        """Keep the learned scale within bounds, so that it can come back from them."""
        with torch.no_grad():
            self.log_scale.clamp_(max=self.max_log_scale)

    def _tile(self, n_pairs: int) -> int | None:
        """Return the rows of a tile, or None for all logits at once."""
        if self.tile_size == "auto":
            return None if n_pairs <= MOST_DENSE_ROWS else AUTO_TILE
        return None if self.tile_size is None else int(self.tile_size)

    def share(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        positive: torch.Tensor | None,
        rows: slice,
    ) -> torch.Tensor:
        """Return what some rows of a batch add to its loss; the shares of all rows sum to it.

        This is how processes share the work of a batch whose embeddings each of them has.

        Parameters
        ----------
        image, text : torch.Tensor of shape (n_pairs, n_components)
            See `forward`; of the whole batch.
        positive : torch.Tensor or None
            See `forward`; of the whole batch.
        rows : slice
            From a start to a stop within the batch.

        Returns
        -------
        share : torch.Tensor
            A scalar. Logits are computed in tiles, of all columns at once with ``tile_size=None``.
        """
        check_embeddings(image, text)
        pairs = as_pairs(positive, len(image), image.device)
        # Of what one process computes alone, no matrix is kept whole unless it is asked for.
        tile = AUTO_TILE if self.tile_size == "auto" else int(self.tile_size or len(image))
        return self._share(image, text, pairs, rows, tile)

    @abstractmethod
    def _share(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, rows: slice, tile: int
    ) -> torch.Tensor:
        """Return what `share` does, given which pairs belong together and the size of a tile."""


def check_embeddings(image: torch.Tensor, text: torch.Tensor) -> None:
    """Refuse embeddings of different shapes."""
    if image.shape != text.shape or image.ndim != 2 or not len(image):
        raise ValueError(
            "Both sides need embeddings of one shape (n_pairs, n_components), row i of the one "
            f"belonging to row i of the other, not {tuple(image.shape)} and {tuple(text.shape)}."
        )
