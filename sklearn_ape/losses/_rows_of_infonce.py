"""What some rows add to the contrastive loss of a batch that several processes share."""

from __future__ import annotations

from typing import Any

import torch

from ._positives import check_counts
from ._tiles import Softmax, Tiles, refuse_second_gradients


class RowsOfInfoNCE(torch.autograd.Function):
    """Sums the cross-entropies of some rows over all columns, in tiles.

    Keeps embeddings and denominators; the backward pass computes the logits once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        columns: torch.Tensor,
        scale: torch.Tensor,
        pairs: torch.Tensor,
        size: int,
    ) -> torch.Tensor:
        """Return the sum, given which (row, column) are positives."""
        share = pairs[:, 0].bincount(minlength=len(rows)).to(rows.dtype).reciprocal()
        scaled = scale * rows
        softmax = Softmax(rows)
        tiles = Tiles(pairs, len(rows), len(columns), size)
        for down, across, (row, column) in tiles:
            logits = scaled[down] @ columns[across].T
            softmax.see(down, logits)
            positive = logits[row, column] * share[down][row]
            softmax.positive[down].index_add_(0, row, positive)
        ctx.tiles = tiles
        ctx.save_for_backward(rows, columns, scale, share, softmax.largest, softmax.total)
        return softmax.losses().sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of rows, columns and scale."""
        refuse_second_gradients()
        rows, columns, scale, share, largest, total = ctx.saved_tensors
        scaled = scale * rows
        of_rows, of_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        for down, across, (row, column) in ctx.tiles:
            slope = scaled[down] @ columns[across].T
            slope.sub_(largest[down, None]).exp_().div_(total[down, None])
            slope[row, column] -= share[down][row]
            of_rows[down] += slope @ columns[across]
            of_columns[across] += slope.T @ scaled[down]
        of_scale = (of_rows * rows).sum() * gradient
        of_rows *= scale * gradient
        of_columns *= gradient
        return of_rows, of_columns, of_scale.to(scale.dtype), None, None


def share_of_rows(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    pairs: torch.Tensor,
    rows: slice,
    size: int,
) -> torch.Tensor:
    """Return what some rows of both sides add to the loss of all.

    Parameters
    ----------
    image, text : torch.Tensor of shape (n_pairs, n_components)
        Embeddings of the whole batch.
    scale : torch.Tensor
        The logit scale.
    pairs : torch.Tensor of shape (n_positive, 2)
        Distinct rows of images and captions that belong together.
    rows : slice
        Which rows.
    size : int
        The most rows and columns of a tile.

    Returns
    -------
    share : torch.Tensor
        A scalar; the shares of all rows sum to the loss.
    """
    check_counts(*(pairs[:, side].bincount(minlength=len(image)) for side in (0, 1)))
    total = image.new_zeros(())
    for of_rows, of_columns, both in ((image, text, pairs), (text, image, pairs.flip(1))):
        own = both[(both[:, 0] >= rows.start) & (both[:, 0] < rows.stop)]
        own = own - own.new_tensor([rows.start, 0])
        total = total + RowsOfInfoNCE.apply(of_rows[rows], of_columns, scale, own, size)
    return total / (2 * len(image))
