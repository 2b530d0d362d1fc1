"""Numerical linear algebra."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from sklearn_ape.utils.linalg import (
    compute_covariance,
    compute_mean,
    eigh_of_covariance,
    solve_softmax_regression,
)


@pytest.mark.parametrize(("n_rows", "n_eigenvalues"), [(30, 30), (50, 50), (51, 100)])
def test_eigenvectors_give_the_covariance(n_rows, n_eigenvalues):
    """Those of fewer rows than features are computed in the space of the rows."""
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((80, 100)) * np.arange(1, 101)).astype(np.float32)
    rows = rng.integers(0, 80, n_rows)  # some are repeated
    center = compute_mean(features, rows)
    matrix = compute_covariance(features, features, (rows, rows), (center, center))
    variances, directions = eigh_of_covariance(matrix, features, rows, center)
    assert variances.shape == (n_eigenvalues,)
    assert (np.diff(variances) >= 0).all()
    np.testing.assert_allclose(directions.T @ directions, np.eye(n_eigenvalues), atol=1e-12)
    np.testing.assert_allclose(directions * variances @ directions.T, matrix, atol=1e-9)


def draw_regression(n_rows, n_inputs, n_classes, weights):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((n_rows, n_inputs)) * np.geomspace(1, 0.01, n_inputs)
    base = 3 * rng.standard_normal((n_rows, n_classes))
    codes = (base + inputs @ rng.standard_normal((n_inputs, n_classes))).argmax(axis=1)
    return inputs, base, codes, np.resize(weights, n_rows)


@pytest.mark.parametrize("penalty", [1e-4, 1.0])
@pytest.mark.parametrize("weights", [[1], [1e-3, 1, 300]], ids=["equal", "unequal"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (6, 5, 3), (60, 80, 2), (200, 40, 20)])
def test_softmax_regression_minimizes_its_loss(shape, weights, penalty):
    """The gradient becomes small, and L-BFGS in double precision finds no better solution."""
    inputs, base, codes, weights = draw_regression(*shape, weights)
    rows, penalties = np.arange(len(inputs)), np.linspace(penalty, 2 * penalty, inputs.shape[1])

    def loss(flat):
        coef = flat.reshape(inputs.shape[1], -1)
        log_proba = log_softmax(base + inputs @ coef, axis=1)
        errors = weights[:, None] * np.exp(log_proba)
        errors[rows, codes] -= weights
        value = penalties @ (coef**2).sum(axis=1) / 2 - weights @ log_proba[rows, codes]
        return value, (inputs.T @ errors + penalties[:, None] * coef).ravel()

    start = np.zeros(inputs.shape[1] * base.shape[1])
    options = {"gtol": 1e-9, "ftol": 0, "maxiter": 5000, "maxfun": 10000}
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun
    parts = [part.astype(np.float32) for part in (inputs, base)]
    iterations = []
    coef = solve_softmax_regression(
        *parts, codes, weights.astype(np.float32), penalties, 1e-5, lambda: iterations.append(1)
    )
    value, gradient = loss(coef.ravel())
    largest = np.abs(loss(start)[1]).max()
    assert np.abs(gradient).max() < 1.1e-5 * largest
    assert value - best < 1e-3 * best + 3e-5 * loss(start)[0]
    assert 0 < len(iterations) < 100


def test_softmax_regression_without_inputs_returns_no_coefficients():
    coef = solve_softmax_regression(
        np.zeros((2, 0), np.float32),
        np.zeros((2, 3), np.float32),
        np.array([0, 1]),
        np.ones(2, np.float32),
        np.zeros(0),
        1e-3,
        lambda: None,
    )
    assert coef.shape == (0, 3)


def test_softmax_regression_corrects_certain_predictions():
    """Where the curvature of the loss is 0, the search along a line went to the other extreme."""
    codes = np.arange(40) % 4
    base = np.tile(np.array([20, 0, 0, 0], np.float32), (40, 1))
    ones = np.ones((40, 1), np.float32)
    coef = solve_softmax_regression(
        ones, base, codes, ones[:, 0], np.array([1e-8]), 1e-5, lambda: None
    )
    np.testing.assert_allclose(softmax(base[0] + coef[0]), 0.25, atol=1e-3)


@pytest.mark.parametrize(("weight", "logit"), [(1, 50), (1e-30, 1)])
def test_softmax_regression_stops_if_the_gradient_is_negligible(weight, logit):
    """It divided by zero, and made all iterations for gradients that are lost to rounding."""
    inputs = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    codes = np.arange(6) % 3
    base = logit * np.eye(3, dtype=np.float32)[codes]
    weights = np.full(6, weight, np.float32)
    iterations = []
    with np.errstate(all="raise", under="ignore"):
        coef = solve_softmax_regression(
            inputs, base, codes, weights, np.full(2, 0.1), 1e-5, lambda: iterations.append(1)
        )
    assert len(iterations) == 0
    np.testing.assert_array_equal(coef, 0)
