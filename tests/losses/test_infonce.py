"""InfoNCE against open_clip's, against hand-computed values, and tiled against dense."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss

from sklearn_ape.losses import InfoNCELoss


class TestDense:
    def test_is_clips_loss_on_distinct_pairs(self, embeddings):
        image, text = embeddings
        for positive in (None, torch.eye(12, dtype=torch.bool)):
            ours = InfoNCELoss(logit_scale=9.0)(image, text, positive)
            torch.testing.assert_close(ours, ClipLoss()(image, text, torch.tensor(9.0)))

    def test_shared_caption_is_a_positive(self):
        """Two images of one caption: each row's target is a half on each of the two."""
        image, text = torch.eye(3), torch.eye(3)
        text[1] = text[0]
        logits = image @ text.T
        expected = 0.0
        target = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
        for scores in (logits, logits.T):
            expected -= (target * scores.log_softmax(dim=1)).sum(dim=1).mean() / 2
        ours = InfoNCELoss(logit_scale=1.0)(image, text, target > 0)
        torch.testing.assert_close(ours, expected)

    def test_each_direction_has_its_own_targets(self, embeddings):
        """Positives need not be symmetric: image 0 may have caption 1 without the reverse."""
        image, text = embeddings
        positive = torch.eye(12, dtype=torch.bool)
        positive[0, 1] = True
        logits = image @ text.T
        expected = 0.0
        for scores, target in ((logits, positive.float()), (logits.T, positive.T.float())):
            target = target / target.sum(dim=1, keepdim=True)
            expected -= (target * scores.log_softmax(dim=1)).sum(dim=1).mean() / 2
        ours = InfoNCELoss(logit_scale=1.0)(image, text, positive)
        torch.testing.assert_close(ours, expected)

    def test_pairs_of_rows_are_the_matrix_to_the_bit(self, embeddings, positive):
        pairs = positive.nonzero().flip(0)
        repeated = torch.cat([pairs, pairs[:4]])
        ours = InfoNCELoss()
        assert ours(*embeddings, repeated) == ours(*embeddings, positive)

    def test_small_batches_are_dense_by_default(self, embeddings, positive):
        dense = InfoNCELoss(tile_size=None)(*embeddings, positive)
        assert InfoNCELoss()(*embeddings, positive) == dense


class TestScale:
    def test_gradient_reaches_the_scale_unless_it_is_fixed(self, embeddings):
        learned, fixed = InfoNCELoss(), InfoNCELoss(learn_scale=False)
        learned(*embeddings).backward()
        assert learned.log_scale.grad.abs() > 0
        assert list(fixed.parameters()) == []

    @pytest.mark.parametrize("tile_size", [None, 5])
    def test_scale_is_clamped_and_can_come_back(self, embeddings, tile_size):
        loss = InfoNCELoss(logit_scale=50.0, max_logit_scale=100.0, tile_size=tile_size)
        loss.log_scale.data.fill_(math.log(1e6))
        assert loss.logit_scale.item() == pytest.approx(100.0)
        loss.clamp_()
        loss(*embeddings).backward()
        assert loss.log_scale.item() == pytest.approx(math.log(100.0))
        assert loss.log_scale.grad.abs() > 0


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def loss_and_gradients(loss, embeddings, positive):
    image, text = (side.clone().requires_grad_() for side in embeddings)
    value = loss(image, text, positive)
    (3 * value).backward()  # a gradient that comes in other than 1
    return [value.detach(), image.grad, text.grad, loss.log_scale.grad]


class TestTiles:
    """The same numbers as at once: a wrong gradient would train worse and say nothing."""

    @pytest.mark.parametrize("tile_size", [1, 5, 6, 12, 100])
    @pytest.mark.parametrize("kind", ["none", "matrix", "pairs"])
    def test_equal_the_dense_loss_and_gradients(self, embeddings, positive, tile_size, kind):
        positive = {"none": None, "matrix": positive, "pairs": positive.nonzero().flip(0)}[kind]
        tiled = loss_and_gradients(InfoNCELoss(tile_size=tile_size), embeddings, positive)
        dense = loss_and_gradients(InfoNCELoss(tile_size=None), embeddings, positive)
        for ours, theirs in zip(tiled, dense, strict=True):
            assert relative_error(ours, theirs) < 1e-5

    def test_a_loss_near_zero_is_as_exact_as_the_dense_one(self):
        """There the denominators hold next to nothing but the positive; 64 bits say the truth."""
        rng = torch.Generator().manual_seed(1)
        image = torch.nn.functional.normalize(torch.randn(64, 32, generator=rng), dim=1)
        noisy = image + 0.05 * torch.randn(64, 32, generator=rng)
        pairs = image, torch.nn.functional.normalize(noisy, dim=1)
        tiled = loss_and_gradients(InfoNCELoss(logit_scale=20.0, tile_size=24), pairs, None)
        exact = InfoNCELoss(logit_scale=20.0, tile_size=None).double()
        truth = loss_and_gradients(exact, [side.double() for side in pairs], None)
        assert truth[0] < 1e-4
        for ours, theirs in zip(tiled, truth, strict=True):
            assert relative_error(ours, theirs) < 2e-3

    def test_a_row_far_below_the_others_is_not_lost(self):
        """Every row has a maximum of its own: under that of all rows it would be exp(-200) = 0."""
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
            for ours, theirs in zip(tiled, dense, strict=True):
                torch.testing.assert_close(ours, theirs)

    def test_gradients_are_those_of_finite_differences(self, embeddings, positive):
        image, text = (side.double().requires_grad_() for side in embeddings)
        loss = InfoNCELoss(logit_scale=5.0, tile_size=5).double()

        def value(image, text, log_scale):
            return torch.func.functional_call(
                loss, {"log_scale": log_scale}, (image, text, positive.nonzero())
            )

        assert torch.autograd.gradcheck(value, (image, text, loss.log_scale))

    def test_second_gradients_are_refused(self, embeddings):
        """The gradient would be taken for a constant, and a penalty on it would do nothing."""
        image, text = (side.requires_grad_() for side in embeddings)
        value = InfoNCELoss(tile_size=5)(image, text)
        with pytest.raises(RuntimeError, match="Use tile_size=None"):
            torch.autograd.grad(value, image, create_graph=True)

    def test_no_square_matrix_is_made(self):
        """All that autograd keeps grows with the pairs, not with their square."""
        n_pairs, saved = 2048, []
        rng = torch.Generator().manual_seed(0)
        image, text = (torch.randn(n_pairs, 4, generator=rng).requires_grad_() for _ in "ab")
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            InfoNCELoss(tile_size=256)(image, text)
        assert sum(saved) < 20 * n_pairs


class TestBadInput:
    @pytest.mark.parametrize("tile_size", [0, -1, 2.5, "all"])
    def test_tile_size(self, tile_size):
        with pytest.raises(ValueError, match="tile_size must be None, 'auto' or an integer"):
            InfoNCELoss(tile_size=tile_size)

    @pytest.mark.parametrize("tile_size", [None, 5])
    def test_a_row_without_positive_is_named(self, embeddings, tile_size):
        """Its target would be 0 / 0, and the loss NaN."""
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
    def test_positives(self, embeddings, tile_size, positive, error, message):
        with pytest.raises(error, match=message):
            InfoNCELoss(tile_size=tile_size)(*embeddings, positive)

    def test_sides_of_different_shapes(self, embeddings):
        with pytest.raises(ValueError, match=r"not \(12, 5\) and \(11, 5\)"):
            InfoNCELoss()(embeddings[0], embeddings[1][:11])
