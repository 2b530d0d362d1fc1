"""Tests of the softmax regression of few-shot classification, on vectors around class centers."""

from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from sklearn_ape.utils.linalg import normalize_rows
from sklearn_ape.zero_shot import _probe
from sklearn_ape.zero_shot._probe import Examples, _Problem, fit_probe

N_CLASSES, N_COMPONENTS = 10, 40
SCALE = 20.0


def make_centers(n_classes):
    return normalize_rows(np.random.default_rng(0).standard_normal((n_classes, N_COMPONENTS)))


@pytest.fixture(scope="module")
def centers():
    return make_centers(N_CLASSES)


def draw(centers, n_per_class, noise, seed):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(centers)), n_per_class)
    vectors = centers[codes] + noise * rng.standard_normal((len(codes), N_COMPONENTS))
    vectors = normalize_rows(vectors).astype(np.float32)
    return Examples(vectors, codes, np.ones(len(codes)))


def fit(examples, text, scale=SCALE):
    return fit_probe(examples, examples.embeddings, text.astype(np.float32), scale, 0.006)


def predict(probe, examples):
    return (examples.embeddings @ probe.coef.T + probe.intercept).argmax(axis=1)


@pytest.mark.parametrize("n_per_class", [1, 4])
def test_wrong_names_lose_their_influence(centers, n_per_class):
    """With the names of other classes it is as accurate as labelled images alone."""
    text, test = np.roll(centers, 1, axis=0), draw(centers, 30, 0.15, 9)
    few, labels = [], []
    for seed in range(5):
        examples = draw(centers, n_per_class, 0.15, seed)
        few.append(predict(fit(examples, text), test) == test.codes)
        regression = LogisticRegression().fit(examples.embeddings, examples.codes)
        labels.append(regression.score(test.embeddings, test.codes))
    assert np.mean(few) > np.mean(labels) - 0.02


@pytest.mark.parametrize("n_per_class", [1, 4])
def test_names_like_those_of_other_classes_lose_influence(centers, n_per_class, monkeypatch):
    """The names alone predict best with weights of 0.5 to 0.75, and 1 is too much for them."""
    text = normalize_rows(centers + np.roll(centers, 1, axis=0))
    test = draw(centers, 30, 0.25, 9)

    def measure_accuracy():
        draws = [draw(centers, n_per_class, 0.25, seed) for seed in range(5)]
        probes = [fit(examples, text, scale=14.0) for examples in draws]
        return np.mean([predict(probe, test) == test.codes for probe in probes])

    accuracy = measure_accuracy()
    monkeypatch.setattr(_probe, "_DOUBTED_WEIGHT", 0.5)
    assert accuracy > measure_accuracy() + 0.01


def test_many_overlapping_examples_get_a_stronger_penalty(centers, monkeypatch):
    """The default penalty fits them too closely; examples that do not overlap keep it."""
    examples, test = draw(centers, 50, 0.5, 0), draw(centers, 100, 0.5, 9)
    clear = draw(centers, 50, 0.15, 0)
    probe, clear_probe = fit(examples, centers), fit(clear, centers)
    monkeypatch.setattr(_probe, "_PENALTY_FACTORS", ())
    close, close_to_clear = fit(examples, centers), fit(clear, centers)
    hits, hits_of_close = (predict(one, test) == test.codes for one in (probe, close))
    assert hits.mean() > hits_of_close.mean() + 0.05
    np.testing.assert_array_equal(clear_probe.coef, close_to_clear.coef)


def test_few_examples_keep_the_penalty(centers, monkeypatch):
    examples = draw(centers, 20, 0.5, 0)
    probe = fit(examples, centers)
    monkeypatch.setattr(_probe, "_PENALTY_FACTORS", ())
    np.testing.assert_array_equal(probe.coef, fit(examples, centers).coef)


def test_solution_minimizes_the_documented_loss(centers):
    """The formulas are those of docs/few_labels.md, with the weight 1 of the names."""
    examples, alpha, scale = draw(centers, 4, 0.2, 0), 0.5, 8.0
    vectors, rows = examples.embeddings, np.arange(len(examples.codes))
    probe = fit_probe(examples, vectors, centers.astype(np.float32), scale, alpha)
    inputs = np.hstack([vectors, np.full((len(rows), 1), 0.3)])

    def loss(flat):
        residual = flat.reshape(-1, N_CLASSES)
        log_proba = log_softmax(scale * vectors @ centers.T + inputs @ residual, axis=1)
        errors = np.exp(log_proba)
        errors[rows, examples.codes] -= 1
        value = -log_proba[rows, examples.codes].sum() + alpha / 2 * (residual**2).sum()
        return value, (inputs.T @ errors + alpha * residual).ravel()

    start = np.zeros(inputs.shape[1] * N_CLASSES)
    residual = minimize(loss, start, jac=True, options={"gtol": 1e-6}).x.reshape(-1, N_CLASSES)
    test = draw(centers, 4, 0.2, 9).embeddings
    expected = scale * test @ centers.T + test @ residual[:-1] + 0.3 * residual[-1]
    np.testing.assert_allclose(test @ probe.coef.T + probe.intercept, expected, atol=0.02)


def test_progress_bar_counts_the_iterations(centers, monkeypatch):
    bar = MagicMock()
    monkeypatch.setattr(_probe, "make_progress_bar", lambda *args, **options: bar)
    fit(draw(centers, 4, 0.15, 0), centers)
    bar.__exit__.assert_called_once()
    assert bar.__enter__().update.call_count > 10


def test_many_examples_are_solved_on_principal_directions(centers, monkeypatch):
    examples, test = draw(centers, 10, 0.15, 0), draw(centers, 30, 0.15, 9)
    expected = fit(examples, centers)
    monkeypatch.setattr(_probe, "_MAX_DIRECTIONS", 30)
    few = fit(examples, centers)
    assert not np.array_equal(few.coef, expected.coef)
    agreement = (predict(few, test) == predict(expected, test)).mean()
    assert agreement > 0.9


def test_names_of_many_classes_gain_weight_if_logit_scale_is_too_low():
    """Names that are nearly always right outweigh one noisy example per class."""
    centers = make_centers(200)
    test, results = draw(centers, 5, 0.15, 9), []
    names = (test.embeddings @ centers.T).argmax(axis=1) == test.codes
    for seed in range(3):
        probe = fit(draw(centers, 1, 0.15, seed), centers, scale=2.0)
        assert probe.temperature < 0.8
        results.append(predict(probe, test) == test.codes)
    assert np.mean(results) > names.mean() - 0.02


def test_corrections_of_some_classes_keep_the_weight_of_names(centers):
    """Examples of a few classes, all of which are predicted wrongly, may be corrections."""
    pool = draw(centers, 60, 0.3, 3)
    is_wrong = (pool.embeddings @ centers.T).argmax(axis=1) != pool.codes
    rows = np.flatnonzero(is_wrong & (pool.codes < 3))[:6]
    assert len(rows) == 6
    probe = fit(pool.select(rows), centers)
    assert probe.temperature >= 0.9
    names = (pool.embeddings @ centers.T).argmax(axis=1) == pool.codes
    rest = np.setdiff1d(np.arange(len(pool.codes)), rows)
    assert (predict(probe, pool) == pool.codes)[rest].mean() > names[rest].mean() - 0.03


def test_one_example_per_class_flattens_probabilities_of_wrong_names(centers):
    examples = draw(centers, 1, 0.15, 0)
    wrong = fit(examples, np.roll(centers, 1, axis=0))
    right = fit(examples, centers)
    assert np.isnan(wrong.accuracy)
    assert wrong.temperature > 2
    assert right.temperature <= 1


@pytest.mark.parametrize("n_per_class", [1, 2, 5])
def test_weights_equal_repeated_examples(centers, n_per_class):
    """A weight of 3 has the same effect as three copies, which are in one fold."""
    examples, text = draw(centers, n_per_class, 0.15, 0), np.roll(centers, 1, axis=0)
    weighted = fit(examples._replace(weights=3 * examples.weights), text)
    repeated = fit(examples.select(np.repeat(np.arange(len(examples.codes)), 3)), text)
    assert weighted.temperature == pytest.approx(repeated.temperature, rel=0.01)


@pytest.mark.parametrize("n_with_examples", [8, N_CLASSES])
def test_probabilities_do_not_depend_on_the_order_of_classes(centers, n_with_examples):
    """The folds are the same, and so are temperature and accuracy."""
    examples = draw(centers[:n_with_examples], 5, 0.3, 0)
    examples = examples.select(np.random.default_rng(1).permutation(len(examples.codes)))
    probe = fit(examples, centers)
    position = np.random.default_rng(2).permutation(N_CLASSES)  # the new code of each class
    permuted = fit(
        examples._replace(codes=position[examples.codes]), centers[np.argsort(position)]
    )
    assert permuted.temperature == pytest.approx(probe.temperature, rel=1e-3)
    assert permuted.accuracy == pytest.approx(probe.accuracy)


@pytest.mark.parametrize("n_with_examples", [4, 12])
def test_examples_do_not_attract_images_of_classes_without_examples(n_with_examples):
    """All images have something in common, which the examples must not claim for their classes."""
    centers = make_centers(20) + make_centers(1)
    text = normalize_rows(centers + 0.2 * np.random.default_rng(1).standard_normal(centers.shape))
    examples, test = draw(centers[:n_with_examples], 16, 0.2, 2), draw(centers, 50, 0.2, 9)
    probe = fit(examples, text)
    few = predict(probe, test) == test.codes
    names = (test.embeddings @ text.T).argmax(axis=1) == test.codes
    is_new = test.codes >= n_with_examples
    assert few.mean() > names.mean() - 0.02
    assert few[is_new].mean() > names[is_new].mean() - 0.04
    # Measured with the other classes' images alone, it would be too high by 0.2 to 0.4.
    assert probe.accuracy == pytest.approx(few.mean(), abs=0.15)


def test_images_of_one_class_leave_probabilities_as_they_are():
    """They are predicted as it nearly always, which says nothing about the other classes."""
    centers = make_centers(10)
    text = normalize_rows(centers + 0.2 * np.random.default_rng(1).standard_normal(centers.shape))
    examples, test = draw(centers[:1], 16, 0.2, 2), draw(centers, 50, 0.2, 9)
    probe = fit(examples, text)
    assert np.isnan(probe.accuracy)
    assert probe.temperature == pytest.approx(1, abs=0.1)
    names = (test.embeddings @ text.T).argmax(axis=1) == test.codes
    assert (predict(probe, test) == test.codes).mean() > names.mean() - 0.02


def test_adjustments_vanish_with_high_alpha(centers):
    """Examples without influence must not move images to classes without examples."""
    examples, test = draw(centers[:5], 16, 0.2, 2), draw(centers, 20, 0.2, 9)
    text = centers.astype(np.float32)
    probe = fit_probe(examples, examples.embeddings, text, SCALE, 1e6)
    np.testing.assert_array_equal(predict(probe, test), (test.embeddings @ text.T).argmax(axis=1))


@pytest.mark.parametrize("alpha", [1e-9, 6e-5, 6e-4, 0.006])
@pytest.mark.parametrize("n_per_class", [1, 8])
def test_examples_are_predicted_right(centers, n_per_class, alpha):
    """With a small alpha, adjustments exceeded what the examples changed."""
    text = normalize_rows(np.roll(centers, 1, axis=0) + 2 * centers.mean(axis=0))
    examples = draw(centers[:5] + 2 * centers.mean(axis=0), n_per_class, 0.3, 2)
    probe = fit_probe(examples, examples.embeddings, text.astype(np.float32), SCALE, alpha)
    assert (predict(probe, examples) == examples.codes).mean() >= 0.9


@pytest.mark.parametrize("weight", [1, 30, 1000, 1e6])
def test_single_example_of_any_weight_is_predicted_right(weight):
    """With weights from 30, the optimization stopped at the start without an error."""
    centers = make_centers(12)
    for seed in range(5):
        examples = draw(centers[:1], 1, 0.3, seed)
        examples = examples._replace(weights=np.full(1, float(weight)))
        assert predict(fit(examples, np.roll(centers, 1, axis=0)), examples) == [0]


def test_probe_is_the_solution_if_some_classes_have_no_examples():
    """The gradient is zero. The shared part was subtracted for the names only after training."""
    centers = make_centers(20) + make_centers(1)
    examples, text = draw(centers[:12], 16, 0.2, 2), normalize_rows(centers).astype(np.float32)
    probe = fit(examples, text)
    problem = _Problem(examples, examples.embeddings, text, SCALE, 0.006)
    assert np.linalg.norm(problem.center) > 0.3
    logits = examples.embeddings @ probe.coef.T + probe.intercept
    logits += problem.compute_adjustments() * probe.temperature
    errors = np.eye(20)[examples.codes] - softmax(logits, axis=1)
    expected = errors.T @ (examples.embeddings - problem.center) / 0.006
    residual = probe.coef - SCALE * text
    assert np.linalg.norm(residual - expected) < 0.1 * np.linalg.norm(residual)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_weights_may_be_tiny_or_huge(centers, factor):
    """Products of two weights underflow or overflow."""
    examples = draw(centers[:5], 4, 0.15, 0)
    scaled = examples._replace(weights=examples.weights * factor)
    text = centers.astype(np.float32)
    probe = fit_probe(scaled, scaled.embeddings, text, SCALE, 0.006 * factor)
    np.testing.assert_allclose(probe.coef, fit(examples, centers).coef, rtol=1e-4, atol=1e-4)
    assert 0.5 < probe.accuracy <= 1
    assert 0.1 < probe.temperature < 10


@pytest.mark.parametrize("min_threaded", [0, np.inf])
def test_result_does_not_depend_on_the_number_of_threads(min_threaded, monkeypatch):
    """BLAS rounds differently with several threads, so that machines would give other results."""
    monkeypatch.setattr(_probe, "_MIN_THREADED", min_threaded)
    examples = draw(make_centers(60), 12, 0.3, 0)  # products that BLAS would divide
    probes = []
    for n_threads in (1, 2, 3):
        with threadpool_limits(n_threads, user_api="blas"):
            probes.append(fit(examples, make_centers(60)))
    for probe in probes[1:]:
        for value, expected in zip(probe, probes[0], strict=True):
            np.testing.assert_array_equal(value, expected)


def test_result_does_not_depend_on_fits_in_other_threads():
    """Each fit sets the number of threads of BLAS, which is the same for all threads."""
    examples, centers = draw(make_centers(60), 12, 0.3, 0), make_centers(60)
    expected = fit(examples, centers)
    with ThreadPoolExecutor(3) as pool:
        for probe in pool.map(lambda _: fit(examples, centers), range(9)):
            for value, other in zip(probe, expected, strict=True):
                np.testing.assert_array_equal(value, other)


def test_large_problem_is_solved_as_a_small_one(centers, monkeypatch):
    """All threads of BLAS compute each product, instead of a thread per fold."""
    examples = draw(centers, 8, 0.2, 0)
    small = fit(examples, centers)
    monkeypatch.setattr(_probe, "_MAX_THREADED", 0)
    large = fit(examples, centers)
    np.testing.assert_allclose(large.coef, small.coef, rtol=1e-3, atol=1e-3)
    assert large.accuracy == small.accuracy
