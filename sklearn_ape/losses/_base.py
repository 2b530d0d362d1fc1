"""Logit scale, positive pairs and tiles, which the losses share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from numbers import Integral
from typing import NamedTuple

import torch
from torch import nn


def as_matrix(positive: torch.Tensor, n_pairs: int) -> torch.Tensor:
    """Return a bool matrix of shape (n_pairs, n_pairs)."""
    positive = _checked(positive, n_pairs)
    if positive.dtype == torch.bool:
        return positive
    matrix = torch.zeros(n_pairs, n_pairs, dtype=torch.bool, device=positive.device)
    matrix[positive[:, 0], positive[:, 1]] = True
    return matrix


def as_pairs(positive: torch.Tensor | None, n_pairs: int, device: torch.device) -> torch.Tensor:
    """Return distinct pairs of rows, of shape (n_positive, 2)."""
    if positive is None:
        return torch.arange(n_pairs, device=device)[:, None].expand(-1, 2)
    positive = _checked(positive, n_pairs)
    if positive.dtype == torch.bool:
        return positive.nonzero()
    numbers = torch.unique(positive[:, 0] * n_pairs + positive[:, 1])
    return torch.stack([numbers // n_pairs, numbers % n_pairs], dim=1)


def check_counts(of_image: torch.Tensor, of_text: torch.Tensor) -> None:
    """Refuse rows without any positive: their target would be 0 / 0."""
    for name, counts in (("Image", of_image), ("Caption", of_text)):
        if not counts.all():
            raise ValueError(
                f"{name} {int((counts == 0).nonzero()[0])} of the batch has no positive: row i of "
                "both sides belongs together, so (i, i) must be among the positives."
            )


def _checked(positive: torch.Tensor, n_pairs: int) -> torch.Tensor:
    if positive.dtype == torch.bool:
        if positive.shape != (n_pairs, n_pairs):
            raise ValueError(
                f"A bool `positive` must have shape ({n_pairs}, {n_pairs}), one row an image and "
                f"one column a caption, not {tuple(positive.shape)}."
            )
        return positive
    if positive.dtype != torch.int64:
        raise TypeError(
            "`positive` must be a bool matrix or int64 pairs of rows, not a tensor of "
            f"{positive.dtype}."
        )
    if positive.ndim != 2 or positive.shape[1] != 2:
        raise ValueError(
            "An int64 `positive` must have shape (n_positive, 2), an image's row and a "
            f"caption's, not {tuple(positive.shape)}; a matrix must be of bools."
        )
    if len(positive) and not (positive.min() >= 0 and positive.max() < n_pairs):
        raise ValueError(
            f"`positive` names rows {int(positive.min())} to {int(positive.max())}, and the batch "
            f"has rows 0 to {n_pairs - 1}."
        )
    return positive


class Tile(NamedTuple):
    """Rows and columns of a tile, and its positives counted from the tile's own corner."""

    rows: slice
    columns: slice
    positive: tuple[torch.Tensor, torch.Tensor]


class Tiles:
    """All tiles of a matrix of logits, by rows.

    Parameters
    ----------
    pairs : torch.Tensor of shape (n_positive, 2)
        Distinct rows and columns of the positives.
    n_rows, n_columns : int
        Shape of the matrix.
    size : int
        The most rows and columns of a tile.
    """

    def __init__(self, pairs: torch.Tensor, n_rows: int, n_columns: int, size: int) -> None:
        self.n_rows = n_rows
        self.n_columns = n_columns
        self.size = size
        self.n_across = -(-n_columns // size)
        n_tiles = -(-n_rows // size) * self.n_across
        tile = (pairs[:, 0] // size) * self.n_across + pairs[:, 1] // size
        order = torch.argsort(tile)
        self.rows, self.columns = pairs[order].T
        counts = torch.bincount(tile, minlength=n_tiles)
        self.ends = counts.cumsum(0).tolist()

    def __iter__(self) -> Iterator[Tile]:
        begin = 0
        for number, end in enumerate(self.ends):
            row, column = (at * self.size for at in divmod(number, self.n_across))
            yield Tile(
                slice(row, min(row + self.size, self.n_rows)),
                slice(column, min(column + self.size, self.n_columns)),
                (self.rows[begin:end] - row, self.columns[begin:end] - column),
            )
            begin = end


class Softmax:
    """Denominators of softmaxes whose logits come a tile at a time.

    The largest logit and the sum of exponentials below it are kept apart, as in flash attention:
    added up in one float, the sum would drown when a pair is all but certain.

    Parameters
    ----------
    like : torch.Tensor of shape (n_rows, n_components)
        One row a softmax.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self.largest = like.new_full((len(like),), -torch.inf)
        self.total = like.new_zeros(len(like))
        self.positive = like.new_zeros(len(like))

    def see(self, at: slice, logits: torch.Tensor) -> None:
        """Take in more columns of some rows."""
        largest = torch.maximum(self.largest[at], logits.amax(dim=1))
        before = self.total[at] * (self.largest[at] - largest).exp()
        self.total[at] = before + (logits - largest[:, None]).exp_().sum(dim=1)
        self.largest[at] = largest

    def losses(self) -> torch.Tensor:
        """Return log-denominator minus mean logit of the positives, of every row."""
        return self.total.log() + (self.largest - self.positive)


def refuse_second_gradients() -> None:
    """Raise where a gradient is to be differentiated again, which would take it as constant."""
    if torch.is_grad_enabled():  # so it is in a backward pass that makes a graph
        raise RuntimeError(
            "A tiled loss cannot be differentiated twice (create_graph=True): use tile_size=None."
        )


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
