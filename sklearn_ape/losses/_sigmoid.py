"""Pairwise sigmoid loss, computed at once or in tiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ._base import (
    ScaledLoss,
    Tiles,
    as_matrix,
    as_pairs,
    check_embeddings,
    refuse_second_gradients,
    select_pairs,
)


class SigmoidLoss(ScaledLoss):
    """The pairwise sigmoid loss of SigLIP, a binary classification of all pairs.

    Parameters
    ----------
    logit_scale : float, default=10.0
        Initial factor of the cosines.
    max_logit_scale : float, default=100.0
        Upper bound of the logit scale.
    learn_scale : bool, default=True
        Whether logit scale and bias are learned.
    bias : float or None, default=None
        Initial bias of the logits. None is ``-log(n_pairs)`` of the first batch, with which
        positives and negatives have equal total weight.
    tile_size : int, "auto" or None, default="auto"
        Number of rows and columns of the tiles in which logits are computed; see `InfoNCELoss`.

    Raises
    ------
    ValueError
        If `tile_size` is invalid.

    See Also
    --------
    InfoNCELoss : Compares an image with all captions by a softmax.

    References
    ----------
    .. [1] X. Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.losses import SigmoidLoss
    >>> right, wrong = torch.eye(4), -torch.eye(4)
    >>> bool(SigmoidLoss()(right, right) < SigmoidLoss()(right, wrong))
    True
    """

    bias: torch.Tensor

    def __init__(
        self,
        logit_scale: float = 10.0,
        max_logit_scale: float = 100.0,
        learn_scale: bool = True,
        bias: float | None = None,
        tile_size: int | str | None = "auto",
    ) -> None:
        super().__init__(logit_scale, max_logit_scale, learn_scale, tile_size)
        # NaN stands for a bias that the first batch determines.
        initial = torch.tensor(math.nan if bias is None else bias)
        if learn_scale:
            self.bias = nn.Parameter(initial)
        else:
            self.register_buffer("bias", initial)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        positive: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss, summed over captions and averaged over images.

        Parameters
        ----------
        image, text : torch.Tensor of shape (n_pairs, n_components)
            L2-normalized embeddings; row i of one belongs to row i of the other.
        positive : torch.Tensor or None, default=None
            Images and captions that belong together; see `InfoNCELoss`.

        Returns
        -------
        loss : torch.Tensor
            A scalar.

        Raises
        ------
        ValueError
            If shapes do not match, or `positive` contains an invalid row.
        TypeError
            If `positive` is neither bool nor int64.
        """
        check_embeddings(image, text)
        self._initialize_bias(len(image))
        tile = self._tile(len(image))
        if tile is not None:
            pairs = as_pairs(positive, len(image), image.device)
            return self._sum_tiles(image, text, pairs, tile) / len(image)
        logits = self.logit_scale * image @ text.T + self.bias
        if positive is None:
            positive = torch.eye(len(image), dtype=torch.bool, device=image.device)
        sign = torch.where(as_matrix(positive, len(image)), 1.0, -1.0)
        return -nn.functional.logsigmoid(sign * logits).sum() / len(image)

    def _share(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, rows: slice, tile: int
    ) -> torch.Tensor:
        self._initialize_bias(len(image))
        return self._sum_tiles(image[rows], text, select_pairs(pairs, rows), tile) / len(image)

    def _initialize_bias(self, n_pairs: int) -> None:
        if self.bias.isnan():
            with torch.no_grad():
                self.bias.fill_(-math.log(max(n_pairs, 2)))

    def _sum_tiles(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, size: int
    ) -> torch.Tensor:
        return _TiledSigmoid.apply(image, text, self.logit_scale, self.bias, pairs, size)


class _TiledSigmoid(torch.autograd.Function):
    """Sum over all rows and columns; tiles are independent, so gradients are computed forward."""

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        pairs: torch.Tensor,
        size: int,
    ) -> torch.Tensor:
        scaled = scale * image
        loss, bias_gradient = image.new_zeros(()), image.new_zeros(())
        image_gradient, text_gradient = torch.zeros_like(image), torch.zeros_like(text)
        needs_gradients = any(ctx.needs_input_grad)
        for rows, columns, positive in Tiles(pairs, len(image), len(text), size):
            # The loss of a positive is that of a negative with the opposite logit.
            logits = scaled[rows] @ text[columns].T + bias
            logits[positive] *= -1
            loss -= nn.functional.logsigmoid(-logits).sum()
            if needs_gradients:
                slope = logits.sigmoid_()
                slope[positive] *= -1
                image_gradient[rows] += slope @ text[columns]
                text_gradient[columns] += slope.T @ scaled[rows]
                bias_gradient += slope.sum()
        if needs_gradients:
            scale_gradient = (image_gradient * image).sum()
            image_gradient *= scale
            ctx.save_for_backward(
                image_gradient,
                text_gradient,
                scale_gradient.to(scale.dtype),
                bias_gradient.to(bias.dtype),
            )
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_second_gradients()
        return *(saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors), None, None
