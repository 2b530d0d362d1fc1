"""Walks over a matrix of logits, a tile at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch


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
