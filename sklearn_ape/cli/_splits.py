"""Holding pairs out to measure with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils import check_random_state

from ..training import split_pairs

__all__ = ["held_out_rows"]

_FEWEST = 10


def held_out_rows(
    features: np.ndarray,
    captions: Sequence[Any],
    test_size: float,
    random_state: int,
    classes: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return rows to train on and rows to test on, or None where there are too few.

    No image and no caption stands on both sides; with classes, every class does, and no image.
    """
    if not test_size:
        return None
    images = np.unique(features, axis=0, return_inverse=True)[1].ravel()
    if classes is not None:
        return _stratified(images, np.asarray(classes), test_size, random_state)
    of_rows = [[text] if isinstance(text, str) else list(text) for text in captions]
    numbers: dict[str, int] = {}
    pairs = np.array(
        [
            (row, images[row], numbers.setdefault(text, len(numbers)))
            for row, texts in enumerate(of_rows)
            for text in texts
        ]
    )
    split = split_pairs(pairs[:, 1:], test_size, check_random_state(random_state))
    if split.valid is None:
        return None
    return np.unique(pairs[split.train, 0]), np.unique(pairs[split.valid, 0])


def _stratified(
    images: np.ndarray, classes: np.ndarray, test_size: float, random_state: int
) -> tuple[np.ndarray, np.ndarray] | None:
    first = np.unique(images, return_index=True)[1]  # equal images go together
    counts = np.unique(classes[first], return_counts=True)[1]
    n_test = round(test_size * len(first))
    if counts.min() < 2 or min(n_test, len(first) - n_test) < max(_FEWEST, len(counts)):
        return None
    splitter = StratifiedShuffleSplit(1, test_size=n_test, random_state=random_state)
    train, test = next(splitter.split(first, classes[first]))
    return (
        np.flatnonzero(np.isin(images, images[first[train]])),
        np.flatnonzero(np.isin(images, images[first[test]])),
    )
