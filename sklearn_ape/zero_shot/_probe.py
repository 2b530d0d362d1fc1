"""Softmax regression on image embeddings that is pulled towards the texts of the classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from ..metrics import expected_calibration_error

# Feature that is appended to the embeddings for the intercept. Embeddings have unit norm, so the
# intercept is penalized more than the other coefficients: it may follow frequent classes, but a
# few examples do not suffice to prefer their classes everywhere. It is 0 unless all classes have
# examples, since it would move images of the other classes to those with examples.
_INTERCEPT_FEATURE = 0.3
_N_FOLDS = 3
# Largest component of the gradient at the solution, relative to that at the names alone. A tenth
# of it changes accuracies by less than 0.1 %. The folds need less precision.
_TOLERANCE, _FOLD_TOLERANCE = 1e-3, 1e-2
# Standard deviation of the logarithm of the temperature, before the examples are known.
_TEMPERATURE_STD = 0.3


class Examples(NamedTuple):
    """L2-normalized embeddings of labelled images, indices of their classes, and weights > 0."""

    embeddings: np.ndarray
    codes: np.ndarray
    weights: np.ndarray

    def select(self, rows: np.ndarray) -> Examples:
        return Examples(self.embeddings[rows], self.codes[rows], self.weights[rows])

    def extend(self, other: Examples) -> Examples:
        """Return these examples followed by others."""
        return Examples(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Probe(NamedTuple):
    """Fitted softmax regression, whose logits are ``embeddings @ coef.T + intercept``.

    `temperature` calibrates the logits. It is fitted, and `accuracy` and `calibration_error` are
    measured, on predictions of a cross-validation. If no class has two examples, they are 1, NaN
    and NaN.
    """

    coef: np.ndarray
    intercept: np.ndarray
    temperature: float
    accuracy: float
    calibration_error: float


def fit_probe(examples: Examples, text: np.ndarray, scale: float, alpha: float) -> Probe:
    """Fit a softmax regression that equals the zero-shot classifier without examples.

    The logits are ``scale * (a @ text.T) + r @ residual``, where a is an embedding and r is a with
    a constant feature. The residual minimizes the sum of the weighted cross entropies plus ``alpha
    / 2`` times its squared norm.
    """
    problem = _Problem(examples, text, scale, alpha)
    residual = problem.solve(np.arange(len(examples.codes)))
    coef = scale * text + residual[:-1].T
    intercept = _INTERCEPT_FEATURE * residual[-1]
    temperature, accuracy, error = _cross_validate(problem)
    return Probe(
        coef.astype(np.float32), intercept.astype(np.float32), temperature, accuracy, error
    )


class _Problem:
    """Optimization problem of `fit_probe`, in coordinates that make it well-conditioned."""

    def __init__(self, examples: Examples, text: np.ndarray, scale: float, alpha: float) -> None:
        self.examples = examples
        n, self.n_classes = len(examples.codes), len(text)
        self.alpha = alpha
        self.base = np.float32(scale) * (examples.embeddings @ text.T)
        has_intercept = len(np.unique(examples.codes)) == self.n_classes
        constant = np.full((n, 1), _INTERCEPT_FEATURE if has_intercept else 0, np.float32)
        features = np.hstack([examples.embeddings, constant]).astype(np.float64)
        # The residual is a linear combination of the features (representer theorem), so the
        # smaller one of the two Gram matrices yields all its coordinates.
        is_wide = n < features.shape[1]
        gram = features @ features.T if is_wide else features.T @ features
        eigenvalues, vectors = eigh(gram)
        kept = eigenvalues > 1e-10 * eigenvalues[-1]
        singular, vectors = np.sqrt(eigenvalues[kept]), vectors[:, kept]
        directions = features.T @ vectors / singular if is_wide else vectors
        # The Hessian of the cross entropy is about that of least squares, divided by the number of
        # classes. Dividing by its root makes all directions about equally curved.
        self.root = 1 / np.sqrt(singular**2 / max(self.n_classes, 2) + alpha)
        self.directions = directions * self.root
        self.inputs = (features @ self.directions).astype(np.float32)

    def solve(self, rows: np.ndarray) -> np.ndarray:
        """Return the residual that is best for these examples, one column per class."""
        return self.directions @ self.solve_coordinates(rows, _TOLERANCE)

    def solve_coordinates(self, rows: np.ndarray, tolerance: float) -> np.ndarray:
        inputs, base = self.inputs[rows], self.base[rows]
        codes, weights = self.examples.codes[rows], self.examples.weights[rows]
        order, shape = np.arange(len(rows)), (len(self.root), self.n_classes)
        curvature = self.alpha * self.root[:, None] ** 2

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            coordinates = flat.reshape(shape)
            log_proba = log_softmax(base + inputs @ coordinates.astype(np.float32), axis=1)
            value = -np.sum(weights * log_proba[order, codes], dtype=np.float64)
            errors = np.exp(log_proba)
            errors[order, codes] -= 1
            errors *= weights[:, None]
            gradient = (inputs.T @ errors).astype(np.float64) + curvature * coordinates
            return value + np.sum(curvature * coordinates**2) / 2, gradient.ravel()

        start = np.zeros(shape).ravel()
        # Conjugate gradients need less time per iteration than scipy's L-BFGS, and in these
        # coordinates no more iterations.
        options = {"maxiter": 200, "gtol": tolerance * np.abs(loss(start)[1]).max()}
        result = minimize(loss, start, jac=True, method="CG", options=options)
        return result.x.reshape(shape)


def _cross_validate(problem: _Problem) -> tuple[float, float, float]:
    """Return the temperature, the accuracy and the calibration error of held-out examples."""
    codes, weights = problem.examples.codes, problem.examples.weights
    counts = np.bincount(codes, minlength=problem.n_classes)
    # Classes with one example would be predicted from their names alone.
    is_tested = counts[codes] >= 2
    if not is_tested.any() or problem.n_classes == 1:
        return 1.0, np.nan, np.nan
    n_folds = min(_N_FOLDS, int(counts.max()))
    # Examples of each class are distributed in turns. Classes begin at different folds, so that
    # the folds have about the same size.
    order = np.argsort(codes, kind="stable")
    folds = np.empty(len(codes), dtype=np.intp)
    folds[order] = np.arange(len(codes)) % n_folds
    logits = problem.base.copy()
    for fold in range(n_folds):
        is_held_out = folds == fold
        coordinates = problem.solve_coordinates(np.flatnonzero(~is_held_out), _FOLD_TOLERANCE)
        logits[is_held_out] += problem.inputs[is_held_out] @ coordinates.astype(np.float32)
    logits, codes, weights = logits[is_tested], codes[is_tested], weights[is_tested]
    temperature = _fit_temperature(logits, codes, weights)
    proba = softmax(logits.astype(np.float64) / temperature, axis=1)
    accuracy = float(np.average(proba.argmax(axis=1) == codes, weights=weights))
    error = expected_calibration_error(codes, proba, labels=np.arange(problem.n_classes))
    return temperature, accuracy, error


def _fit_temperature(logits: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> float:
    """Return the most probable temperature. Few examples change it little from 1."""
    order = np.arange(len(codes))
    logits = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        log_proba = log_softmax(logits / np.exp(log_temperature), axis=1)
        prior = (log_temperature / _TEMPERATURE_STD) ** 2 / 2
        return float(prior - np.sum(weights * log_proba[order, codes]))

    bounds = (-4.0, 4.0)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
