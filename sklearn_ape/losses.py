"""Contrastive losses between the embeddings of pictures and texts."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["InfoNCELoss", "SigmoidLoss"]


class _ScaledLoss(nn.Module):
    """Holds the logit scale, learned in the logarithm and clamped."""

    log_scale: torch.Tensor

    def __init__(self, logit_scale: float, max_logit_scale: float, learn_scale: bool) -> None:
        super().__init__()
        start = torch.tensor(math.log(logit_scale))
        if learn_scale:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.max_log_scale = math.log(max_logit_scale)

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor that cosines are multiplied by."""
        return self.log_scale.clamp(max=self.max_log_scale).exp()

    def clamp_(self) -> None:
        """Keep the learned scale within bounds, so that it can come back from them."""
        with torch.no_grad():
            self.log_scale.clamp_(max=self.max_log_scale)


class InfoNCELoss(_ScaledLoss):
    """The symmetric contrastive loss of CLIP, with several positives a row.

    A picture and a caption that belong together are positives wherever they meet in a batch,
    never negatives: the target of a row is the same weight on each of its positives. With
    distinct pictures and captions it is CLIP's loss.

    Parameters
    ----------
    logit_scale : float, default=1 / 0.07
        Factor of the cosines at the start.
    max_logit_scale : float, default=100.0
        Bound on it.
    learn_scale : bool, default=True
        Whether it is trained.

    References
    ----------
    .. [1] A. van den Oord, Y. Li and O. Vinyals, "Representation Learning with Contrastive
       Predictive Coding", 2018.
    .. [2] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021.
    .. [3] J. Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", CVPR 2022.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.losses import InfoNCELoss
    >>> embeddings = torch.eye(4)
    >>> round(InfoNCELoss(logit_scale=1.0)(embeddings, embeddings).item(), 4)
    0.7437
    """

    def __init__(
        self,
        logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__(logit_scale, max_logit_scale, learn_scale)

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
        positive : torch.Tensor of shape (n_pairs, n_pairs) or None
            True where picture i and caption j belong together, the diagonal included. None says
            that only the diagonal does.

        Returns
        -------
        loss : torch.Tensor
            A scalar.
        """
        logits = self.logit_scale * image @ text.T
        if positive is None:
            target = target_of_text = torch.arange(len(image), device=image.device)
        else:
            target = positive / positive.sum(dim=1, keepdim=True)
            target_of_text = positive.T / positive.sum(dim=0)[:, None]
        by_image = nn.functional.cross_entropy(logits, target)
        by_text = nn.functional.cross_entropy(logits.T, target_of_text)
        return (by_image + by_text) / 2


class SigmoidLoss(_ScaledLoss):
    """The pairwise sigmoid loss of SigLIP: each picture with each caption is a yes or a no.

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
    ) -> None:
        super().__init__(logit_scale, max_logit_scale, learn_scale)
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
        """Return the loss summed over captions, averaged over pictures; see `InfoNCELoss`."""
        if self.bias.isnan():
            with torch.no_grad():
                self.bias.fill_(-math.log(max(len(image), 2)))
        logits = self.logit_scale * image @ text.T + self.bias
        if positive is None:
            positive = torch.eye(len(image), dtype=torch.bool, device=image.device)
        sign = torch.where(positive, 1.0, -1.0)
        return -nn.functional.logsigmoid(sign * logits).sum() / len(image)
