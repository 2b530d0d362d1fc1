"""Optimizers and the course of the learning rate."""

from itertools import pairwise

import pytest
import torch

from sklearn_ape.training import OPTIMIZERS, adam, adamw, cosine_schedule


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_decay_and_vectors_do_not(name):
    """A logit scale that decays would sink towards the mean of all logits."""
    matrix, vector = (torch.nn.Parameter(torch.ones(*shape)) for shape in ((2, 2), (2,)))
    optimizer = OPTIMIZERS[name]([{"params": [matrix, vector]}], lr=0.1, weight_decay=0.5)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (matrix < 1).all()
    assert (vector == 1).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lowers_a_loss(name):
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = OPTIMIZERS[name]([{"params": [weight]}], lr=0.01, weight_decay=0.0)
    for _ in range(50):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert (weight.abs() < 0.7).all()


def test_adams_decay_is_in_the_gradient_and_adamws_is_not():
    """By its first step of 0.1 Adam cannot tell a small decay from a large one."""
    ends = {}
    for make in (adam, adamw):
        for decay in (0.01, 1.0):
            weight = torch.nn.Parameter(torch.ones(1, 1))
            optimizer = make([{"params": [weight]}], lr=0.1, weight_decay=decay)
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            ends[make, decay] = weight.item()
    assert ends[adam, 0.01] == pytest.approx(ends[adam, 1.0]) == pytest.approx(0.9)
    assert ends[adamw, 0.01] == pytest.approx(0.999)
    assert ends[adamw, 1.0] == pytest.approx(0.9)


class TestSchedule:
    def test_rises_then_falls_to_zero(self):
        factor = cosine_schedule(100).kwargs["lr_lambda"]
        factors = [factor(step) for step in range(101)]
        assert factors[0] < factors[4] == 1.0
        assert all(a >= b for a, b in pairwise(factors[5:]))
        assert factors[-1] == pytest.approx(0.0, abs=1e-3)

    @pytest.mark.parametrize(
        ("warmup", "n_steps"), [(0, 1), (0.0, 1), (1, 1), (7, 7), (0.2, 20), (1.0, 100)]
    )
    def test_warmup_is_a_fraction_or_a_number_of_steps(self, warmup, n_steps):
        factor = cosine_schedule(100, warmup).kwargs["lr_lambda"]
        rise = [factor(step) for step in range(n_steps)]
        assert rise == pytest.approx([(step + 1) / n_steps for step in range(n_steps)])
        assert factor(n_steps) == 1.0

    @pytest.mark.parametrize("bad", [-1, -0.1, 1.5, float("nan")])
    def test_bad_warmup_is_named(self, bad):
        with pytest.raises(ValueError, match=r"warmup=.* is out of range"):
            cosine_schedule(100, bad)
