"""Batches, splits and schedules."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from sklearn_ape.training import PairBatches, PairDataset, cosine_schedule, split_pairs, subset


def dataset(n_pairs):
    numbers = torch.arange(n_pairs, dtype=torch.float32)[:, None]
    return PairDataset(numbers, -numbers, np.column_stack([np.arange(n_pairs)] * 2))


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

    def test_a_pair_is_positive_wherever_its_members_meet(self):
        """A-t1, A-t2, B-t2: picture A and caption t2 belong together in all three rows."""
        numbers = torch.arange(2, dtype=torch.float32)[:, None]
        data = PairDataset(numbers, numbers, np.array([[0, 0], [0, 1], [1, 1]]))
        _, positive = data[torch.arange(3)]
        assert positive.tolist() == [[True, True, True], [True, True, True], [False, True, True]]

    def test_order_changes_by_epoch_and_repeats_by_seed(self):
        def epochs():
            batches = PairBatches(dataset(50), 50, shuffle=True, seed=3)
            return [next(iter(batches))[0]["image"][:, 0].tolist() for _ in range(2)]

        first, second = epochs()
        assert first != second
        assert epochs() == [first, second]


class TestSplit:
    def test_no_picture_or_caption_on_both_sides(self):
        """Captions shared by pictures, and pictures by captions, would leak the answer."""
        rng = np.random.default_rng(0)
        pairs = np.unique(rng.integers(300, size=(260, 2)), axis=0)
        split = split_pairs(pairs, 0.2, np.random.RandomState(0))
        for side in (0, 1):
            assert not set(pairs[split.train, side]) & set(pairs[split.valid, side])
        assert len(split.train) + len(split.valid) == len(pairs)

    def test_few_groups_are_not_split(self):
        """A recall among two or three captions would stop training at the first epoch."""
        pairs = np.column_stack([np.arange(1000), np.arange(1000) % 20])
        assert split_pairs(pairs, 0.1, np.random.RandomState(0)).valid is None

    def test_a_caption_of_very_many_pictures_stays_in_training(self):
        pairs = np.array([[i, 0] for i in range(1000)] + [[1000 + i, 1 + i] for i in range(300)])
        for seed in range(20):
            split = split_pairs(pairs, 0.1, np.random.RandomState(seed))
            assert len(split.valid) <= 130

    def test_subset_keeps_the_features_of_its_pairs(self):
        whole = dataset(10)
        part = subset(whole, np.array([7, 2]))
        inputs, _ = part[torch.arange(2)]
        assert sorted(inputs["image"][:, 0].tolist()) == [2.0, 7.0]
        torch.testing.assert_close(inputs["image"], -inputs["text"])


def test_schedule_rises_then_falls_to_zero():
    factor = cosine_schedule(100).kwargs["lr_lambda"]
    factors = [factor(step) for step in range(101)]
    assert factors[0] < factors[4] == 1.0
    assert all(a >= b for a, b in pairwise(factors[5:]))
    assert factors[-1] == pytest.approx(0.0, abs=1e-3)
