"""Fit of `KernelAligner`, compared with the linear algebra alone.

The peer whitens the images, computes the kernel of the texts and solves the equations with
torch's Cholesky decomposition. It fits no logit scale, checks no input and keeps no bank.
"""

from __future__ import annotations

import numpy as np
import torch

from sklearn_ape import KernelAligner

from .._results import Comparison
from ._rounds import time_in_turns

N_PAIRS, WIDTHS = 16_384, (1280, 384)
_GAMMA, _RIDGE, _WHITENING = 8.0, 0.3, 0.03


def measure(quick: bool) -> list[Comparison]:
    """Measure the seconds of a fit with all captions as anchors."""
    image, text = make_features(2_000 if quick else N_PAIRS)
    peer = "whitening, kernel and Cholesky decomposition in torch"
    contenders = {
        peer: lambda: solve(image, text),
        'gamma="scale"': lambda: KernelAligner(gamma="scale").fit(image, text),
        "defaults, which compare two kernels": lambda: KernelAligner().fit(image, text),
    }
    seconds = time_in_turns(contenders, 1 if quick else 3)
    peer_seconds = seconds.pop(peer)
    return [
        Comparison(
            f"KernelAligner with {len(image):,} pairs, {name}",
            value,
            "s",
            peer,
            peer_seconds,
            "at most 1.2" if "scale" in name else "",
        )
        for name, value in seconds.items()
    ]


def make_features(n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of images and texts that depend on common concepts."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((n_pairs, 100))
    image, text = (
        concepts @ rng.standard_normal((100, width)) + 5 * rng.standard_normal((n_pairs, width))
        for width in WIDTHS
    )
    return image.astype(np.float32), text.astype(np.float32)


def solve(image: np.ndarray, text: np.ndarray) -> torch.Tensor:
    """Return the coefficients of a kernel ridge regression from texts to whitened images."""
    units = _normalize(image)
    centered = units - units.mean(axis=0)
    variances, directions = np.linalg.eigh((centered.T @ centered / len(centered)).astype(float))
    scales = np.sqrt(np.maximum(variances, 0) / variances[-1] + _WHITENING)
    targets = _normalize(centered @ (directions / scales).astype(np.float32))
    anchors = torch.from_numpy(_normalize(text))
    matrix = (anchors @ anchors.T).sub_(1).mul_(_GAMMA).exp_()
    matrix.diagonal().add_(_RIDGE)
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(torch.from_numpy(targets - targets.mean(axis=0)), factor)


def _normalize(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
