"""Logit scale, held-out pairs, and regression targets of aligners in closed form."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss
from sklearn.preprocessing import normalize

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, KernelAligner
from sklearn_ape.aligners import _closed_form
from sklearn_ape.aligners._closed_form import (
    Targets,
    TextFit,
    choose_scale_pairs,
    fit_held_out_logit_scale,
    fit_logit_scale,
    has_stable_whitening,
    hold_out_pairs,
    make_linear_maps,
    whiten_images,
)
from sklearn_ape.losses import InfoNCELoss
from sklearn_ape.training.data import PairDataset


def random_units(rng, n, noise=0.0, near=None):
    rows = rng.standard_normal((n, 8)) * (noise if near is not None else 1)
    rows = rows if near is None else rows + near
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def loss_at(scale, image, text, pairs):
    positive = np.zeros((len(image), len(text)), dtype=bool)
    positive[tuple(pairs.T)] = True
    positive = torch.from_numpy(positive[pairs[:, 0]][:, pairs[:, 1]])
    sides = torch.from_numpy(image[pairs[:, 0]]), torch.from_numpy(text[pairs[:, 1]])
    return InfoNCELoss(logit_scale=scale)(*(side.double() for side in sides), positive).item()


def of_shared_captions():
    """Return 90 images with 60 captions, of which the last one has features of zeros."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((90, 12)).astype(np.float32)
    text = rng.standard_normal((60, 6)).astype(np.float32)
    text[59] = 0
    owner = np.concatenate([np.arange(60), rng.integers(0, 8, 30)])
    return PairDataset(image, text, np.column_stack([np.arange(90), owner]))


class TestLogitScale:
    @pytest.mark.parametrize("shared", [False, True])
    def test_it_minimizes_the_infonce_loss(self, shared):
        """If images share captions, the shared captions are positives and not negatives."""
        rng = np.random.default_rng(0)
        image = random_units(rng, 200)
        text = random_units(rng, 200, 0.3, image)
        pairs = np.column_stack([np.arange(200)] * 2)
        if shared:
            pairs = np.vstack([pairs, np.column_stack([np.arange(50), np.arange(1, 51)])])
        best = minimize_scalar(
            loss_at, bounds=(1, 100), args=(image, text, pairs), options={"xatol": 1e-9}
        ).x
        assert 2 < best < 50
        assert fit_logit_scale(image, text, pairs) == pytest.approx(best, rel=3e-5)

    def test_it_stays_within_bounds(self):
        """Without bounds it diverges for perfect pairs and becomes zero for opposite ones."""
        image, pairs = np.eye(8, dtype=np.float32), np.column_stack([np.arange(8)] * 2)
        # The loss is flat near the upper bound.
        assert 30 < fit_logit_scale(image, image, pairs, max_scale=50) <= 50
        assert fit_logit_scale(image, -image, pairs) == pytest.approx(1, rel=1e-3)
        zeros = np.zeros((8, 3), dtype=np.float32)
        assert 1 <= fit_logit_scale(zeros, zeros, pairs) <= 100
        assert fit_logit_scale(image, -image, pairs, max_scale=1.5) == pytest.approx(1, rel=1e-3)
        for max_scale in (0.5, 1.0):
            assert fit_logit_scale(image, image, pairs, max_scale) == max_scale

    def test_large_bound_does_not_change_the_scale(self):
        """With a scale of 1e4, exp(scale * (cosine - 1)) is zero for all texts of an image."""
        rng = np.random.default_rng(0)
        image = random_units(rng, 200)
        text = random_units(rng, 200, 0.3, image)
        pairs = np.column_stack([np.arange(200)] * 2)
        expected = fit_logit_scale(image, text, pairs)
        with np.errstate(divide="raise"):
            scale = fit_logit_scale(image, text, pairs, max_scale=1e6)
        assert scale == pytest.approx(expected, rel=1e-3)

    def test_evenly_spaced_pairs_represent_many(self, monkeypatch):
        """The matrix of cosines is in memory, so the number of its rows is limited."""
        monkeypatch.setattr(_closed_form, "_MAX_SCALE_PAIRS", 50)
        rng = np.random.default_rng(0)
        image = random_units(rng, 200)
        text = random_units(rng, 200, 0.5, image)
        pairs = np.column_stack([np.arange(200)] * 2)
        sample = pairs[np.linspace(0, 199, 50).astype(int)]
        assert fit_logit_scale(image, text, pairs) == fit_logit_scale(image, text, sample)

    def test_held_out_images_are_outside_the_fit(self):
        """Class prototypes are not used for the scale."""
        rng = np.random.default_rng(0)
        image = random_units(rng, 200)
        text = random_units(rng, 200, 0.3, image)
        data = PairDataset(image, text, np.column_stack([np.arange(200)] * 2), n_prototypes=100)
        calls = []

        def fit(training_data):
            fitted = {row.tobytes() for row in data.image[training_data.pairs[:, 0]]}

            def embed(features):
                calls.append((features, fitted))
                return features

            return embed, embed

        assert 4 < fit_held_out_logit_scale(data, fit) < 50
        real_images = {row.tobytes() for row in data.image[:100]}
        for images, fitted in calls[::2]:  # every other call embeds texts
            assert all(row.tobytes() in real_images - fitted for row in images)
        assert fit_held_out_logit_scale(data, fit, max_scale=3) == pytest.approx(3, rel=1e-3)

    def test_few_pairs_are_all_held_out_in_turn(self):
        """The scale minimizes the loss of all folds together, each of which has own candidates."""
        rng = np.random.default_rng(0)
        image = random_units(rng, 12)
        text = random_units(rng, 12, 1.0, image)
        data = PairDataset(image, text, np.column_stack([np.arange(12)] * 2))
        parts = []

        def fit(training_data):
            assert not set(training_data.pairs[:, 0]) & set(held_out[len(parts)])
            parts.append(data.pairs[held_out[len(parts)]])
            return (lambda features: features), (lambda features: features)

        held_out = [rows for _, rows in hold_out_pairs(data)]
        assert sorted(np.concatenate(held_out)) == list(range(12))
        scale = fit_held_out_logit_scale(data, fit)
        best = minimize_scalar(
            lambda scale: sum(len(rows) * loss_at(scale, image, text, rows) for rows in parts),
            bounds=(1, 100),
            method="bounded",
        ).x
        assert len(parts) == 5
        assert 2 < best < 99
        assert scale == pytest.approx(best, rel=1e-3)

    @pytest.mark.parametrize(("expected", "scale"), [(None, 1.0), (7.0, 7.0), (200.0, 100.0)])
    def test_scale_of_three_images_is_the_expected_one(self, expected, scale):
        """No pair can be held out, and a scale of training pairs would be overconfident."""
        data = PairDataset(np.eye(3), np.eye(3), np.column_stack([np.arange(3)] * 2))
        assert fit_held_out_logit_scale(data, None, expected=expected) == pytest.approx(scale)

    def test_few_pairs_that_are_all_right_hardly_exceed_the_expected_scale(self):
        """Without an expected scale they would have the maximum."""

        def fit(training_data):
            return (lambda features: features), (lambda features: features)

        scales = []
        for n_pairs in (4, 400):
            units = random_units(np.random.default_rng(0), n_pairs)
            data = PairDataset(units, units, np.column_stack([np.arange(n_pairs)] * 2))
            assert fit_held_out_logit_scale(data, fit) > 99
            scales.append(fit_held_out_logit_scale(data, fit, expected=10))
        assert 10 < scales[0] < 15
        assert scales[1] > 30


@pytest.mark.parametrize("cls", [ASIFAligner, CCAAligner, KernelAligner, APEAligner])
@pytest.mark.parametrize("n_pairs", [20, 100])
def test_scale_of_few_pairs_suits_new_pairs(features, cls, n_pairs):
    """With 20 pairs, the scale of the training pairs is more than 30 times as large."""
    aligner = cls().fit(features.image[:n_pairs], features.text[:n_pairs])
    new = aligner.transform(features.image[100:]), aligner.transform_text(features.text[100:])
    best = fit_logit_scale(*new, np.column_stack([np.arange(200)] * 2))
    assert best / 3 < aligner.logit_scale_ < 3 * best


def test_scale_of_labels_as_captions_suits_new_images(features, captioned_images, text_encoder):
    """No label of three can be held out. The scale of the training images is 8 instead of 2."""
    names, labels = np.unique(captioned_images.categories, return_inverse=True)
    texts = text_encoder.transform(names.tolist())
    aligner = CCAAligner().fit(features.image[:100], texts[labels[:100]])
    cosines = aligner.similarity(features.image[100:], texts)

    def compute_loss(scale):
        return log_loss(labels[100:], softmax(scale * cosines, axis=1))

    best = minimize_scalar(compute_loss, bounds=(1, 100), method="bounded").x
    assert best / 2 < aligner.logit_scale_ < 2 * best


class TestHeldOutPairs:
    @pytest.mark.parametrize(("n_many", "n_splits"), [(59, 1), (60, 5)])
    def test_a_fifth_is_held_out_without_captions_of_zeros(self, monkeypatch, n_many, n_splits):
        """Such captions have no cosine. The choice is the same in every call."""
        monkeypatch.setattr(_closed_form, "_MIN_GROUPS_OF_ONE_SPLIT", n_many)
        data = of_shared_captions()
        splits = hold_out_pairs(data)
        assert len(splits) == n_splits
        for train, held_out in splits:
            rows = np.concatenate([train, held_out])
            assert sorted(rows) == np.flatnonzero(data.pairs[:, 1] != 59).tolist()
            assert 10 <= len(held_out) <= 24
            assert not set(data.pairs[train, 1]) & set(data.pairs[held_out, 1])
        for parts, same_parts in zip(splits, hold_out_pairs(data), strict=True):
            for rows, same_rows in zip(parts, same_parts, strict=True):
                np.testing.assert_array_equal(rows, same_rows)

    def test_caption_of_many_images_is_not_held_out(self):
        owner = np.concatenate([np.arange(60), np.zeros(40, dtype=int)])
        data = PairDataset(np.eye(100), np.eye(60), np.column_stack([np.arange(100), owner]))
        held_out = np.concatenate([rows for _, rows in hold_out_pairs(data)])
        assert sorted(held_out) == list(range(1, 60))

    def test_images_of_few_captions_are_held_out(self):
        pairs = np.column_stack([np.arange(40), np.arange(40) % 4])
        splits = hold_out_pairs(PairDataset(np.eye(40), np.eye(4), pairs))
        assert sorted(np.concatenate([rows for _, rows in splits])) == list(range(40))
        assert all(set(pairs[train, 1]) == {0, 1, 2, 3} for train, _ in splits)

    @pytest.mark.parametrize(("n_texts", "is_shared"), [(4, True), (60, False)])
    def test_many_images_of_few_captions_are_held_out_once(self, n_texts, is_shared):
        """Five fits would take long, and a fifth of the images is enough."""
        n = 2000
        pairs = np.column_stack([np.arange(n), np.arange(n) % n_texts])
        data = PairDataset(np.ones((n, 2)), np.ones((n_texts, 2)), pairs)
        [(train, held_out)] = hold_out_pairs(data)
        assert len(train) + len(held_out) == n
        assert 0.15 * n < len(held_out) <= 0.2 * n
        assert bool(set(pairs[train, 1]) & set(pairs[held_out, 1])) == is_shared

    @pytest.mark.parametrize(("n_images", "n_splits"), [(2, 0), (3, 0), (4, 2), (9, 4), (10, 5)])
    def test_at_least_two_images_are_held_out(self, n_images, n_splits):
        pairs = np.column_stack([np.arange(n_images)] * 2)
        splits = hold_out_pairs(PairDataset(np.eye(n_images), np.eye(n_images), pairs))
        assert len(splits) == n_splits
        assert all(len(rows) >= 2 for _, rows in splits)

    def test_captions_of_zeros_are_kept_if_there_are_no_others(self):
        data = PairDataset(np.eye(4), np.zeros((4, 3)), np.column_stack([np.arange(4)] * 2))
        held_out = np.concatenate([rows for _, rows in hold_out_pairs(data)])
        np.testing.assert_array_equal(np.sort(held_out), np.arange(4))

    @pytest.mark.parametrize(
        ("held_out", "chosen"),
        [([1, 4, 3, 7], [1, 3]), ([1, 5], [1, 5]), ([3, 4], [3, 4]), ([4, 5], [4, 5])],
    )
    def test_scale_is_fitted_on_images_unless_there_is_only_one(self, held_out, chosen):
        """The first four rows are images, the others stand for classes."""
        pairs = np.column_stack([np.arange(8), np.arange(8)[::-1]])
        data = PairDataset(np.eye(8), np.eye(8), pairs, n_prototypes=4)
        np.testing.assert_array_equal(choose_scale_pairs(data, np.array(held_out)), chosen)

    def test_number_of_pairs_is_limited(self, monkeypatch):
        monkeypatch.setattr(_closed_form, "_MAX_SCALE_PAIRS", 3)
        data = PairDataset(np.eye(9), np.eye(9), np.column_stack([np.arange(9)] * 2))
        rows = choose_scale_pairs(data, np.arange(4, 9))
        np.testing.assert_array_equal(rows, [4, 6, 8])


def test_share_of_an_image_is_the_mean_product_of_its_signs(monkeypatch):
    monkeypatch.setattr(_closed_form, "BLOCK_SIZE", 3)
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], dtype=np.int8), size=(5, 96))
    predicted = rng.standard_normal((8, 96)).astype(np.float32)
    fit = TextFit(np.arange(8), np.empty((8, 2)), signs, predicted, np.zeros(2))
    images, rows = rng.integers(5, size=7), rng.integers(8, size=7)
    shares = fit.estimate_shares(images, rows)
    expected = [(signs[i] * predicted[row]).mean() for i, row in zip(images, rows, strict=True)]
    np.testing.assert_allclose(shares, expected, rtol=1e-5)
    assert shares.dtype == np.float32


class TestTargets:
    """Texts and images are read in blocks, also those of one text."""

    @pytest.fixture(params=[60, 30, 7])
    def data(self, monkeypatch, request):
        monkeypatch.setattr(_closed_form, "_TEXT_BLOCK_SIZE", request.param)
        monkeypatch.setattr(_closed_form, "BLOCK_SIZE", 5)
        return of_shared_captions()

    def test_target_is_the_centered_mean_embedding_of_the_images(self, data):
        image_map = whiten_images(data, 0.1, None)
        pairs = data.pairs[data.pairs[:, 1] != 59]
        units = normalize(data.image[pairs[:, 0]].astype(np.float64))
        directions, image_mean = image_map.directions.numpy(), image_map.mean.numpy()
        embeddings = normalize((units - image_mean) @ directions)
        targets = Targets(data, image_map)
        assert targets.texts.tolist() == list(range(59))
        np.testing.assert_allclose(targets.mean, embeddings.mean(axis=0), atol=1e-6)
        means = [embeddings[pairs[:, 1] == text].mean(axis=0) for text in range(59)]
        for _ in range(2):  # each iteration gives the same targets
            rows, blocks = zip(*targets, strict=True)
            assert [(part.start, part.stop) for part in rows] == [
                (part.start, part.stop) for part in targets.blocks
            ]
            assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
            np.testing.assert_allclose(
                np.concatenate(blocks), means - embeddings.mean(axis=0), atol=1e-6
            )
        text_mean = normalize(data.text.astype(np.float64))[pairs[:, 1]].mean(axis=0)
        np.testing.assert_allclose(targets.compute_mean_text(np.float64), text_mean, atol=1e-6)
        averages = targets.average_by_text(data.image)
        expected = [data.image[pairs[pairs[:, 1] == text, 0]].mean(axis=0) for text in range(59)]
        np.testing.assert_allclose(averages, expected, atol=1e-6)
        assert averages.dtype == np.float32

    def test_merged_targets_have_the_squared_errors_of_all_texts(self, data):
        """They differ by a constant for any predictions of the kept texts."""
        rng = np.random.default_rng(0)
        targets = Targets(data, whiten_images(data, 0.1, None))
        kept = np.sort(rng.permutation(59)[:20])
        nearest, factors = rng.integers(20, size=59), rng.uniform(0.2, 0.9, 59)
        nearest[kept], factors[kept] = np.arange(20), 1
        merged = targets.merge(kept, nearest, factors)
        assert merged.texts.tolist() == targets.texts[kept].tolist()
        all_targets, merged_targets = (
            np.concatenate([block for _, block in part]) for part in (targets, merged)
        )
        predictions = rng.standard_normal((3, 20, merged_targets.shape[1]))
        errors = factors[:, None] * predictions[:, nearest] - all_targets
        merged_errors = predictions - merged_targets
        differences = [
            (part.counts[:, None] * errors**2).sum(axis=(1, 2))
            for part, errors in ((targets, errors), (merged, merged_errors))
        ]
        np.testing.assert_allclose(np.ptp(differences[0] - differences[1]), 0, atol=1e-3)
        assert np.ptp(differences[0]) > 1
        # Values of images are averaged by the same weights.
        means = np.array([data.image[data.pairs[:, 1] == text].mean(axis=0) for text in range(59)])
        weights = np.zeros((20, 59))
        weights[nearest, np.arange(59)] = targets.counts * factors
        expected = weights @ means / merged.counts[:, None]
        np.testing.assert_allclose(merged.average_by_text(data.image), expected, atol=1e-5)

    def test_maps_do_not_depend_on_the_size_of_blocks(self, data, monkeypatch):
        image_map = whiten_images(data, 0.1, None)
        text_map = make_linear_maps(data, image_map, ridge=0.3).text
        monkeypatch.undo()
        expected = whiten_images(data, 0.1, None)
        np.testing.assert_allclose(image_map.directions, expected.directions, atol=1e-5)
        expected = make_linear_maps(data, expected, ridge=0.3).text
        np.testing.assert_allclose(text_map.weights, expected.weights, atol=1e-5)


class TestWhitening:
    def test_signs_of_directions_are_reproducible(self):
        """Eigenvectors may be negated by another version of LAPACK; embeddings must not be."""
        directions = whiten_images(of_shared_captions(), 0.1, None).directions.numpy()
        assert directions.shape == (12, 12)
        assert (directions.max(axis=0) == np.abs(directions).max(axis=0)).all()

    def test_all_components_can_be_requested(self):
        """They are all directions, in the order of the variance of the embeddings."""
        data = of_shared_captions()
        image_map = whiten_images(data, 0.1, 12)
        units = normalize(data.image[data.pairs[:, 1] != 59].astype(np.float64))
        variances = ((units - units.mean(axis=0)) @ image_map.directions.numpy()).var(axis=0)
        assert image_map.directions.shape == (12, 12)
        assert (np.diff(variances) <= 0).all()
        full = whiten_images(data, 0.1, None).directions.numpy()
        assert {tuple(column) for column in image_map.directions.numpy().T} == {
            tuple(column) for column in full.T
        }

    def test_fewer_images_than_features_are_whitened_in_their_space(self):
        image = np.random.default_rng(0).standard_normal((5, 12))
        data = PairDataset(image, np.eye(5), np.column_stack([np.arange(5)] * 2))
        image_map = whiten_images(data, 0.1, None)
        centered = normalize(image) - normalize(image).mean(axis=0)
        variances, directions = np.linalg.eigh(centered.T @ centered)
        expected = centered @ directions[:, -4:] / np.sqrt(variances[-4:] / variances[-1] + 0.1)
        embeddings = centered @ image_map.directions.numpy()
        np.testing.assert_allclose(embeddings @ embeddings.T, expected @ expected.T, atol=1e-5)

    def test_directions_of_rounding_errors_are_left_out(self):
        """Those with less than a millionth of the largest variance."""
        rng = np.random.default_rng(0)
        image = np.hstack([np.ones((60, 1)), rng.standard_normal((60, 3)) * [5e-2, 2e-4, 1e-5]])
        data = PairDataset(image, np.eye(60), np.column_stack([np.arange(60)] * 2))
        assert whiten_images(data, 0.1, None).directions.shape == (4, 3)

    def test_equal_images_have_embeddings_of_zeros(self):
        data = PairDataset(np.ones((5, 3)), np.eye(5), np.column_stack([np.arange(5)] * 2))
        directions = whiten_images(data, 0.1, None).directions
        np.testing.assert_array_equal(directions, np.zeros((3, 1)))

    @pytest.mark.parametrize(("n_images", "is_stable"), [(11, False), (12, True), (13, True)])
    def test_whitening_is_stable_with_three_images_per_feature(self, n_images, is_stable):
        """Rows that stand for classes do not count."""
        n_rows = n_images + 2
        pairs = np.column_stack([np.arange(n_rows)] * 2)
        data = PairDataset(np.zeros((n_rows, 4)), np.eye(n_rows), pairs, n_prototypes=2)
        assert has_stable_whitening(data) == is_stable


def test_linear_map_of_a_single_caption_is_zero():
    """Its variance is zero, so a ridge relative to the variance would give a singular matrix."""
    rng = np.random.default_rng(0)
    data = PairDataset(rng.standard_normal((6, 4)), np.ones((1, 3)), np.eye(6, 2, dtype=int) * 0)
    data.pairs[:, 0] = np.arange(6)
    maps = make_linear_maps(data, whiten_images(data, 0.1, None), ridge=0.3)
    np.testing.assert_allclose(maps.text.weights, 0, atol=1e-6)
