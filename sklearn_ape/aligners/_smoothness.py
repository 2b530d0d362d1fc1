"""Choice of the kernel's width and ridge on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..heads import TwoTower
from ..training.callbacks import mean_recall
from ..training.data import PairDataset, split_pairs, subset
from ._serialization import make_embedders

# Two kernels are compared on a sample of the pairs. With fewer pairs than the minimum, a
# difference of their recalls is mostly chance.
_MIN_PAIRS, _MAX_PAIRS = 5000, 10_000
_VALIDATION_FRACTION = 0.2

# The wide kernel has a quarter of gamma and twice the ridge. It is better if captions are inexact,
# such as the names of icons: with 16,000 of them, recall on other sets was 18.5 % instead of
# 17.2 %. With exact captions it is worse for broad class names: trained on the emoji of Noto, the
# mean accuracy on five other sets of classes was 17.7 % instead of 20.2 %. So it must gain 2 % of
# the recall of held-out pairs.
_GAMMA_DIVISOR, _RIDGE_FACTOR = 4, 2
_MIN_RELATIVE_GAIN = 0.02


class Smoothness(NamedTuple):
    """Parameters of a kernel ridge regression, as in `KernelAligner`."""

    gamma: float | str
    ridge: float


def choose_smoothness(
    data: PairDataset,
    ridge: float,
    seed: int,
    solve: Callable[[PairDataset, Smoothness], TwoTower],
) -> Smoothness:
    """Return the parameters of the better of two kernels on held-out pairs.

    The first kernel has the `ridge` and the gamma "scale". It is chosen if there are fewer than
    5,000 pairs. The kernels are compared on a random sample of at most 10,000 pairs. `solve` is a
    function of training pairs and parameters that returns a closed-form solution.
    """
    narrow = Smoothness("scale", ridge)
    rows = np.flatnonzero(data.pairs[:, 0] < data.n_images)  # pairs of images, not of prototypes
    if len(rows) < _MIN_PAIRS:
        return narrow
    rng = np.random.RandomState(seed)
    sample = subset(data, np.sort(rng.permutation(rows)[:_MAX_PAIRS]))
    split = split_pairs(sample.pairs, _VALIDATION_FRACTION, rng)
    if split.valid is None:
        return narrow
    train, valid = subset(sample, split.train), subset(sample, split.valid).expand_items()

    def measure(smoothness: Smoothness) -> tuple[float, float]:
        module = solve(train, smoothness)
        embed_image, embed_text = make_embedders(module)
        recall = mean_recall(embed_image(valid.image), embed_text(valid.text), valid.pairs)
        return recall, float(module.text_head.base.gamma)

    recall, gamma = measure(narrow)
    wide = Smoothness(gamma / _GAMMA_DIVISOR, ridge * _RIDGE_FACTOR)
    wide_recall, _ = measure(wide)
    return wide if wide_recall > (1 + _MIN_RELATIVE_GAIN) * recall else narrow
