"""The contrastive tuning of a kernel's embeddings, which APEAligner tests by default."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.preprocessing import normalize

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners import _ape_trainer, _head_training, _kernel_maps, _kernel_ridge
from sklearn_ape.aligners._ape_trainer import summarize_training
from sklearn_ape.aligners._closed_form import Targets, whiten_images
from sklearn_ape.aligners._head_training import (
    BlendTraining,
    HeadTraining,
    LeftOutPairs,
    LeftOutTraining,
    LinearCorrection,
    apply_correction,
)
from sklearn_ape.aligners._kernel_maps import count_predicted_texts, make_kernel_maps
from sklearn_ape.heads import BlendedHead, KernelMap, make_head
from sklearn_ape.training.data import PairDataset

CPU = torch.device("cpu")
GAMMA, RIDGE = 2.0, 0.3


def make_pairs(n_pairs=1500, seed=0):
    """Images of which the texts tell a quarter of the directions well, and the others hardly."""
    rng = np.random.default_rng(0)
    to_image, to_text = rng.standard_normal((48, 48)), rng.standard_normal((48, 48))
    rng = np.random.default_rng(seed)
    concepts = rng.standard_normal((n_pairs, 48))
    noise = np.where(np.arange(48) < 12, 0.7, 3.0)
    image = (concepts + noise * rng.standard_normal(concepts.shape)) / np.hypot(1, noise)
    text = concepts @ to_text
    return SimpleNamespace(
        image=(image @ to_image).astype(np.float32), text=text.astype(np.float32)
    )


def small(**parameters):
    defaults = {"width": 64, "depth": 2, "max_epochs": 5, "batch_size": 128, "random_state": 0}
    return APEAligner(**(defaults | parameters))


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


@pytest.fixture(scope="module")
def tuned(pairs):
    return small().fit(pairs.image, pairs.text)


@pytest.fixture(scope="module")
def repeated():
    """90 images of 30 texts, in random order; a text of zeros is in none of the solutions."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal((31, 8)).astype(np.float32)
    text[7] = 0
    owner = rng.permutation(np.arange(93) % 31)
    image = text[owner] @ rng.standard_normal((8, 6)) + rng.standard_normal((93, 6))
    return PairDataset(image.astype(np.float32), text, np.column_stack([np.arange(93), owner]))


def solve(data, image_map=None, **options):
    options = {"gamma": GAMMA, "ridge": RIDGE, "seed": 0, "device": CPU} | options
    image_map = image_map or whiten_images(data, 0.03, None)
    return make_kernel_maps(Targets(data, image_map), **options)


def compute_exact_shares(data, anchors):
    """Return the share of an image of each text by inverting the matrix in double precision."""
    texts, counts = np.unique(data.pairs[:, 1], return_counts=True)
    is_used = data.text[texts].any(axis=1)
    texts, counts = texts[is_used], counts[is_used].astype(np.float64)
    units = normalize(data.text[texts].astype(np.float64))
    anchors = anchors.numpy().astype(np.float64)
    left, inner = (np.exp(GAMMA * (rows @ anchors.T - 1)) for rows in (units, anchors))
    # A text is fitted through the most similar anchor: itself if all texts are anchors.
    nearest = left.argmax(axis=1)
    fitted = left[np.arange(len(left)), nearest, None] * inner[nearest]
    weights = fitted.T @ (fitted * counts[:, None]) + RIDGE * inner
    return texts, np.einsum("ij,ji->i", left, np.linalg.solve(weights, fitted.T))


def estimate_shares(data, fit):
    """Return the estimated share of the first image of each text."""
    _, first = np.unique(data.pairs[:, 1], return_index=True)
    image = dict(data.pairs[first, ::-1].tolist())
    return fit.estimate_shares(
        np.array([image[text] for text in fit.texts]), np.arange(len(fit.texts))
    )


class TestFitOfTexts:
    @pytest.mark.parametrize("solver", ["decomposition", "iteration", "merged texts"])
    def test_predictions_and_shares_are_those_of_the_solution(self, repeated, monkeypatch, solver):
        """All solvers; the shares are estimates from random signs."""
        monkeypatch.setattr(_kernel_maps, "_N_SIGNS", 20_000)
        if solver == "iteration":
            monkeypatch.setattr(_kernel_ridge, "count_fitting_anchors", lambda *args: 10)
        max_texts = 20 if solver == "merged texts" else None
        maps = solve(repeated, max_texts=max_texts, max_predicted_texts=1000)
        texts, shares = compute_exact_shares(repeated, maps.text.anchors)
        order = np.argsort(maps.fit.texts)
        assert maps.fit.texts[order].tolist() == texts.tolist()
        estimates = estimate_shares(repeated, maps.fit)[order]
        np.testing.assert_allclose(estimates, shares, atol=0.02)
        texts = maps.fit.texts
        output = maps.text(torch.from_numpy(repeated.text[texts])).numpy()
        np.testing.assert_allclose(maps.fit.predictions, output, atol=2e-3)

    def test_usual_number_of_signs_is_accurate_enough(self, repeated):
        """The standard error is at most 0.05."""
        maps = [solve(repeated, max_predicted_texts=1000, seed=seed) for seed in range(5)]
        _, shares = compute_exact_shares(repeated, maps[0].text.anchors)
        errors = [estimate_shares(repeated, m.fit) - shares for m in maps]
        assert np.sqrt(np.mean(np.square(errors), axis=0)).max() < 0.1
        assert np.sqrt(np.mean(np.square(errors))) < 0.05

    def test_fit_does_not_change_the_solution(self, repeated):
        with_fit, without_fit = solve(repeated, max_predicted_texts=1000), solve(repeated)
        assert without_fit.fit is None
        np.testing.assert_allclose(
            with_fit.text.coefficients, without_fit.text.coefficients, atol=1e-4
        )

    @pytest.mark.parametrize(("max_texts", "n_texts"), [(20, 25), (27, 27)])
    def test_number_of_texts_is_limited_if_texts_are_merged(self, repeated, max_texts, n_texts):
        """All anchors, and as many other texts as the limit allows."""
        maps = solve(repeated, max_texts=max_texts, max_predicted_texts=25)
        assert maps.fit.predictions.shape == (n_texts, 6)
        assert len(np.unique(maps.fit.texts)) == n_texts
        output = maps.text(torch.from_numpy(repeated.text[maps.fit.texts]))
        np.testing.assert_allclose(maps.fit.predictions, output, atol=2e-3)

    @pytest.mark.parametrize(("n_free", "n_texts"), [(2**33, 167_772), (2**30, 100_000)])
    def test_predictions_take_a_tenth_of_the_memory(self, monkeypatch, n_free, n_texts):
        """At least those of 100,000 texts are kept."""
        monkeypatch.setattr(_kernel_maps, "measure_available_memory", lambda device: n_free)
        assert count_predicted_texts(1280) == n_texts


def test_left_out_prediction_is_that_of_the_solution_without_the_image(repeated):
    """For texts of several images, and one that is left without any."""
    pairs = np.vstack([repeated.pairs, [93, 31]])
    image, text = (
        np.vstack([rows, np.ones((1, rows.shape[1]), np.float32)])
        for rows in (repeated.image, repeated.text)
    )
    data = PairDataset(image, text, pairs)
    maps = solve(data, max_predicted_texts=1000)
    texts, shares = compute_exact_shares(data, maps.text.anchors)
    row = {number: i for i, number in enumerate(texts)}
    used = np.array([i for i, number in enumerate(pairs[:, 1]) if number in row])
    left_out = LeftOutPairs(
        maps.image(torch.from_numpy(image)),
        torch.from_numpy(maps.fit.predictions),
        np.array([[pairs[i, 0], row[pairs[i, 1]]] for i in used]),
        shares=torch.from_numpy(shares[[row[pairs[i, 1]] for i in used]]).float(),
        mean_target=torch.from_numpy(maps.fit.mean_target).float(),
    )
    for i in (0, 5, len(used) - 1):
        features, _ = left_out[np.array([i])]
        rest = PairDataset(image, text, np.delete(pairs, used[i], axis=0))
        expected = predict_in_double_precision(rest, maps, pairs[used[i], 1])
        np.testing.assert_allclose(features["text"].numpy(), expected * 6**0.5, atol=2e-3)


def predict_in_double_precision(data, maps, text):
    """Return the unit prediction for a text by ridge regression on single pairs."""
    rows = data.pairs[data.text[data.pairs[:, 1]].any(axis=1)]
    units = normalize(data.text.astype(np.float64))
    target = normalize(maps.image(torch.from_numpy(data.image)).numpy().astype(np.float64))
    kernel = np.exp(GAMMA * (units[rows[:, 1]] @ units[rows[:, 1]].T - 1))
    kernel[np.diag_indices_from(kernel)] += RIDGE
    coefficients = np.linalg.solve(kernel, target[rows[:, 0]] - maps.fit.mean_target)
    return normalize(np.exp(GAMMA * (units[[text]] @ units[rows[:, 1]].T - 1)) @ coefficients)


def test_other_captions_of_the_image_are_left_out_too(monkeypatch):
    """The image is the target of its other captions, from which its caption could be predicted."""
    monkeypatch.setattr(_kernel_maps, "_N_SIGNS", 20_000)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((30, 6)).astype(np.float32)
    text = np.repeat(rng.standard_normal((30, 8)), 3, axis=0)
    text = (text + 1e-3 * rng.standard_normal(text.shape)).astype(np.float32)
    pairs = np.column_stack([np.repeat(np.arange(30), 3), np.arange(90)])
    data = PairDataset(image, text, pairs)
    maps = solve(data, max_predicted_texts=1000)
    run = SimpleNamespace(config=None, seed=0, ranks=None)
    head = LinearCorrection(maps.image.n_out)
    left_out = LeftOutTraining(maps, head, data, run).make_inputs(data)
    for i in (0, 40, 89):
        features, _ = left_out[np.array([i])]
        rest = PairDataset(image, text, pairs[pairs[:, 0] != pairs[i, 0]])
        expected = predict_in_double_precision(rest, maps, pairs[i, 1])
        cosine = normalize(features["text"].numpy()) @ expected.T
        assert cosine > 0.98


@pytest.mark.parametrize("is_corrected", [False, True])
def test_head_is_trained_in_a_blend_with_left_out_embeddings(repeated, is_corrected):
    maps = solve(repeated, max_predicted_texts=1000)
    run = SimpleNamespace(config=None, seed=0, ranks=None)
    correction = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    matrix = correction if is_corrected else None
    head = make_head("mlp", 8, 6, depth=2, width=16, dropout=0.0)
    training = BlendTraining(maps, matrix, head, repeated, run)
    inputs = training.make_inputs(training.data)
    assert len(inputs) == 90  # without the text of zeros
    module = training.make_trained_heads()[1].eval()
    left_out = LeftOutTraining(maps, head, training.data, run)
    rows = np.array([0, 40, 89])
    kernel = left_out.make_inputs(training.data)[rows][0]["text"].numpy()
    kernel = kernel @ correction if is_corrected else kernel
    own = head(torch.from_numpy(repeated.text[training.data.pairs[rows, 1]])).detach().numpy()
    expected = 0.6 * normalize(kernel) + 0.4 * normalize(own)
    np.testing.assert_allclose(
        module(inputs[rows][0]["text"]).detach().numpy(), expected, atol=1e-5
    )
    mixed = inputs[rows][0]["text"]
    mixed = 0.5 * mixed + 0.5 * mixed.roll(1, dims=0)
    features, embedding = mixed.split([8, 6], dim=1)
    own = head(features).detach().numpy()
    expected = 0.6 * normalize(embedding.numpy()) + 0.4 * normalize(own)
    np.testing.assert_allclose(module(mixed).detach().numpy(), expected, atol=1e-5)
    alone = training.make_head_inputs(repeated)
    output = module(alone.text).detach().numpy()
    expected = head(torch.from_numpy(repeated.text)).detach().numpy()
    np.testing.assert_allclose(normalize(output), normalize(expected), atol=1e-5)


def test_correction_multiplies_the_embeddings(repeated):
    maps = solve(repeated)
    matrix = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    text = torch.from_numpy(repeated.text)
    expected = maps.text(text) @ torch.from_numpy(matrix)
    np.testing.assert_allclose(apply_correction(maps, matrix).text(text), expected, atol=1e-4)


class TestFit:
    def test_tuned_kernel_is_used_if_its_recall_is_better(self, tuned, pairs):
        row = tuned.history_[0]
        assert row["epoch"] == 0
        assert row["valid_recall"] > row["untuned_recall"]
        kernel = KernelAligner().fit(pairs.image, pairs.text)
        test = make_pairs(500, seed=1)
        assert tuned.score(test.image, test.text) > kernel.score(test.image, test.text)
        # The correction is part of the coefficients of all pairs.
        head = tuned.module_.text_head
        base = (head.first if isinstance(head, BlendedHead) else head).base
        assert isinstance(base, KernelMap)
        assert len(base.anchors) == 1500

    @pytest.mark.exhaustive
    def test_kernel_is_kept_if_the_gain_is_small(self, pairs, monkeypatch):
        monkeypatch.setattr(_ape_trainer, "_compute_min_recall", lambda baseline, n_valid: 1.0)
        fitted = small().fit(pairs.image, pairs.text)
        kernel = KernelAligner().fit(pairs.image, pairs.text)
        assert "untuned_recall" not in fitted.history_[0]
        np.testing.assert_allclose(
            fitted.transform_text(pairs.text), kernel.transform_text(pairs.text), atol=1e-5
        )

    def test_texts_without_a_prediction_are_not_trained_on(self, pairs, monkeypatch):
        """Predictions are kept for 256 texts only, so that an epoch has two steps, not eleven.

        The same pairs are those of the head.
        """
        trained = []

        def train(training, callbacks, n_epochs):
            trained.append((len(training.make_inputs(training.data)), n_epochs))
            return HeadTraining.train(training, callbacks, n_epochs)

        monkeypatch.setattr(_ape_trainer, "count_fitting_anchors", lambda device: 200)
        monkeypatch.setattr(_ape_trainer, "count_predicted_texts", lambda n_out: 256)
        monkeypatch.setattr(_head_training, "_MAX_TUNING_STEPS", 8)
        monkeypatch.setattr(LeftOutTraining, "train", train)
        small(max_epochs=1).fit(pairs.image, pairs.text)
        assert trained == [(256, 4), (256, 1)]

    def test_repeated_pairs_do_not_lower_the_standard_error(self, monkeypatch):
        """Copies of a held-out pair are not independent, neither for the map nor for the blend."""
        numbers = []

        def compute_min_recall(baseline, n_valid):
            numbers.append(n_valid)
            return 1.0

        monkeypatch.setattr(_ape_trainer, "_compute_min_recall", compute_min_recall)
        pairs = make_pairs(200)
        small(max_epochs=1).fit(
            *(np.repeat(rows, 3, axis=0) for rows in (pairs.image, pairs.text))
        )
        assert numbers == [20, 20]

    def test_predictions_are_freed_before_the_kernel_is_solved_again(self, pairs, monkeypatch):
        """They have as many rows as there are texts, up to 0.5 GB."""
        fits, n_alive = [], []

        def solve(*args, **options):
            n_alive.append(sum(fit() is not None for fit in fits))
            maps = make_kernel_maps(*args, **options)
            if maps.fit is not None:
                fits.append(weakref.ref(maps.fit.predictions))
            return maps

        monkeypatch.setattr(_ape_trainer, "make_kernel_maps", solve)
        small(max_epochs=1).fit(pairs.image[:200], pairs.text[:200])
        assert len(fits) == 1
        assert n_alive == [0] * 7  # before the fit, for five folds of the logit scale, and for all

    @pytest.mark.exhaustive
    def test_interrupt_raises_and_keeps_the_fitted_aligner(self, tuned, pairs, monkeypatch):
        """There is no result yet, so that nothing is kept in its place."""

        class Stop:
            def __init__(self, *args):
                raise KeyboardInterrupt

        fitted = clone(tuned).set_params(max_epochs=1).fit(pairs.image, pairs.text)
        fingerprint = fitted.fingerprint_
        monkeypatch.setattr("sklearn_ape.aligners._head_training.LinearCorrection.forward", Stop)
        with pytest.raises(KeyboardInterrupt):
            fitted.fit(pairs.image, pairs.text)
        assert fitted.fingerprint_ == fingerprint

    @pytest.mark.exhaustive
    def test_tuning_ignores_the_parameters_of_the_head(self, tuned, pairs):
        other = clone(tuned).set_params(learning_rate=1e-9, optimizer="lion", mixup=1.0)
        other.fit(pairs.image, pairs.text)
        assert other.history_[0] == tuned.history_[0]

    def test_without_early_stopping_nothing_is_tuned(self, pairs):
        fitted = small(early_stopping=False).fit(pairs.image, pairs.text)
        kernel = KernelAligner().fit(pairs.image, pairs.text)
        output = fitted.module_.text_head.first(torch.from_numpy(pairs.text)).numpy()
        np.testing.assert_allclose(normalize(output), kernel.transform_text(pairs.text), atol=1e-5)


@pytest.mark.parametrize(
    ("best_epoch", "summary"),
    [
        (1, "blend 0.4: recall 0.350; closed form 0.250, tuned 0.300, head 0.280"),
        (
            0,
            "tuned closed form: recall 0.300; closed form 0.250; no blend was better by a "
            "standard error in 1 epochs (head 0.280)",
        ),
    ],
)
def test_summary_has_the_recall_before_and_after_tuning(best_epoch, summary):
    history = [
        {"epoch": 0, "valid_recall": 0.3, "blend_weight": 0.0, "untuned_recall": 0.25},
        {"epoch": 1, "valid_recall": 0.35, "blend_weight": 0.4, "head_recall": 0.28},
    ]
    assert summarize_training(history, best_epoch) == summary
