"""Walks over a batch's matrix of logits, a square tile at a time."""

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
    """All tiles of a square matrix of logits, by rows.

    Parameters
    ----------
    pairs : torch.Tensor of shape (n_positive, 2)
        Distinct rows and columns of the positives.
    n_pairs : int
        Rows and columns of the matrix.
    size : int
        The most rows and columns of a tile.
    """

    def __init__(self, pairs: torch.Tensor, n_pairs: int, size: int) -> None:
        self.n_pairs = n_pairs
        self.size = size
        self.n_across = -(-n_pairs // size)
        tile = (pairs[:, 0] // size) * self.n_across + pairs[:, 1] // size
        order = torch.argsort(tile)
        self.rows, self.columns = pairs[order].T
        counts = torch.bincount(tile, minlength=self.n_across**2)
        self.ends = counts.cumsum(0).tolist()

    def __iter__(self) -> Iterator[Tile]:
        begin = 0
        for number, end in enumerate(self.ends):
            row, column = (at * self.size for at in divmod(number, self.n_across))
            yield Tile(
                slice(row, min(row + self.size, self.n_pairs)),
                slice(column, min(column + self.size, self.n_pairs)),
                (self.rows[begin:end] - row, self.columns[begin:end] - column),
            )
            begin = end


def refuse_second_gradients() -> None:
    """Raise where a gradient is to be differentiated again, which would take it as constant."""
    if torch.is_grad_enabled():  # so it is in a backward pass that makes a graph
        raise RuntimeError(
            "A tiled loss cannot be differentiated twice (create_graph=True): use tile_size=None."
        )
