"""Batches of pairs, and their split into training and validation."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from sklearn_ape.losses import InfoNCELoss
from sklearn_ape.training import PairBatches, PairDataset, split_pairs, subset


def dataset(n_pairs):
    numbers = torch.arange(n_pairs, dtype=torch.float32)[:, None]
    return PairDataset(numbers, -numbers, np.column_stack([np.arange(n_pairs)] * 2))


class TestPairDataset:
    def test_a_pair_is_positive_wherever_its_members_meet(self):
        """A-t1, A-t2, B-t2: image A and caption t2 belong together in all three rows."""
        numbers = torch.arange(2, dtype=torch.float32)[:, None]
        data = PairDataset(numbers, numbers, np.array([[0, 0], [0, 1], [1, 1]]))
        _, positive = data[torch.arange(3)]
        matrix = np.zeros((3, 3), dtype=bool)
        matrix[tuple(positive.T)] = True
        assert matrix.tolist() == [[True, True, True], [True, True, True], [False, True, True]]

    def test_a_very_large_batch_makes_no_square_matrix(self):
        """32,768 pairs and a caption of two images: a bool a combination would be a gigabyte."""
        rows = np.arange(32768)
        pairs = np.column_stack([rows, rows])
        pairs[1, 1] = 0
        numbers = torch.zeros(32768, 1)
        _, positive = PairDataset(numbers, numbers, pairs)[torch.from_numpy(rows)]
        assert positive.dtype == torch.int64
        assert positive.shape == (32768 + 2, 2)

    def test_losses_take_the_positives_as_they_come(self):
        """A collapsed model of two pairs of one caption has nothing to lose: all is right."""
        same = torch.ones(2, 1)
        inputs, positive = PairDataset(same, same[:1], np.array([[0, 0], [1, 0]]))[torch.arange(2)]
        loss = InfoNCELoss(logit_scale=1.0)(inputs["image"], inputs["text"], positive)
        assert loss.item() == pytest.approx(np.log(2))  # entropy of the target, the least there is
        assert len(positive) == 4

    def test_subset_keeps_the_features_of_its_pairs(self):
        whole = dataset(10)
        part = subset(whole, np.array([7, 2]))
        inputs, _ = part[torch.arange(2)]
        assert sorted(inputs["image"][:, 0].tolist()) == [2.0, 7.0]
        torch.testing.assert_close(inputs["image"], -inputs["text"])


class TestDevice:
    """Simulated: whether features go to a CUDA device depends on its free memory alone."""

    cuda = torch.device("cuda")

    def moved(self, monkeypatch, free):
        sent = []
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
        monkeypatch.setattr(torch.Tensor, "to", lambda self, device: sent.append(device) or self)
        data = dataset(10)  # 80 bytes
        return data, data.to(self.cuda), sent

    def test_features_that_fit_in_half_of_its_memory_are_sent_once(self, monkeypatch):
        _, moved, sent = self.moved(monkeypatch, free=161)
        assert sent == [self.cuda] * 2
        assert len(moved) == 10

    def test_others_stay_and_their_batches_are_sent_ahead(self, monkeypatch):
        data, moved, sent = self.moved(monkeypatch, free=160)
        assert sent == []
        assert data.is_ready
        assert not moved.is_ready

    def test_nothing_is_done_for_the_cpu(self):
        data = dataset(10)
        moved = data.to(torch.device("cpu"))
        assert moved.is_ready
        assert moved.image is data.image


class TestPairBatches:
    @pytest.mark.parametrize(("n_pairs", "batch_size"), [(10, 4), (9, 8), (5, 99), (2, 2), (7, 3)])
    def test_every_pair_once_an_epoch_and_no_batch_of_one(self, n_pairs, batch_size):
        batches = list(PairBatches(dataset(n_pairs), batch_size, shuffle=True, seed=0))
        sizes = [len(inputs["image"]) for inputs, _ in batches]
        seen = torch.cat([inputs["image"][:, 0] for inputs, _ in batches])
        assert sorted(seen.tolist()) == list(range(n_pairs))
        assert max(sizes) <= batch_size
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 1

    def test_both_sides_belong_to_the_same_pair(self):
        for inputs, positive in PairBatches(dataset(10), 4, shuffle=True):
            torch.testing.assert_close(inputs["image"], -inputs["text"])
            assert positive.ndim == 1  # the diagonal alone

    def test_order_changes_by_epoch_and_repeats_by_seed(self):
        def epochs():
            batches = PairBatches(dataset(50), 50, shuffle=True, seed=3)
            return [next(iter(batches))[0]["image"][:, 0].tolist() for _ in range(2)]

        first, second = epochs()
        assert first != second
        assert epochs() == [first, second]


class TestMixup:
    def mixtures(self, n_batches=200, alpha=1.0, seed=0):
        """One-hot features of 5 pairs: a mixed row holds the shares that it is made of."""
        eye = torch.eye(5, dtype=torch.float64)
        pairs = np.column_stack([np.arange(5)] * 2)
        batches = PairBatches(PairDataset(eye, 2 * eye, pairs), 5, mixup=alpha, seed=seed)
        return [next(iter(batches)) for _ in range(n_batches)]

    def test_every_pair_is_mixed_with_another_by_one_share_on_both_sides(self):
        for inputs, positive in self.mixtures():
            image = inputs["image"]
            share = image[0, 0]
            assert 0 <= share <= 1
            torch.testing.assert_close(image.diagonal(), share.expand(5))
            # One other pair has the rest, and every pair is the partner of one.
            others = image - share * torch.eye(5, dtype=torch.float64)
            assert (others > 0).sum(dim=1).tolist() == [1] * 5
            for axis in (0, 1):
                torch.testing.assert_close(others.sum(dim=axis), (1 - share).expand(5))
            torch.testing.assert_close(inputs["text"], 2 * image)
            assert positive.ndim == 1

    @pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
    def test_shares_are_of_the_beta_distribution(self, alpha):
        shares = [inputs["image"][0, 0].item() for inputs, _ in self.mixtures(1000, alpha)]
        assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 0.01

    def test_repeats_by_seed_and_leaves_orders_and_global_generators_alone(self):
        before = torch.get_rng_state()
        one, two = (self.mixtures(3, seed=4)[2][0]["image"] for _ in range(2))
        assert torch.equal(one, two)
        assert not torch.equal(one, self.mixtures(3, seed=5)[2][0]["image"])
        assert torch.equal(before, torch.get_rng_state())

        def sums(mixup):  # of batches, which mixtures within them leave as they are
            batches = PairBatches(dataset(50), 10, shuffle=True, seed=3, mixup=mixup)
            return [inputs["image"].sum().item() for _ in range(2) for inputs, _ in batches]

        assert sums(1.0) == pytest.approx(sums(0.0))

    def test_what_belongs_together_does_so_in_both_parts(self):
        """Captions of three images each: two mixed rows are positives if both parts agree."""
        eye, caption = torch.eye(12), np.arange(12) // 3
        data = PairDataset(eye, eye[:4], np.column_stack([np.arange(12), caption]))
        n_shared = 0
        for seed in range(20):
            inputs, positive = next(iter(PairBatches(data, 12, mixup=1.0, seed=seed)))
            own = torch.eye(12, dtype=torch.bool)
            partner = (inputs["image"].masked_fill(own, 0) > 0).nonzero()[:, 1].numpy()
            parts = np.column_stack([caption, caption[partner]])
            expected = (parts[:, None] == parts).all(axis=2)
            assert sorted(map(tuple, positive.tolist())) == list(
                zip(*expected.nonzero(), strict=True)
            )
            n_shared += len(positive) - 12
        assert n_shared > 0

    @pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
    def test_bad_alpha_is_named(self, bad):
        with pytest.raises(ValueError, match=r"mixup=.* is not valid"):
            PairBatches(dataset(4), 2, mixup=bad)


def test_no_image_or_caption_on_both_sides():
    """Captions shared by images, and images by captions, would leak the answer."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(300, size=(260, 2)), axis=0)
    split = split_pairs(pairs, 0.2, np.random.RandomState(0))
    for side in (0, 1):
        assert not set(pairs[split.train, side]) & set(pairs[split.valid, side])
    assert len(split.train) + len(split.valid) == len(pairs)


def test_few_groups_are_not_split():
    """A recall among two or three captions would stop training at the first epoch."""
    pairs = np.column_stack([np.arange(1000), np.arange(1000) % 20])
    assert split_pairs(pairs, 0.1, np.random.RandomState(0)).valid is None


def test_a_caption_of_very_many_images_stays_in_training():
    pairs = np.array([[i, 0] for i in range(1000)] + [[1000 + i, 1 + i] for i in range(300)])
    for seed in range(20):
        split = split_pairs(pairs, 0.1, np.random.RandomState(seed))
        assert len(split.valid) <= 130
