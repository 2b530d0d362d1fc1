"""Rows whose squares are numbers of float32, whatever the scale of the rows."""

from __future__ import annotations

import torch
from torch import nn

# Squares of numbers between these, and their sums, are numbers of float32.
_LEAST, _MOST = 1e-12, 1e12


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Scale rows to length 1; a row of zeros stays.

    torch's own `normalize` takes rows shorter than 1e-12 for zeros, and those whose squares
    leave float32 become zeros. Ordinary rows are scaled by it to the same bits.

    Parameters
    ----------
    rows : torch.Tensor of shape (..., n)
        Features or embeddings.

    Returns
    -------
    rows : torch.Tensor of the same shape
        Of length 1.
    """
    return nn.functional.normalize(ordinary(rows), dim=-1)


def ordinary(rows: torch.Tensor, least: float = _LEAST, most: float = _MOST) -> torch.Tensor:
    """Divide rows of tiny or huge numbers by a power of two, which rounds nothing.

    Parameters
    ----------
    rows : torch.Tensor of shape (..., n)
        Features or embeddings.
    least, most : float
        A row whose largest number lies between them stays as it is.

    Returns
    -------
    rows : torch.Tensor of the same shape
        Those that were divided have a largest number from 1 to 2.
    """
    largest = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=-1, keepdim=True)
    stays = (largest == 0) | ((largest > least) & (largest < most))
    if not torch.compiler.is_compiling() and bool(stays.all()):  # an export is for all rows
        return rows
    return rows / torch.where(stays, 1.0, torch.exp2(torch.floor(torch.log2(largest))))
