"""The pairwise sigmoid loss, at once or in tiles."""

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
)


class SigmoidLoss(ScaledLoss):
    """The pairwise sigmoid loss of SigLIP: each image with each caption is a yes or a no.

    Parameters
    ----------
    logit_scale : float, default=10.0
        Factor of the cosines at the start.
    max_logit_scale : float, default=100.0
        Bound on it.
    learn_scale : bool, default=True
        Whether scale and bias are trained.
    bias : float or None, default=None
        Added to the logits at the start. None takes ``-log(n_pairs)`` of the first batch, at
        which yes and no weigh the same.
    tile_size : int, "auto" or None, default="auto"
        Rows and columns of logits to compute at a time; see `InfoNCELoss`.

    Raises
    ------
    ValueError
        When `tile_size` is none of these.

    See Also
    --------
    InfoNCELoss : Compares an image with all captions at once.

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
        start = torch.tensor(math.nan if bias is None else bias)
        if learn_scale:
            self.bias = nn.Parameter(start)
        else:
            self.register_buffer("bias", start)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        positive: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss summed over captions, averaged over images.

        Parameters
        ----------
        image, text : torch.Tensor of shape (n_pairs, n_components)
            Embeddings of length 1; row i of the one belongs to row i of the other.
        positive : torch.Tensor or None, default=None
            Which images and captions belong together, in the forms of `InfoNCELoss`. Each is a
            yes of its own.

        Returns
        -------
        loss : torch.Tensor
            A scalar.

        Raises
        ------
        ValueError
            When shapes do not fit, or a pair names a row that is not there.
        TypeError
            When `positive` is neither bool nor int64.
        """
        check_embeddings(image, text)
        self._start_bias(len(image))
        tile = self._tile(len(image))
        if tile is not None:
            pairs = as_pairs(positive, len(image), image.device)
            return self._tiled(image, text, pairs, tile) / len(image)
        logits = self.logit_scale * image @ text.T + self.bias
        if positive is None:
            positive = torch.eye(len(image), dtype=torch.bool, device=image.device)
        sign = torch.where(as_matrix(positive, len(image)), 1.0, -1.0)
        return -nn.functional.logsigmoid(sign * logits).sum() / len(image)

    def _share(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, rows: slice, tile: int
    ) -> torch.Tensor:
        self._start_bias(len(image))
        own = pairs[(pairs[:, 0] >= rows.start) & (pairs[:, 0] < rows.stop)]
        own = own - own.new_tensor([rows.start, 0])
        return self._tiled(image[rows], text, own, tile) / len(image)

    def _start_bias(self, n_pairs: int) -> None:
        if self.bias.isnan():
            with torch.no_grad():
                self.bias.fill_(-math.log(max(n_pairs, 2)))

    def _tiled(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, size: int
    ) -> torch.Tensor:
        return _TiledSigmoid.apply(image, text, self.logit_scale, self.bias, pairs, size)


class _TiledSigmoid(torch.autograd.Function):
    """Sums over all rows and columns. Takes the gradients along, since no tile needs another."""

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
        loss, of_bias = image.new_zeros(()), image.new_zeros(())
        of_image, of_text = torch.zeros_like(image), torch.zeros_like(text)
        wanted = any(ctx.needs_input_grad)
        for rows, columns, at in Tiles(pairs, len(image), len(text), size):
            # Signed so that every pair is a no: a yes is a no of the negative logit.
            logits = scaled[rows] @ text[columns].T + bias
            logits[at] *= -1
            loss -= nn.functional.logsigmoid(-logits).sum()
            if wanted:
                slope = logits.sigmoid_()
                slope[at] *= -1
                of_image[rows] += slope @ text[columns]
                of_text[columns] += slope.T @ scaled[rows]
                of_bias += slope.sum()
        if wanted:
            of_scale = (of_image * image).sum()
            of_image *= scale
            ctx.save_for_backward(
                of_image, of_text, of_scale.to(scale.dtype), of_bias.to(bias.dtype)
            )
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_second_gradients()
        return *(saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors), None, None
