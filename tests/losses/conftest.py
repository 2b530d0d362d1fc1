"""Embeddings and positives that the tests of all losses use."""

import pytest
import torch


def unit(rng, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=rng), dim=-1)


@pytest.fixture
def embeddings():
    rng = torch.Generator().manual_seed(0)
    return unit(rng, 12, 5), unit(rng, 12, 5)


@pytest.fixture
def positive():
    """The diagonal, a caption of three images, an image of two captions, one way only."""
    positive = torch.eye(12, dtype=torch.bool)
    positive[:3, :3] = True
    positive[4, 9] = True
    return positive
