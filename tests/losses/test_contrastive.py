"""InfoNCE and sigmoid losses compared with open_clip and formulas; tiled computation; errors."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from sklearn_ape.losses import InfoNCELoss, SigmoidLoss

both_losses = pytest.mark.parametrize("loss_class", [InfoNCELoss, SigmoidLoss])


class TestInfoNCE:
    def test_loss_of_distinct_pairs_equals_open_clip(self, embeddings):
        image, text = embeddings
        for positive in (None, torch.eye(12, dtype=torch.bool)):
            ours = InfoNCELoss(logit_scale=9.0)(image, text, positive)
            torch.testing.assert_close(ours, ClipLoss()(image, text, torch.tensor(9.0)))

    def test_shared_caption_is_a_positive(self):
        """For two images of one caption, the targets are one half for each of the two."""
        image, text = torch.eye(3), torch.eye(3)
        text[1] = text[0]
        logits = image @ text.T
        expected = 0.0
        target = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
        for scores in (logits, logits.T):
            expected -= (target * scores.log_softmax(dim=1)).sum(dim=1).mean() / 2
        loss = InfoNCELoss(logit_scale=1.0)(image, text, target > 0)
        torch.testing.assert_close(loss, expected)

    def test_asymmetric_positives_have_targets_per_direction(self, embeddings):
        """Image 0 may match caption 1 while image 1 does not match caption 0."""
        image, text = embeddings
        positive = torch.eye(12, dtype=torch.bool)
        positive[0, 1] = True
        logits = image @ text.T
        expected = 0.0
        for scores, target in ((logits, positive.float()), (logits.T, positive.T.float())):
            target = target / target.sum(dim=1, keepdim=True)
            expected -= (target * scores.log_softmax(dim=1)).sum(dim=1).mean() / 2
        loss = InfoNCELoss(logit_scale=1.0)(image, text, positive)
        torch.testing.assert_close(loss, expected)

    def test_pairs_of_rows_and_matrix_are_bitwise_identical(self, embeddings, positive):
        pairs = positive.nonzero().flip(0)
        repeated = torch.cat([pairs, pairs[:4]])
        loss = InfoNCELoss()
        assert loss(*embeddings, repeated) == loss(*embeddings, positive)

    @pytest.mark.sampled(6)
    @pytest.mark.parametrize("tile_size", [None, 64, 1024])
    @pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
    def test_large_batches_in_float16_are_accurate(self, kind, tile_size):
        """The sum of the losses of all rows is larger than the largest number of float16."""
        rng = torch.Generator().manual_seed(0)
        image, text = torch.randn(2, 3000, 8, generator=rng)
        image, text = (torch.nn.functional.normalize(side) for side in (image, text))
        loss = kind(logit_scale=50.0, tile_size=tile_size)
        expected = loss(image, text)
        assert len(image) * expected > torch.finfo(torch.float16).max
        actual = loss(image.half(), text.half())
        assert actual.dtype == (torch.float16 if kind is InfoNCELoss else torch.float32)
        torch.testing.assert_close(actual.float(), expected, rtol=5e-3, atol=0)
        parameters = list(loss.parameters())
        for gradient, expected_gradient in zip(
            torch.autograd.grad(actual, parameters),
            torch.autograd.grad(expected, parameters),
            strict=True,
        ):
            torch.testing.assert_close(gradient, expected_gradient, rtol=5e-3, atol=0)


class TestScale:
    @both_losses
    def test_scale_has_a_gradient_unless_fixed(self, embeddings, loss_class):
        learned, fixed = loss_class(), loss_class(learn_logit_scale=False)
        learned(*embeddings).backward()
        assert learned.log_scale.grad.abs() > 0
        assert list(fixed.parameters()) == []

    @pytest.mark.parametrize("tile_size", [None, 5])
    def test_clamped_scale_has_a_gradient(self, embeddings, tile_size):
        loss = InfoNCELoss(logit_scale=50.0, max_logit_scale=100.0, tile_size=tile_size)
        loss.log_scale.data.fill_(math.log(1e6))
        assert loss.logit_scale.item() == pytest.approx(100.0)
        loss.clamp_()
        loss(*embeddings).backward()
        assert loss.log_scale.item() == pytest.approx(math.log(100.0))
        assert loss.log_scale.grad.abs() > 0


class TestSigmoid:
    def test_loss_of_distinct_pairs_equals_open_clip(self, embeddings):
        image, text = embeddings
        theirs = SigLipLoss()(image, text, torch.tensor(7.0), torch.tensor(-3.0))
        for positive in (None, torch.eye(12, dtype=torch.bool)):
            ours = SigmoidLoss(logit_scale=7.0, bias=-3.0)(image, text, positive)
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("tile_size", [None, 1, 2])
    def test_shared_captions_are_positives(self, tile_size):
        """Image 0 has both captions, so three of the four logits are positive examples."""
        positive = torch.tensor([[True, True], [False, True]])

        def cost(logit):
            return math.log1p(math.exp(-logit))

        expected = (cost(2 - 1) + cost(0 - 1) + cost(-(0 - 1)) + cost(2 - 1)) / 2
        loss = SigmoidLoss(logit_scale=2.0, bias=-1.0, tile_size=tile_size)
        for positives in (positive, positive.nonzero()):
            assert loss(torch.eye(2), torch.eye(2), positives).item() == pytest.approx(expected)

    @pytest.mark.parametrize("tile_size", [None, 5])
    def test_bias_is_initialized_by_the_first_batch(self, embeddings, tile_size):
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
    return [value.detach(), image.grad, text.grad, *(p.grad for p in loss.parameters())]


class TestTiles:
    """Tiled loss and gradients: a wrong gradient would train worse without an error."""

    @both_losses
    @pytest.mark.parametrize("tile_size", [1, 5, 6, 12, 100])
    @pytest.mark.parametrize("kind", ["none", "matrix", "pairs"])
    def test_tiled_loss_equals_dense(self, embeddings, positive, loss_class, tile_size, kind):
        positive = {"none": None, "matrix": positive, "pairs": positive.nonzero().flip(0)}[kind]
        tiled = loss_and_gradients(loss_class(tile_size=tile_size), embeddings, positive)
        dense = loss_and_gradients(loss_class(tile_size=None), embeddings, positive)
        for actual, expected in zip(tiled, dense, strict=True):
            assert relative_error(actual, expected) < 1e-5

    def test_tiled_loss_near_zero_is_accurate(self):
        """The positive dominates the denominators; the reference is computed in float64."""
        rng = torch.Generator().manual_seed(1)
        image = torch.nn.functional.normalize(torch.randn(64, 32, generator=rng), dim=1)
        noisy = image + 0.05 * torch.randn(64, 32, generator=rng)
        pairs = image, torch.nn.functional.normalize(noisy, dim=1)
        tiled = loss_and_gradients(InfoNCELoss(logit_scale=20.0, tile_size=24), pairs, None)
        reference = InfoNCELoss(logit_scale=20.0, tile_size=None).double()
        exact = loss_and_gradients(reference, [side.double() for side in pairs], None)
        assert exact[0] < 1e-4
        for actual, expected in zip(tiled, exact, strict=True):
            assert relative_error(actual, expected) < 2e-3

    @both_losses
    def test_gradient_of_the_scale_does_not_overflow_in_float16(self, embeddings, loss_class):
        """Embeddings of norm 150 have products whose sum is beyond the range of float16."""
        image, text = (150 * side for side in embeddings)
        gradients = []
        for dtype in (torch.float16, torch.float32):
            loss = loss_class(logit_scale=1e-4, tile_size=5)
            loss(image.to(dtype), text.to(dtype)).backward()
            gradients.append(loss.log_scale.grad)
        torch.testing.assert_close(*gradients, rtol=5e-3, atol=0)

    def test_rows_with_small_logits_do_not_underflow(self):
        """Logits are shifted by the maximum of their row; that of all rows gives exp(-200) = 0."""
        image = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
        text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        for tile_size in (1, 3):
            tiled = loss_and_gradients(
                InfoNCELoss(logit_scale=100.0, tile_size=tile_size), (image, text), None
            )
            dense = loss_and_gradients(
                InfoNCELoss(logit_scale=100.0, tile_size=None), (image, text), None
            )
            assert torch.isfinite(tiled[0])
            for actual, expected in zip(tiled, dense, strict=True):
                torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize(
        ("loss_class", "options"), [(InfoNCELoss, {}), (SigmoidLoss, {"bias": -2.0})]
    )
    def test_gradients_equal_finite_differences(self, embeddings, positive, loss_class, options):
        image, text = (side.double().requires_grad_() for side in embeddings)
        loss = loss_class(logit_scale=5.0, tile_size=5, **options).double()
        parameters = dict(loss.named_parameters())

        def value(image, text, *values):
            return torch.func.functional_call(
                loss, dict(zip(parameters, values, strict=True)), (image, text, positive.nonzero())
            )

        assert torch.autograd.gradcheck(value, (image, text, *parameters.values()))

    @both_losses
    def test_second_gradient_of_tiled_loss_raises(self, embeddings, loss_class):
        """The gradient would be treated as a constant, so a penalty on it would have no effect."""
        image, text = (side.requires_grad_() for side in embeddings)
        value = loss_class(tile_size=5)(image, text)
        with pytest.raises(RuntimeError, match="Use tile_size=None"):
            torch.autograd.grad(value, image, create_graph=True)

    def test_autograd_saves_no_square_matrix(self):
        """The tensors saved for the backward pass grow linearly with the number of pairs."""
        n_pairs, saved = 2048, []
        rng = torch.Generator().manual_seed(0)
        image, text = (torch.randn(n_pairs, 4, generator=rng).requires_grad_() for _ in "ab")
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            InfoNCELoss(tile_size=256)(image, text)
        assert sum(saved) < 20 * n_pairs

    def test_no_grad_does_not_change_the_loss(self, embeddings, positive):
        loss = SigmoidLoss(tile_size=5)
        with torch.no_grad():
            without = loss(*embeddings, positive)
        assert without == loss(*embeddings, positive)


class TestInvalidInput:
    @pytest.mark.parametrize("name", ["logit_scale", "max_logit_scale"])
    def test_scale_of_zero_raises(self, name):
        """The scale is learned as a logarithm."""
        for loss_class in (InfoNCELoss, SigmoidLoss):
            with pytest.raises(ValueError, match=rf"^{name} must be a number in \(0, inf\)"):
                loss_class(**{name: 0})

    def test_infinite_bound_of_the_scale_is_no_bound(self, embeddings):
        loss = InfoNCELoss(logit_scale=9.0, max_logit_scale=math.inf)
        assert loss(*embeddings) == InfoNCELoss(logit_scale=9.0)(*embeddings)

    @pytest.mark.parametrize("tile_size", [None, 5])
    def test_row_without_positive_raises(self, embeddings, tile_size):
        """Its target would be 0 / 0 and the loss NaN."""
        loss = InfoNCELoss(tile_size=tile_size)
        positive = torch.eye(12, dtype=torch.bool)
        positive[7, 7] = False
        positive[7, 3] = True
        with pytest.raises(ValueError, match="Caption 7 of the batch has no positive"):
            loss(*embeddings, positive)
        with pytest.raises(ValueError, match="Image 7 of the batch has no positive"):
            loss(*embeddings, positive.T.nonzero())

    @pytest.mark.parametrize("tile_size", [None, 5])
    @pytest.mark.parametrize(
        ("positive", "error", "message"),
        [
            (torch.eye(11, dtype=torch.bool), ValueError, r"shape \(12, 12\)"),
            (torch.eye(12, dtype=torch.int64), ValueError, "Pass a matrix as bool"),
            (torch.eye(12), TypeError, "not a tensor of torch.float32"),
            (torch.tensor([[0, 12]]), ValueError, "rows 0 to 12, but the batch has rows 0 to 11"),
            (torch.tensor([[0, -1]]), ValueError, "rows -1 to 0"),
        ],
    )
    def test_invalid_positives_raise(self, embeddings, tile_size, positive, error, message):
        with pytest.raises(error, match=message):
            InfoNCELoss(tile_size=tile_size)(*embeddings, positive)

    def test_different_shapes_raise(self, embeddings):
        with pytest.raises(ValueError, match=r"not \(12, 5\) and \(11, 5\)"):
            InfoNCELoss()(embeddings[0], embeddings[1][:11])
