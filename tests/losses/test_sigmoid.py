"""Sigmoid loss compared with open_clip and a formula; bias; tiled computation."""

import math

import pytest
import torch
from open_clip.loss import SigLipLoss

from sklearn_ape.losses import SigmoidLoss


def test_loss_of_distinct_pairs_equals_open_clip(embeddings):
    image, text = embeddings
    theirs = SigLipLoss()(image, text, torch.tensor(7.0), torch.tensor(-3.0))
    for positive in (None, torch.eye(12, dtype=torch.bool)):
        ours = SigmoidLoss(logit_scale=7.0, bias=-3.0)(image, text, positive)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tile_size", [None, 1, 2])
def test_shared_captions_are_positives(tile_size):
    """Image 0 has both captions, so three of the four logits are positive examples."""
    positive = torch.tensor([[True, True], [False, True]])

    def cost(logit):
        return math.log1p(math.exp(-logit))

    expected = (cost(2 - 1) + cost(0 - 1) + cost(-(0 - 1)) + cost(2 - 1)) / 2
    loss = SigmoidLoss(logit_scale=2.0, bias=-1.0, tile_size=tile_size)
    for positives in (positive, positive.nonzero()):
        assert loss(torch.eye(2), torch.eye(2), positives).item() == pytest.approx(expected)


@pytest.mark.parametrize("tile_size", [None, 5])
def test_bias_is_initialized_by_the_first_batch(embeddings, tile_size):
    loss = SigmoidLoss(tile_size=tile_size)
    loss(*embeddings)
    assert loss.bias.item() == pytest.approx(-math.log(12))
    loss(embeddings[0][:3], embeddings[1][:3])
    assert loss.bias.item() == pytest.approx(-math.log(12))
    small = SigmoidLoss(tile_size=tile_size)
    small(embeddings[0][:2], embeddings[1][:2])
    assert small.bias.item() == pytest.approx(-math.log(2))


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def loss_and_gradients(loss, embeddings, positive):
    image, text = (side.clone().requires_grad_() for side in embeddings)
    value = loss(image, text, positive)
    (3 * value).backward()  # an incoming gradient other than 1
    return [value.detach(), image.grad, text.grad, loss.log_scale.grad, loss.bias.grad]


class TestTiles:
    """Tiled loss and gradients: a wrong gradient would train worse without an error."""

    @pytest.mark.parametrize("tile_size", [1, 5, 6, 12, 100])
    @pytest.mark.parametrize("kind", ["none", "matrix", "pairs"])
    def test_tiled_loss_and_gradients_equal_dense(self, embeddings, positive, tile_size, kind):
        positive = {"none": None, "matrix": positive, "pairs": positive.nonzero().flip(0)}[kind]
        tiled = loss_and_gradients(SigmoidLoss(tile_size=tile_size), embeddings, positive)
        dense = loss_and_gradients(SigmoidLoss(tile_size=None), embeddings, positive)
        for actual, expected in zip(tiled, dense, strict=True):
            assert relative_error(actual, expected) < 1e-5

    def test_gradients_equal_finite_differences(self, embeddings, positive):
        image, text = (side.double().requires_grad_() for side in embeddings)
        loss = SigmoidLoss(logit_scale=5.0, bias=-2.0, tile_size=5).double()

        def value(image, text, log_scale, bias):
            return torch.func.functional_call(
                loss, {"log_scale": log_scale, "bias": bias}, (image, text, positive.nonzero())
            )

        assert torch.autograd.gradcheck(value, (image, text, loss.log_scale, loss.bias))

    def test_no_grad_does_not_change_the_loss(self, embeddings, positive):
        loss = SigmoidLoss(tile_size=5)
        with torch.no_grad():
            without = loss(*embeddings, positive)
        assert without == loss(*embeddings, positive)

    def test_second_gradient_of_tiled_loss_raises(self, embeddings):
        """The gradient would be treated as a constant, so a penalty on it would have no effect."""
        image, text = (side.requires_grad_() for side in embeddings)
        value = SigmoidLoss(tile_size=5)(image, text)
        with pytest.raises(RuntimeError, match="Use tile_size=None"):
            torch.autograd.grad(value, image, create_graph=True)
