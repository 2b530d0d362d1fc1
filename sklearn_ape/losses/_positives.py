"""Which images and captions of a batch belong together, as a matrix or as pairs of rows."""

from __future__ import annotations

import torch


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
