"""Structure loss: invariance to rotations, and comparison with its formula."""

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
def test_loss_is_zero_for_rotations_and_grows_with_noise(features, levels):
    rng = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=rng))
    padded = torch.cat([features, torch.zeros(20, 2)], dim=1)
    loss = StructureLoss(levels=levels)
    assert loss(features, 3 * padded @ rotation).item() == pytest.approx(0, abs=1e-6)
    losses = [
        loss(features, features + noise * torch.randn(20, 6, generator=rng)).item()
        for noise in (0.1, 1.0, 10.0)
    ]
    assert 1e-4 < losses[0] < losses[1] < losses[2] < math.log(2)


def test_loss_equals_formula_with_scipy(features):
    embeddings = features[:, :3]

    def transition_matrix(points):
        points = points.double().numpy()
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        points -= points.mean(axis=0)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        weights = np.exp(points @ points.T / 0.2)
        return weights / weights.sum(axis=1, keepdims=True)

    matrices = transition_matrix(features), transition_matrix(embeddings)
    expected = 0.0
    for level in (1, 2):
        powers = (np.linalg.matrix_power(matrix, level) for matrix in matrices)
        expected += np.mean(jensenshannon(*powers, axis=1) ** 2) / level / 2
    loss = StructureLoss(temperature=0.2, levels=2)
    assert loss(features.double(), embeddings.double()).item() == pytest.approx(expected)


def test_gradient_is_finite_where_probabilities_underflow(features):
    embeddings = features[:, :3].clone().requires_grad_()
    StructureLoss(temperature=1e-3)(features, embeddings).backward()
    assert torch.isfinite(embeddings.grad).all()


def test_rows_beyond_max_rows_are_ignored(features):
    embeddings = features.clone()
    embeddings[8:] = 0.5
    assert StructureLoss(max_rows=8)(features, embeddings).item() == pytest.approx(0, abs=1e-6)
    assert StructureLoss(max_rows=20)(features, embeddings).item() > 0.01
    assert StructureLoss(max_rows=2)(features, embeddings).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "parameters",
    [{"temperature": 0.0}, {"temperature": float("nan")}, {"levels": 0}, {"max_rows": 1.5}],
)
def test_invalid_parameters_raise(parameters):
    with pytest.raises(ValueError, match=f"{next(iter(parameters))} must be"):
        StructureLoss(**parameters)


def test_different_numbers_of_rows_raise(features):
    with pytest.raises(ValueError, match="different numbers of rows, 20 and 5"):
        StructureLoss()(features, features[:5])
