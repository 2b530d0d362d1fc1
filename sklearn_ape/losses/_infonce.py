"""The symmetric contrastive loss, at once or in tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._base import (
    ScaledLoss,
    Softmax,
    Tiles,
    as_matrix,
    as_pairs,
    check_counts,
    check_embeddings,
    refuse_second_gradients,
)


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


class InfoNCELoss(ScaledLoss):
    """The symmetric contrastive loss of CLIP, with several positives a row.

    An image and a caption that belong together are positives wherever they meet in a batch,
    never negatives: the target of a row is the same weight on each of its positives. With
    distinct images and captions it is CLIP's loss.

    Parameters
    ----------
    logit_scale : float, default=1 / 0.07
        Factor of the cosines at the start.
    max_logit_scale : float, default=100.0
        Bound on it.
    learn_scale : bool, default=True
        Whether it is trained.
    tile_size : int, "auto" or None, default="auto"
        With an int, logits are computed in tiles of so many rows and columns and never held all
        at once: memory grows with the pairs of a batch, not with their square, and on a CPU it
        takes no longer. Loss and gradients are the same up to rounding. None computes all at
        once, ``"auto"`` does so up to 4096 pairs and takes tiles of 1024 above.

    Raises
    ------
    ValueError
        When `tile_size` is none of these.

    See Also
    --------
    SigmoidLoss : Judges each image with each caption on its own.

    Notes
    -----
    Tiles come with a gradient of their own, which cannot be differentiated again (RuntimeError).

    References
    ----------
    .. [1] A. van den Oord, Y. Li and O. Vinyals, "Representation Learning with Contrastive
       Predictive Coding", 2018.
    .. [2] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021.
    .. [3] J. Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", CVPR 2022.
    .. [4] Z. Cheng et al., "Breaking the Memory Barrier of Contrastive Loss via Tile-Based
       Strategy", CVPR 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.losses import InfoNCELoss
    >>> embeddings = torch.eye(4)
    >>> round(InfoNCELoss(logit_scale=1.0)(embeddings, embeddings).item(), 4)
    0.7437
    >>> round(InfoNCELoss(logit_scale=1.0, tile_size=2)(embeddings, embeddings).item(), 4)
    0.7437
    """

    def __init__(
        self,
        logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        learn_scale: bool = True,
        tile_size: int | str | None = "auto",
    ) -> None:
        super().__init__(logit_scale, max_logit_scale, learn_scale, tile_size)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        positive: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean loss over both directions.

        Parameters
        ----------
        image, text : torch.Tensor of shape (n_pairs, n_components)
            Embeddings of length 1; row i of the one belongs to row i of the other.
        positive : torch.Tensor or None, default=None
            Which images and captions belong together, the diagonal included: either bools of
            shape (n_pairs, n_pairs), True at (i, j) for image i and caption j, or int64 pairs
            (i, j) of shape (n_positive, 2), which large batches have room for. None says that
            only the diagonal does.

        Returns
        -------
        loss : torch.Tensor
            A scalar.

        Raises
        ------
        ValueError
            When shapes do not fit, a pair names a row that is not there, or a row has no positive.
        TypeError
            When `positive` is neither bool nor int64.
        """
        check_embeddings(image, text)
        tile = self._tile(len(image))
        if tile is not None:
            pairs = as_pairs(positive, len(image), image.device)
            return _TiledInfoNCE.apply(image, text, self.logit_scale, pairs, tile)
        logits = self.logit_scale * image @ text.T
        if positive is None:
            target = target_of_text = torch.arange(len(image), device=image.device)
        else:
            positive = as_matrix(positive, len(image))
            of_image, of_text = positive.sum(dim=1), positive.sum(dim=0)
            check_counts(of_image, of_text)
            shared = positive.to(logits.dtype)
            target = shared / of_image[:, None]
            target_of_text = shared.T / of_text[:, None]
        by_image = nn.functional.cross_entropy(logits, target)
        by_text = nn.functional.cross_entropy(logits.T, target_of_text)
        return (by_image + by_text) / 2

    def _share(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, rows: slice, tile: int
    ) -> torch.Tensor:
        return share_of_rows(image, text, self.logit_scale, pairs, rows, tile)


class _TiledInfoNCE(torch.autograd.Function):
    """Keeps embeddings and denominators; the backward pass computes the logits once more."""

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        pairs: torch.Tensor,
        size: int,
    ) -> torch.Tensor:
        of_image, of_text = (pairs[:, k].bincount(minlength=len(image)) for k in (0, 1))
        check_counts(of_image, of_text)
        share_of_image, share_of_text = (
            c.to(image.dtype).reciprocal() for c in (of_image, of_text)
        )
        scaled = scale * image
        by_image, by_text = Softmax(image), Softmax(image)
        tiles = Tiles(pairs, len(image), len(image), size)
        for rows, columns, (row, column) in tiles:
            logits = scaled[rows] @ text[columns].T
            by_image.see(rows, logits)
            by_text.see(columns, logits.T)
            positive = logits[row, column]
            by_image.positive[rows].index_add_(0, row, positive * share_of_image[rows][row])
            by_text.positive[columns].index_add_(
                0, column, positive * share_of_text[columns][column]
            )
        ctx.tiles = tiles
        ctx.save_for_backward(
            image,
            text,
            scale,
            share_of_image,
            share_of_text,
            by_image.largest,
            by_image.total,
            by_text.largest,
            by_text.total,
        )
        return (by_image.losses().mean() + by_text.losses().mean()) / 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_second_gradients()
        image, text, scale, share_of_image, share_of_text, *denominators = ctx.saved_tensors
        image_largest, image_total, text_largest, text_total = denominators
        scaled = scale * image
        of_image, of_text = torch.zeros_like(image), torch.zeros_like(text)
        for rows, columns, (row, column) in ctx.tiles:
            logits = scaled[rows] @ text[columns].T
            slope = (logits - image_largest[rows, None]).exp_().div_(image_total[rows, None])
            slope += logits.sub_(text_largest[columns]).exp_().div_(text_total[columns])
            slope[row, column] -= share_of_image[rows][row] + share_of_text[columns][column]
            of_image[rows] += slope @ text[columns]
            of_text[columns] += slope.T @ scaled[rows]
        weight = gradient / (2 * len(image))
        # d loss / d scale without a walk of its own: logits are linear in scale and in image.
        of_scale = (of_image * image).sum() * weight
        of_image *= scale * weight
        of_text *= weight
        return of_image, of_text, of_scale.to(scale.dtype), None, None
