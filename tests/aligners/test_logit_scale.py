"""The logit scale of closed-form aligners: the minimum of InfoNCE, on pairs not fitted on."""

import numpy as np
import pytest
import torch

from sklearn_ape.aligners._closed_form import fit_logit_scale, held_out_logit_scale
from sklearn_ape.losses import InfoNCELoss
from sklearn_ape.training.data import PairDataset


def unit(rng, n, noise=0.0, near=None):
    rows = rng.standard_normal((n, 8)) * (noise if near is not None else 1)
    rows = rows if near is None else rows + near
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def loss_at(scale, image, text, pairs):
    positive = np.zeros((len(image), len(text)), dtype=bool)
    positive[tuple(pairs.T)] = True
    positive = torch.from_numpy(positive[pairs[:, 0]][:, pairs[:, 1]])
    sides = torch.from_numpy(image[pairs[:, 0]]), torch.from_numpy(text[pairs[:, 1]])
    return InfoNCELoss(logit_scale=scale)(*sides, positive).item()


@pytest.mark.parametrize("shared", [False, True])
def test_is_the_minimum_of_the_loss_that_others_train_on(shared):
    """Also where images share captions: these are positives, never negatives."""
    rng = np.random.default_rng(0)
    image = unit(rng, 200)
    text = unit(rng, 200, 0.3, image)
    pairs = np.column_stack([np.arange(200)] * 2)
    if shared:
        pairs = np.vstack([pairs, np.column_stack([np.arange(50), np.arange(1, 51)])])
    best = fit_logit_scale(image, text, pairs)
    assert 2 < best < 50
    at_best = loss_at(best, image, text, pairs)
    for factor in (0.8, 0.95, 1.05, 1.25):
        assert loss_at(best * factor, image, text, pairs) > at_best


def test_bounds():
    """Perfect pairs would have it grow for ever, pairs that are none fall to zero."""
    rng = np.random.default_rng(0)
    image, pairs = np.eye(8, dtype=np.float32), np.column_stack([np.arange(8)] * 2)
    assert 30 < fit_logit_scale(image, image, pairs, max_scale=50) <= 50  # flat near the bound
    assert fit_logit_scale(image, -image, pairs) == pytest.approx(1, rel=1e-3)
    zero = np.zeros((8, 3), dtype=np.float32)
    assert 1 <= fit_logit_scale(zero, zero, pairs) <= 100
    many = unit(rng, 5000)
    scale = fit_logit_scale(many, many, np.column_stack([np.arange(5000)] * 2))
    assert scale == fit_logit_scale(many, many, np.column_stack([np.arange(5000)] * 2))


def test_pairs_held_out_are_images_that_the_fit_does_not_see():
    """Prototypes of classes stay in training, and with few pairs all pairs serve twice."""
    rng = np.random.default_rng(0)
    image = unit(rng, 200)
    text = unit(rng, 200, 0.3, image)
    data = PairDataset(image, text, np.column_stack([np.arange(200)] * 2), n_prototypes=100)
    asked = []

    def fit(some):
        seen = {row.tobytes() for row in data.image[some.pairs[:, 0]]}

        def embed(features):
            asked.append((features, seen))
            return features

        return embed, embed

    assert 2 < held_out_logit_scale(data, fit) < 50
    images, seen = asked[0]
    of_images = {row.tobytes() for row in data.image[:100]}
    assert all(row.tobytes() in of_images - seen for row in images)
    few = PairDataset(image[:10], text[:10], data.pairs[:10])
    asked.clear()
    held_out_logit_scale(few, fit)
    assert len(asked[0][0]) == 10
