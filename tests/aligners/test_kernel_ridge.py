"""Solvers of kernel ridge regression against scikit-learn and each other."""

import weakref

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import normalize

from sklearn_ape import KernelAligner
from sklearn_ape.aligners import _kernel_ridge
from sklearn_ape.aligners._kernel_ridge import (
    choose_anchors,
    get_lower_rows,
    solve_kernel_ridge,
    solve_positive_definite,
)

CPU = torch.device("cpu")
GAMMA = 8.0


def make_problem(n_rows, n_features=24, n_clusters=40, seed=0):
    """Return clustered unit vectors, as captions are, with ridges and targets."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((n_clusters, n_features))
    rows = centers[rng.integers(n_clusters, size=n_rows)]
    rows = normalize(rows + 0.7 * rng.standard_normal(rows.shape)).astype(np.float32)
    ridge = (0.3 / rng.integers(1, 20, n_rows)).astype(np.float32)
    return rows, ridge, rng.standard_normal((n_rows, 5)).astype(np.float32)


def solve_in_double_precision(rows, ridge, targets):
    kernel = np.exp(GAMMA * (rows.astype(np.float64) @ rows.T.astype(np.float64) - 1))
    model = KernelRidge(alpha=1.0, kernel="precomputed")
    # Weights w make the ridge 1 / w.
    return model.fit(kernel, targets, sample_weight=1 / ridge).dual_coef_


@pytest.mark.parametrize("n_rows", [1, 7, 300])
@pytest.mark.parametrize("block_size", [2, 64, 2048])
def test_direct_solution_equals_scikit_learn(monkeypatch, n_rows, block_size):
    monkeypatch.setattr(_kernel_ridge, "_BLOCK_SIZE", block_size)
    rows, ridge, targets = make_problem(n_rows)
    solution = solve_kernel_ridge(rows, ridge, targets, GAMMA, CPU).coefficients
    assert solution.dtype == np.float32
    np.testing.assert_allclose(
        solution, solve_in_double_precision(rows, ridge, targets), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("n_held_out", [0, 1, 90])
def test_residuals_are_those_of_the_solution_without_the_held_out_rows(monkeypatch, n_held_out):
    """They come from the decomposition of all rows; a second solution takes as long as the first.

    The held-out rows span several blocks of the decomposition.
    """
    monkeypatch.setattr(_kernel_ridge, "_BLOCK_SIZE", 64)
    rows, ridge, targets = make_problem(300)
    residuals = solve_kernel_ridge(rows, ridge, targets, GAMMA, CPU, 0, n_held_out).residuals
    train, held_out = slice(300 - n_held_out), slice(300 - n_held_out, None)
    coefficients = solve_in_double_precision(rows[train], ridge[train], targets[train])
    kernel = np.exp(GAMMA * (rows[held_out].astype(np.float64) @ rows[train].T - 1))
    np.testing.assert_allclose(residuals, targets[held_out] - kernel @ coefficients, atol=1e-4)


def test_iterative_solution_equals_the_direct_one(monkeypatch):
    """Few landmarks, so that the preconditioner is far from exact."""
    rows, ridge, targets = make_problem(1200)
    direct = solve_kernel_ridge(rows, ridge, targets, GAMMA, CPU).coefficients
    monkeypatch.setattr(_kernel_ridge, "_N_LANDMARKS", 50)
    monkeypatch.setattr(_kernel_ridge, "count_fitting_anchors", lambda *args: 100)
    iterative = solve_kernel_ridge(rows, ridge, targets, GAMMA, CPU).coefficients
    assert not np.array_equal(iterative, direct)
    np.testing.assert_allclose(iterative, direct, atol=2e-3 * np.abs(direct).max())


def test_iterations_that_do_not_converge_raise(monkeypatch):
    rows, ridge, targets = make_problem(1200)
    monkeypatch.setattr(_kernel_ridge, "_N_LANDMARKS", 5)
    monkeypatch.setattr(_kernel_ridge, "_MAX_ITERATIONS", 2)
    monkeypatch.setattr(_kernel_ridge, "count_fitting_anchors", lambda *args: 100)
    with pytest.raises(ValueError, match="ridge is too small: conjugate gradients"):
        solve_kernel_ridge(rows, ridge, targets, GAMMA, CPU)


def test_singular_matrix_is_freed_before_the_next_is_made():
    arrays = []

    def make_rows():
        assert all(array() is None for array in arrays)
        matrix = np.ones((4, 4), np.float32)
        arrays.append(weakref.ref(matrix))
        return get_lower_rows(torch.from_numpy(matrix))

    solve_positive_definite(make_rows, torch.ones(4, 1))
    assert len(arrays) > 1


def test_number_of_anchors_follows_from_the_memory(monkeypatch):
    """30 % of 32 GB is half of the matrix of 69,282 anchors in single precision."""
    monkeypatch.setattr(_kernel_ridge, "measure_available_memory", lambda device: 32 * 10**9)
    assert _kernel_ridge.count_fitting_anchors(CPU) == 69_282
    monkeypatch.setattr(_kernel_ridge, "measure_available_memory", lambda device: 0)
    assert _kernel_ridge.count_fitting_anchors(CPU) == 2048


def test_auto_uses_as_many_anchors_as_memory_allows(monkeypatch, concepts):
    monkeypatch.setattr(_kernel_ridge, "_MIN_ANCHORS", 10)
    monkeypatch.setattr(_kernel_ridge, "measure_available_memory", lambda device: 97_000)
    for n_captions in (100, 120, 300):
        aligner = KernelAligner().fit(concepts.image[:n_captions], concepts.text[:n_captions])
        n_anchors = min(n_captions, 120)
        assert aligner.module_.text_head.base.anchors.shape == (n_anchors, 16)


def test_more_anchors_than_memory_allows_are_solved_iteratively(monkeypatch, concepts):
    exact = KernelAligner().fit(concepts.image, concepts.text)
    monkeypatch.setattr(_kernel_ridge, "count_fitting_anchors", lambda *args: 120)
    aligner = KernelAligner(max_anchors=1000).fit(concepts.image, concepts.text)
    assert aligner.fingerprint_ != exact.fingerprint_
    np.testing.assert_allclose(
        aligner.transform_text(concepts.text), exact.transform_text(concepts.text), atol=1e-3
    )


class TestChooseAnchors:
    def test_texts_of_most_images_are_chosen(self):
        counts = np.array([1, 5, 2, 9, 1, 3])
        chosen = choose_anchors(counts, 3, np.random.RandomState(0))
        np.testing.assert_array_equal(chosen, [1, 3, 5])

    def test_ties_are_broken_at_random_and_reproducibly(self):
        counts = np.append(np.ones(500), 2)
        first, again, other = (
            choose_anchors(counts, 80, np.random.RandomState(seed)) for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        assert len(np.unique(first)) == 80
        assert {first[-1], other[-1]} == {500}
