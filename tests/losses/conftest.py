"""Fixtures for the tests of losses: embeddings and positives."""

import pytest
import torch


def random_units(rng, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=rng), dim=-1)


@pytest.fixture
def embeddings():
    rng = torch.Generator().manual_seed(0)
    return random_units(rng, 12, 5), random_units(rng, 12, 5)


@pytest.fixture
def positive():
    """Return the diagonal, three images that share captions, and one asymmetric positive."""
    positive = torch.eye(12, dtype=torch.bool)
    positive[:3, :3] = True
    positive[4, 9] = True
    return positive
