"""Held-out pairs share nothing with the others."""

import numpy as np

from sklearn_ape.training import split_pairs


def test_no_image_or_caption_on_both_sides():
    """Captions shared by images, and images by captions, would leak the answer."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(300, size=(260, 2)), axis=0)
    split = split_pairs(pairs, 0.2, np.random.RandomState(0))
    for side in (0, 1):
        assert not set(pairs[split.train, side]) & set(pairs[split.valid, side])
    assert len(split.train) + len(split.valid) == len(pairs)


def test_few_groups_are_not_split():
    """A recall among two or three captions would stop training at the first epoch."""
    pairs = np.column_stack([np.arange(1000), np.arange(1000) % 20])
    assert split_pairs(pairs, 0.1, np.random.RandomState(0)).valid is None


def test_a_caption_of_very_many_images_stays_in_training():
    pairs = np.array([[i, 0] for i in range(1000)] + [[1000 + i, 1 + i] for i in range(300)])
    for seed in range(20):
        split = split_pairs(pairs, 0.1, np.random.RandomState(seed))
        assert len(split.valid) <= 130
