"""Contrastive losses, InfoNCE and sigmoid, and a regularizer that can be added to them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..utils.linalg import l2_normalize
from ..utils.validation import check_integer, check_number
from ._base import (
    ScaledLoss,
    Softmax,
    as_matrix,
    check_counts,
    refuse_second_gradients,
    select_pairs,
    split_into_tiles,
)


class InfoNCELoss(ScaledLoss):
    """The symmetric contrastive loss of CLIP, with several positives per row.

    An image and a caption that belong together are positives wherever both occur in a batch,
    never negatives. The target of a row has equal weights on its positives [3]_. With distinct
    images and captions it is InfoNCE [1]_ in both directions, as in CLIP [2]_.

    Parameters
    ----------
    logit_scale : float, default=1 / 0.07
        Initial logit scale: factor of the cosines.
    max_logit_scale : float, default=100.0
        Upper bound of the logit scale.
    learn_logit_scale : bool, default=True
        Whether the logit scale is learned.
    tile_size : int, "auto" or None, default="auto"
        Number of rows and columns of the tiles in which logits are computed [4]_. Memory then
        grows linearly with the batch size instead of quadratically, and on a CPU it takes no
        longer. Loss and gradients are the same up to rounding. None computes all logits at once.
        ``"auto"`` is None up to 4,096 pairs, otherwise 1,024.

    Raises
    ------
    ValueError
        If `tile_size` or a logit scale is invalid.

    See Also
    --------
    SigmoidLoss : Classifies each pair of an image and a caption independently.

    Notes
    -----
    A tiled loss cannot be differentiated twice (RuntimeError).

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

    def _compute_densely(
        self, image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor | None
    ) -> torch.Tensor:
        logits = self.logit_scale * image @ text.T
        # In float16, the sum of the losses of all rows may overflow.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if positive is None:
            image_target = text_target = torch.arange(len(image), device=image.device)
        else:
            positive = as_matrix(positive, len(image))
            image_counts, text_counts = positive.sum(dim=1), positive.sum(dim=0)
            check_counts(image_counts, text_counts)
            weights = positive.to(logits.dtype)
            image_target = weights / image_counts[:, None]
            text_target = weights.T / text_counts[:, None]
        by_image = nn.functional.cross_entropy(logits, image_target)
        by_text = nn.functional.cross_entropy(logits.T, text_target)
        return ((by_image + by_text) / 2).to(image.dtype)

    def _compute_share(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, rows: slice, tile: int
    ) -> torch.Tensor:
        n_pairs, scale = len(image), self.logit_scale
        check_counts(*(pairs[:, side].bincount(minlength=n_pairs) for side in (0, 1)))
        if rows == slice(0, n_pairs):  # both directions have the same logits
            total = _TiledInfoNCE.apply(image, text, scale, pairs, tile, True)
        else:
            total = image.new_zeros(())
            for one, other, positive in ((image, text, pairs), (text, image, pairs.flip(1))):
                positive = select_pairs(positive, rows)
                total = total + _TiledInfoNCE.apply(one[rows], other, scale, positive, tile, False)
        return (total / (2 * n_pairs)).to(image.dtype)


class _TiledInfoNCE(torch.autograd.Function):
    """Sum of the cross-entropies of images over texts and, if `symmetric`, of texts over images.

    Logits are computed in tiles. The backward pass computes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        pairs: torch.Tensor,
        size: int,
        symmetric: bool,
    ) -> torch.Tensor:
        ctx.softmaxes = [Softmax(image, pairs, 0)]
        if symmetric:
            ctx.softmaxes.append(Softmax(text, pairs, 1))
        ctx.tiles = split_into_tiles(pairs, len(image), len(text), size)
        ctx.save_for_backward(image, text, scale)
        scaled = scale * image
        for tile in ctx.tiles:
            logits = scaled[tile.rows] @ text[tile.columns].T
            for softmax in ctx.softmaxes:
                softmax.update(tile, logits)
        # In float16, the sum would overflow for a few thousand rows.
        dtype = torch.promote_types(image.dtype, torch.float32)
        return torch.stack(
            [softmax.compute_losses().sum(dtype=dtype) for softmax in ctx.softmaxes]
        ).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_second_gradients()
        image, text, scale = ctx.saved_tensors
        scaled = scale * image
        image_gradient, text_gradient = torch.zeros_like(image), torch.zeros_like(text)
        for tile in ctx.tiles:
            logits = scaled[tile.rows] @ text[tile.columns].T
            # Gradient of the logits: softmax minus target.
            slope, *others = (
                softmax.compute_probabilities(tile, logits) for softmax in ctx.softmaxes
            )
            for other in others:
                slope += other
            slope[tile.positive] -= sum(softmax.get_targets(tile) for softmax in ctx.softmaxes)
            image_gradient[tile.rows] += slope @ text[tile.columns]
            text_gradient[tile.columns] += slope.T @ scaled[tile.rows]
        # Logits are linear in scale * image, so the gradient of the scale follows from that of the
        # images.
        dtype = torch.promote_types(image.dtype, torch.float32)
        scale_gradient = (image_gradient * image).sum(dtype=dtype) * gradient
        image_gradient *= scale * gradient
        text_gradient *= gradient
        return image_gradient, text_gradient, scale_gradient, None, None, None


class SigmoidLoss(ScaledLoss):
    """The pairwise sigmoid loss of SigLIP, a binary classification of all pairs.

    The loss is summed over captions and averaged over images, as in SigLIP [1]_.

    Parameters
    ----------
    logit_scale : float, default=10.0
        Initial logit scale: factor of the cosines.
    max_logit_scale : float, default=100.0
        Upper bound of the logit scale.
    learn_logit_scale : bool, default=True
        Whether logit scale and bias are learned.
    bias : float or None, default=None
        Initial bias of the logits. None is ``-log(n_pairs)`` of the first batch, with which
        positives and negatives have equal total weight.
    tile_size : int, "auto" or None, default="auto"
        Number of rows and columns of the tiles in which logits are computed; see `InfoNCELoss`.

    Raises
    ------
    ValueError
        If `tile_size` or a logit scale is invalid.

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
        learn_logit_scale: bool = True,
        bias: float | None = None,
        tile_size: int | str | None = "auto",
    ) -> None:
        super().__init__(logit_scale, max_logit_scale, learn_logit_scale, tile_size)
        # NaN stands for a bias that the first batch determines.
        initial = torch.tensor(math.nan if bias is None else bias)
        if learn_logit_scale:
            self.bias = nn.Parameter(initial)
        else:
            self.register_buffer("bias", initial)

    def _compute_densely(
        self, image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor | None
    ) -> torch.Tensor:
        self._initialize_bias(len(image))
        logits = self.logit_scale * image @ text.T + self.bias
        if positive is None:
            positive = torch.eye(len(image), dtype=torch.bool, device=image.device)
        sign = torch.where(as_matrix(positive, len(image)), 1.0, -1.0)
        return -nn.functional.logsigmoid(sign * logits).sum() / len(image)

    def _compute_share(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, rows: slice, tile: int
    ) -> torch.Tensor:
        self._initialize_bias(len(image))
        pairs = select_pairs(pairs, rows)
        total = _TiledSigmoid.apply(image[rows], text, self.logit_scale, self.bias, pairs, tile)
        return total / len(image)

    def _initialize_bias(self, n_pairs: int) -> None:
        if self.bias.isnan():
            with torch.no_grad():
                self.bias.fill_(-math.log(max(n_pairs, 2)))


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
        # In float16, the sums would overflow or be lost to rounding.
        dtype = torch.promote_types(image.dtype, torch.float32)
        loss, bias_gradient = image.new_zeros((), dtype=dtype), image.new_zeros((), dtype=dtype)
        image_gradient, text_gradient = torch.zeros_like(image), torch.zeros_like(text)
        needs_gradients = any(ctx.needs_input_grad)
        for rows, columns, positive in split_into_tiles(pairs, len(image), len(text), size):
            # The loss of a positive is that of a negative with the opposite logit.
            logits = scaled[rows] @ text[columns].T + bias
            logits[positive] *= -1
            loss -= nn.functional.logsigmoid(-logits).sum(dtype=dtype)
            if needs_gradients:
                slope = logits.sigmoid_()
                slope[positive] *= -1
                image_gradient[rows] += slope @ text[columns]
                text_gradient[columns] += slope.T @ scaled[rows]
                bias_gradient += slope.sum(dtype=dtype)
        if needs_gradients:
            scale_gradient = (image_gradient * image).sum(dtype=dtype)
            image_gradient *= scale
            ctx.save_for_backward(image_gradient, text_gradient, scale_gradient, bias_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_second_gradients()
        return *(saved * gradient for saved in ctx.saved_tensors), None, None


class StructureLoss(nn.Module):
    """The regularizer of STRUCTURE, which preserves the neighbourhoods of the frozen features.

    Rows are L2-normalized and centered. The softmax of the cosines of a row with all rows, itself
    included, is a step of a random walk. Walks of 1 to `levels` steps over features and over
    embeddings are compared by the Jensen-Shannon divergence.

    Parameters
    ----------
    temperature : float, default=0.1
        Divisor of the cosines. Lower values consider only nearer neighbours.
    levels : int, default=1
        Length of the longest walk. Each step takes two products of square matrices.
    max_rows : int, default=1024
        Maximum number of rows of a batch that are compared, the first ones, which are a sample if
        batches are shuffled. Time and memory grow with its square.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    With P and Q the transition matrices over features and embeddings, the loss [1]_ is
    ``1 / levels * sum(JS(P ** l, Q ** l) / l for l in 1, ..., levels)``, with powers
    of matrices and the divergence in nats, averaged over rows. It lies between 0 and log(2).

    References
    ----------
    .. [1] F. Gröger, S. Wen, H. Le and M. Brbić, "With Limited Data for Multimodal Alignment, Let
       the STRUCTURE Guide You", NeurIPS 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.losses import StructureLoss
    >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [-0.8, -0.6]])
    >>> rotated = features.flip(1)
    >>> round(StructureLoss()(features, rotated).item(), 4)
    0.0
    >>> round(StructureLoss()(features, features[[0, 2, 1, 3]]).item(), 4)
    0.0826
    """

    def __init__(self, temperature: float = 0.1, levels: int = 1, max_rows: int = 1024) -> None:
        super().__init__()
        check_number(temperature, "temperature", 0, closed="neither")
        check_integer(levels, "levels", 1)
        check_integer(max_rows, "max_rows", 2)
        self.temperature = temperature
        self.levels = levels
        self.max_rows = max_rows

    def forward(self, features: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the divergence between the neighbourhoods of features and of embeddings.

        Parameters
        ----------
        features : torch.Tensor of shape (n_rows, n_features)
            Features of the frozen encoder.
        embeddings : torch.Tensor of shape (n_rows, n_components)
            Embeddings of the features.

        Returns
        -------
        loss : torch.Tensor
            A scalar between 0, if the geometry is preserved, and log(2).

        Raises
        ------
        ValueError
            If the numbers of rows differ.
        """
        if len(features) != len(embeddings):
            raise ValueError(
                f"features and embeddings have different numbers of rows, {len(features)} and "
                f"{len(embeddings)}. Pass one embedding per row of features."
            )
        with torch.no_grad():
            p_step = self._compute_transition_matrix(features)
        q_step = self._compute_transition_matrix(embeddings)
        p, q = p_step, q_step
        loss = _compute_divergence(p, q)
        for level in range(2, self.levels + 1):
            p, q = p @ p_step, q @ q_step
            loss = loss + _compute_divergence(p, q) / level
        return loss / self.levels

    def _compute_transition_matrix(self, points: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of steps from row to row."""
        points = l2_normalize(points[: self.max_rows])
        points = nn.functional.normalize(points - points.mean(dim=0), dim=1)
        return (points @ points.T / self.temperature).softmax(dim=1)


def _compute_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence, averaged over rows."""
    # With small temperatures probabilities underflow to 0, where the gradient of x * log(x) is
    # infinite.
    tiny = torch.finfo(p.dtype).tiny
    p, q = p.clamp_min(tiny), q.clamp_min(tiny)
    log_mean = ((p + q) / 2).log()
    terms = p * (p.log() - log_mean) + q * (q.log() - log_mean)
    return terms.sum(dim=1).mean() / 2
