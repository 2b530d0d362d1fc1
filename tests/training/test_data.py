"""Datasets and batches of pairs, mixup, and the split into training and validation."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from sklearn_ape.losses import InfoNCELoss
from sklearn_ape.training import PairBatches, PairDataset, split_pairs
from sklearn_ape.training.data import subset


def dataset(n_pairs):
    features = torch.arange(n_pairs, dtype=torch.float32)[:, None]
    return PairDataset(features, -features, np.column_stack([np.arange(n_pairs)] * 2))


class TestPairDataset:
    def test_positives_include_pairs_that_other_rows_imply(self):
        """With the pairs A-t1, A-t2 and B-t2, image A and caption t2 match in all three rows."""
        features = torch.arange(2, dtype=torch.float32)[:, None]
        data = PairDataset(features, features, np.array([[0, 0], [0, 1], [1, 1]]))
        _, positive = data[torch.arange(3)]
        matrix = np.zeros((3, 3), dtype=bool)
        matrix[tuple(positive.T)] = True
        assert matrix.tolist() == [[True, True, True], [True, True, True], [False, True, True]]

    def test_large_batch_allocates_no_square_matrix(self):
        """A boolean matrix of 32,768 x 32,768 would take a gigabyte."""
        rows = np.arange(32768)
        pairs = np.column_stack([rows, rows])
        pairs[1, 1] = 0
        features = torch.zeros(32768, 1)
        _, positive = PairDataset(features, features, pairs)[torch.from_numpy(rows)]
        assert positive.dtype == torch.int64
        assert positive.shape == (32768 + 2, 2)

    def test_loss_accepts_positives_of_the_dataset(self):
        """Both images of a caption are positives, so equal embeddings minimize the loss."""
        features = torch.ones(2, 1)
        inputs, positive = PairDataset(features, features[:1], np.array([[0, 0], [1, 0]]))[
            torch.arange(2)
        ]
        loss = InfoNCELoss(logit_scale=1.0)(inputs["image"], inputs["text"], positive)
        assert loss.item() == pytest.approx(np.log(2))  # the entropy of the targets is the minimum
        assert len(positive) == 4

    def test_subset_keeps_the_features_of_its_pairs(self):
        part = subset(dataset(10), np.array([7, 2]))
        inputs, _ = part[torch.arange(2)]
        assert sorted(inputs["image"][:, 0].tolist()) == [2.0, 7.0]
        torch.testing.assert_close(inputs["image"], -inputs["text"])


class TestDevice:
    """Features are moved to a simulated CUDA device depending on its free memory."""

    cuda = torch.device("cuda")

    def move(self, monkeypatch, free):
        devices = []
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
        monkeypatch.setattr(
            torch.Tensor, "to", lambda self, device: devices.append(device) or self
        )
        data = dataset(10)  # 80 bytes
        return data, data.to(self.cuda), devices

    def test_features_are_moved_once_if_half_of_the_memory_suffices(self, monkeypatch):
        _, moved, devices = self.move(monkeypatch, free=161)
        assert devices == [self.cuda] * 2
        assert len(moved) == 10

    def test_large_features_stay_and_batches_are_moved(self, monkeypatch):
        data, moved, devices = self.move(monkeypatch, free=160)
        assert devices == []
        assert data.is_ready
        assert not moved.is_ready

    def test_cpu_keeps_the_features(self):
        data = dataset(10)
        moved = data.to(torch.device("cpu"))
        assert moved.is_ready
        assert moved.image is data.image


class TestPairBatches:
    @pytest.mark.parametrize(("n_pairs", "batch_size"), [(10, 4), (9, 8), (5, 99), (2, 2), (7, 3)])
    def test_epoch_has_each_pair_once_and_no_batch_of_one(self, n_pairs, batch_size):
        batches = list(PairBatches(dataset(n_pairs), batch_size, shuffle=True, seed=0))
        sizes = [len(inputs["image"]) for inputs, _ in batches]
        images = torch.cat([inputs["image"][:, 0] for inputs, _ in batches])
        assert sorted(images.tolist()) == list(range(n_pairs))
        assert max(sizes) <= batch_size
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 1

    def test_rows_of_both_sides_are_pairs(self):
        for inputs, positive in PairBatches(dataset(10), 4, shuffle=True):
            torch.testing.assert_close(inputs["image"], -inputs["text"])
            assert positive.ndim == 1  # only the diagonal

    def test_order_changes_by_epoch_and_repeats_by_seed(self):
        def epochs():
            batches = PairBatches(dataset(50), 50, shuffle=True, seed=3)
            return [next(iter(batches))[0]["image"][:, 0].tolist() for _ in range(2)]

        first, second = epochs()
        assert first != second
        assert epochs() == [first, second]


class TestMixup:
    def draw(self, n_batches=200, alpha=1.0, seed=0):
        """Return batches of 5 pairs with one-hot features, whose rows show the weights."""
        eye = torch.eye(5, dtype=torch.float64)
        pairs = np.column_stack([np.arange(5)] * 2)
        batches = PairBatches(PairDataset(eye, 2 * eye, pairs), 5, mixup=alpha, seed=seed)
        return [next(iter(batches)) for _ in range(n_batches)]

    def test_pairs_are_mixed_with_one_weight_on_both_sides(self):
        for inputs, positive in self.draw():
            image = inputs["image"]
            weight = image[0, 0]
            assert 0 <= weight <= 1
            torch.testing.assert_close(image.diagonal(), weight.expand(5))
            # Each pair has one partner, and each pair is the partner of one pair.
            partners = image - weight * torch.eye(5, dtype=torch.float64)
            assert (partners > 0).sum(dim=1).tolist() == [1] * 5
            for axis in (0, 1):
                torch.testing.assert_close(partners.sum(dim=axis), (1 - weight).expand(5))
            torch.testing.assert_close(inputs["text"], 2 * image)
            assert positive.ndim == 1

    @pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
    def test_weights_follow_the_beta_distribution(self, alpha):
        weights = [inputs["image"][0, 0].item() for inputs, _ in self.draw(1000, alpha)]
        assert kstest(weights, beta(alpha, alpha).cdf).pvalue > 0.01

    def test_mixup_depends_only_on_its_seed(self):
        """It changes neither the order of batches nor the global generator."""
        state = torch.get_rng_state()
        first, second = (self.draw(3, seed=4)[2][0]["image"] for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, self.draw(3, seed=5)[2][0]["image"])
        assert torch.equal(state, torch.get_rng_state())

        def sums(mixup):  # mixing within a batch does not change its sum
            batches = PairBatches(dataset(50), 10, shuffle=True, seed=3, mixup=mixup)
            return [inputs["image"].sum().item() for _ in range(2) for inputs, _ in batches]

        assert sums(1.0) == pytest.approx(sums(0.0))

    def test_mixed_rows_are_positives_if_both_parts_match(self):
        """Each caption has three images."""
        eye, caption = torch.eye(12), np.arange(12) // 3
        data = PairDataset(eye, eye[:4], np.column_stack([np.arange(12), caption]))
        n_shared = 0
        for seed in range(20):
            inputs, positive = next(iter(PairBatches(data, 12, mixup=1.0, seed=seed)))
            diagonal = torch.eye(12, dtype=torch.bool)
            partner = (inputs["image"].masked_fill(diagonal, 0) > 0).nonzero()[:, 1].numpy()
            parts = np.column_stack([caption, caption[partner]])
            expected = (parts[:, None] == parts).all(axis=2)
            assert sorted(map(tuple, positive.tolist())) == list(
                zip(*expected.nonzero(), strict=True)
            )
            n_shared += len(positive) - 12
        assert n_shared > 0

    @pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
    def test_invalid_alpha_raises(self, alpha):
        with pytest.raises(ValueError, match="mixup must be a number in"):
            PairBatches(dataset(4), 2, mixup=alpha)

    @pytest.mark.parametrize("batch_size", [0, -2, 2.5])
    def test_invalid_batch_size_raises(self, batch_size):
        with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
            PairBatches(dataset(4), batch_size)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_of_invalid_fraction_raises(fraction):
    """A fraction of 1 left no pair to train on."""
    pairs = np.column_stack([np.arange(100)] * 2)
    with pytest.raises(ValueError, match=r"fraction must be a number in \[0, 1\)"):
        split_pairs(pairs, fraction, np.random.RandomState(0))


def test_split_shares_no_image_or_caption():
    """Shared captions or images would leak validation pairs into training."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(300, size=(260, 2)), axis=0)
    split = split_pairs(pairs, 0.2, np.random.RandomState(0))
    for side in (0, 1):
        assert not set(pairs[split.train, side]) & set(pairs[split.valid, side])
    assert len(split.train) + len(split.valid) == len(pairs)


def test_pairs_of_few_groups_are_not_split():
    """Recall among two or three captions is too coarse for early stopping."""
    pairs = np.column_stack([np.arange(1000), np.arange(1000) % 20])
    assert split_pairs(pairs, 0.1, np.random.RandomState(0)).valid is None


def test_caption_of_many_images_stays_in_training():
    pairs = np.array([[i, 0] for i in range(1000)] + [[1000 + i, 1 + i] for i in range(300)])
    for seed in range(20):
        split = split_pairs(pairs, 0.1, np.random.RandomState(seed))
        assert len(split.valid) <= 130
