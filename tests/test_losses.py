"""The losses against open_clip's and against hand-computed values."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from sklearn_ape.losses import InfoNCELoss, SigmoidLoss


def unit(rng, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=rng), dim=-1)


@pytest.fixture
def embeddings():
    rng = torch.Generator().manual_seed(0)
    return unit(rng, 12, 5), unit(rng, 12, 5)


class TestInfoNCELoss:
    def test_is_clips_loss_on_distinct_pairs(self, embeddings):
        image, text = embeddings
        for positive in (None, torch.eye(12, dtype=torch.bool)):
            ours = InfoNCELoss(logit_scale=9.0)(image, text, positive)
            torch.testing.assert_close(ours, ClipLoss()(image, text, torch.tensor(9.0)))

    def test_shared_caption_is_a_positive(self):
        """Two pictures of one caption: each row's target is a half on each of the two."""
        image, text = torch.eye(3), torch.eye(3)
        text[1] = text[0]
        logits = image @ text.T
        expected = 0.0
        target = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
        for scores in (logits, logits.T):
            expected -= (target * scores.log_softmax(dim=1)).sum(dim=1).mean() / 2
        ours = InfoNCELoss(logit_scale=1.0)(image, text, target > 0)
        torch.testing.assert_close(ours, expected)

    def test_gradient_reaches_the_scale_unless_it_is_fixed(self, embeddings):
        learned, fixed = InfoNCELoss(), InfoNCELoss(learn_scale=False)
        learned(*embeddings).backward()
        assert learned.log_scale.grad.abs() > 0
        assert list(fixed.parameters()) == []

    def test_scale_is_clamped_and_can_come_back(self, embeddings):
        loss = InfoNCELoss(logit_scale=50.0, max_logit_scale=100.0)
        loss.log_scale.data.fill_(math.log(1e6))
        assert loss.logit_scale.item() == pytest.approx(100.0)
        loss.clamp_()
        loss(*embeddings).backward()
        assert loss.log_scale.item() == pytest.approx(math.log(100.0))
        assert loss.log_scale.grad.abs() > 0


class TestSigmoidLoss:
    def test_is_siglips_loss_on_distinct_pairs(self, embeddings):
        image, text = embeddings
        theirs = SigLipLoss()(image, text, torch.tensor(7.0), torch.tensor(-3.0))
        for positive in (None, torch.eye(12, dtype=torch.bool)):
            ours = SigmoidLoss(logit_scale=7.0, bias=-3.0)(image, text, positive)
            torch.testing.assert_close(ours, theirs)

    def test_bias_starts_at_minus_log_batch(self, embeddings):
        loss = SigmoidLoss()
        loss(*embeddings)
        assert loss.bias.item() == pytest.approx(-math.log(12))
        loss(embeddings[0][:3], embeddings[1][:3])
        assert loss.bias.item() == pytest.approx(-math.log(12))


def test_each_direction_has_its_own_targets(embeddings):
    """Positives need not be symmetric: picture 0 may have caption 1 without the reverse."""
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
