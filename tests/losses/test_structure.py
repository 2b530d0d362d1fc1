"""The regulariser: nothing to pay for a geometry that is kept, and the formula by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from sklearn_ape.losses import StructureLoss


@pytest.fixture
def features():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(20, 6, generator=rng)


@pytest.mark.parametrize("levels", [1, 3])
def test_a_rotation_costs_nothing_and_noise_does(features, levels):
    rng = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=rng))
    wider = torch.cat([features, torch.zeros(20, 2)], dim=1)
    loss = StructureLoss(levels=levels)
    assert loss(features, 3 * wider @ rotation).item() == pytest.approx(0, abs=1e-6)
    costs = [
        loss(features, features + noise * torch.randn(20, 6, generator=rng)).item()
        for noise in (0.1, 1.0, 10.0)
    ]
    assert 1e-4 < costs[0] < costs[1] < costs[2] < math.log(2)


def test_is_the_formula_by_scipys_divergence(features):
    embeddings = features[:, :3]

    def walk(points):
        points = points.double().numpy()
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        points -= points.mean(axis=0)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        steps = np.exp(points @ points.T / 0.2)
        return steps / steps.sum(axis=1, keepdims=True)

    one, other = walk(features), walk(embeddings)
    expected = 0.0
    for level in (1, 2):
        powers = (np.linalg.matrix_power(steps, level) for steps in (one, other))
        expected += np.mean(jensenshannon(*powers, axis=1) ** 2) / level / 2
    loss = StructureLoss(temperature=0.2, levels=2)
    assert loss(features.double(), embeddings.double()).item() == pytest.approx(expected)


def test_gradient_is_finite_where_probabilities_underflow(features):
    embeddings = features[:, :3].clone().requires_grad_()
    StructureLoss(temperature=1e-3)(features, embeddings).backward()
    assert torch.isfinite(embeddings.grad).all()


def test_rows_beyond_the_bound_are_left_out(features):
    embeddings = features.clone()
    embeddings[8:] = 0.5
    assert StructureLoss(max_rows=8)(features, embeddings).item() == pytest.approx(0, abs=1e-6)
    assert StructureLoss(max_rows=20)(features, embeddings).item() > 0.01
    assert StructureLoss(max_rows=2)(features, embeddings).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"levels": 0}, {"max_rows": 1.5}]
)
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        StructureLoss(**bad)


def test_sides_of_different_lengths_are_refused(features):
    with pytest.raises(ValueError, match="different numbers of rows, 20 and 5"):
        StructureLoss()(features, features[:5])
