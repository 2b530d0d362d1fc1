"""Softmax regression on images that is pulled towards the texts of the classes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from ..aligners.fitted_images import group_equal_images
from ..aligners.wrapper import embed_with_features
from ..metrics import expected_calibration_error
from ..utils.concurrency import map_threaded, single_threaded_blas
from ..utils.linalg import find_directions, normalize_rows, solve_softmax_regression
from ..utils.messages import make_progress_bar

# Feature that is appended to the vectors for the intercept. It is smaller than their norm, so the
# intercept is penalized more than the other coefficients: it may follow frequent classes, but a
# few examples do not suffice to prefer their classes everywhere. It is 0 unless all classes have
# examples, since it would move images of the other classes to those with examples.
_INTERCEPT_FEATURE = 0.3
# Folds of the cross-validation from which accuracy and temperature are estimated. More of them
# take more time.
_N_FOLDS = 3
# The regression is restricted to this number of principal directions of the examples. More of
# them did not improve accuracies with 16 to 100 images per class.
_MAX_DIRECTIONS = 640
# Largest component of the gradient at the solution, relative to that at the names alone: this
# multiple of alpha, within bounds. For the default alpha and many examples it is 3e-3, a third of
# which changes accuracies by less than sampling does. With a smaller alpha the gradient is small
# long before the solution: with 3e-3 and alpha=6e-5, accuracies were up to 5 points lower. Few
# examples are solved more precisely, which takes little time: the temperature depends on it.
_TOLERANCE_PER_ALPHA = 0.5
_MIN_TOLERANCE, _MAX_TOLERANCE = 1e-5, 3e-3
_MANY_EXAMPLES = 1000
# Folds are solved by a thread each if a product of matrices has this many operations. With fewer
# ones, threads would wait for Python. More are computed by all threads of BLAS together, which
# wait for each other: smaller fits took 3 to 10 times as long if another program used a core.
_MIN_THREADED, _MAX_THREADED = 2e7, 1e9
# Standard deviation of the logarithm of the temperature, before the examples are known.
_TEMPERATURE_STD = 0.3
# The same for a weight of the names below and above 1. Wrong names must lose their influence with
# one example per class already. Only many examples may raise the weight: names of which the logit
# scale is too low may nevertheless say less than the examples.
_NAME_WEIGHT_STD = 1.2, 0.1
# Names of which the best weight u is below this are doubted. With one example per class, their
# weight is u / 0.75: on 34 collections, the accuracy differed by -0.9 to 2.2 points from that with
# 1, or (2 u)^2 below 0.5.
_DOUBTED_WEIGHT = 0.75
# With more examples, u or this weight, whichever is smaller, is compared with 1 in a
# cross-validation. On 23 collections, the accuracy with two per class changed by -0.8 to 5.4
# points.
_MAX_VALIDATED_WEIGHT = 0.5
# With more examples per class than this, the penalty is multiplied by these factors as long as the
# loss of the cross-validation decreases. Without them, many examples are fitted too closely if
# classes overlap: with 200 images of clip art per category, 75 instead of 78 % were right.
_MANY_PER_CLASS = 20
_PENALTY_FACTORS = (4, 16, 64)
# Weakest penalty, per mean weight, that a solution in single precision depends on. Without this
# limit, a cross-validation of 40 classes of emoji predicted 36 instead of 57 % right with 1e-9.
_MIN_ALPHA = 1e-5
# The strength of the penalty at which the adjustments were chosen. A stronger penalty lets the
# examples, and so the adjustments, change less.
_DEFAULT_ALPHA = 0.006
# Largest share of the images that are expected to belong to classes without examples, if most
# classes have none.
_MAX_NEW_SHARE = 0.9
# Largest weighted share of the examples predicted right that the adjustments may lose.
_MAX_LOST_SHARE = 0.1


class Examples(NamedTuple):
    """L2-normalized embeddings of labelled images, indices of their classes, and weights > 0.

    `features` are the image features. They are None for examples of earlier versions, whose
    classes are found by the embeddings alone.
    """

    embeddings: np.ndarray
    codes: np.ndarray
    weights: np.ndarray
    features: np.ndarray | None = None

    @classmethod
    def from_images(cls, aligner: Any, X: Any) -> Self:
        """Return images of class 0 with weight 1; embeddings of unreadable ones are NaN."""
        embeddings, features = embed_with_features(aligner, X)
        n_images = len(embeddings)
        return cls(embeddings, np.zeros(n_images, np.int64), np.ones(n_images), features)

    def select(self, rows: np.ndarray) -> Examples:
        return Examples._make(None if part is None else part[rows] for part in self)

    def extend(self, other: Examples) -> Examples:
        """Return these examples followed by others, with features if both have them."""
        return Examples._make(
            None if part is None or added is None else np.concatenate([part, added])
            for part, added in zip(self, other, strict=True)
        )

    def find_copies(self) -> np.ndarray:
        """Return the number of a group for each example; copies of an image are in one group."""
        # Features are preferred: the same image has the same ones in every call if they are
        # cached. Embeddings differ by rounding, which is hard to allow for if they have few
        # components.
        return group_equal_images(self.embeddings if self.features is None else self.features)

    def find_center(self) -> np.ndarray | None:
        """Return the mean of the features."""
        if self.features is None or not len(self.codes):
            return None
        return np.average(self.features, axis=0, weights=self.weights).astype(np.float32)


def make_vectors(
    embeddings: np.ndarray, features: np.ndarray | None, center: np.ndarray | None
) -> np.ndarray:
    """Return the vectors of images that a probe takes.

    A vector is the embedding, followed by the image features relative to their mean in the
    examples, L2-normalized. Without a mean, it is the embedding. An aligner is trained to match
    captions, so that its embeddings lose details that captions do not mention. Higher weights of
    the features are better for images unlike the aligner's training images, and worse
    for images like them.
    """
    if center is None or features is None:
        return embeddings
    return np.hstack([embeddings, normalize_rows(features - center)])


class Probe(NamedTuple):
    """Fitted softmax regression, whose logits are ``vectors @ coef.T + intercept``.

    `temperature` calibrates the logits. It is fitted, and `accuracy` and `calibration_error` are
    measured, on predictions of a cross-validation. If no class has two examples, or only one class
    has any, the measures are NaN, and the temperature is based on the names alone.
    """

    coef: np.ndarray
    intercept: np.ndarray
    temperature: float
    accuracy: float
    calibration_error: float


def fit_probe(
    examples: Examples, vectors: np.ndarray, text: np.ndarray, scale: float, alpha: float
) -> Probe:
    """Fit a softmax regression that equals the zero-shot classifier without examples.

    The logits are ``scale * (a @ text.T) + r @ residual``, where a is an embedding and r is the
    vector of the image with a constant feature. With w the weight of the names, the residual
    minimizes the sum of the weighted cross entropies of w times the logits, plus ``alpha / 2``
    times the squared norm of w times the residual. The logits are divided by ``temperature / w``.
    With many examples, alpha is multiplied by a factor that a cross-validation chooses. If some
    classes have no examples, what the embeddings share is subtracted from a and r, and the logits
    of the other classes are adjusted; see `FewShotClassifier`.
    """
    n_operations = len(vectors) * min(*vectors.shape, _MAX_DIRECTIONS) * len(text)
    with (
        make_progress_bar(None, None, desc="Solving") as progress,
        single_threaded_blas() if n_operations <= _MAX_THREADED else nullcontext(1) as n_threads,
    ):
        if n_operations < _MIN_THREADED:
            n_threads = 1
        options: dict[str, Any] = {"n_threads": n_threads, "report_iteration": progress.update}
        make_problem = partial(_Problem, examples, vectors, text, scale, **options)
        problem, name_weight, validation = _choose_penalty(make_problem, alpha)
        residual = problem.solve(name_weight) / name_weight
    n_components = text.shape[1]
    coef = residual[:-1].T.copy()
    coef[:, :n_components] += scale * text
    intercept = _INTERCEPT_FEATURE * residual[-1] - coef @ problem.center
    temperature = validation.temperature / name_weight
    logits = (problem.name_logits + problem.inputs @ residual) / temperature
    adjustments = _limit_adjustments(
        problem.compute_adjustments(), logits, problem.codes, problem.weights
    )
    intercept -= adjustments * temperature
    return Probe(
        coef.astype(np.float32),
        intercept.astype(np.float32),
        temperature,
        validation.accuracy,
        validation.calibration_error,
    )


def _limit_adjustments(
    adjustments: np.ndarray, logits: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return adjustments multiplied by a factor with which most examples are predicted as before.

    With a small alpha or high weights, adjustments may exceed what the examples change. Corrected
    images would be predicted wrongly again.
    """

    def score(factor: float) -> float:
        is_right = (logits - factor * adjustments).argmax(axis=1) == codes
        return float(np.sum(weights * is_right))

    least = (1 - _MAX_LOST_SHARE) * score(0)
    factor = next(factor for factor in np.linspace(1, 0, 21) if score(factor) >= least)
    return factor * adjustments


class _Problem:
    """Optimization problem of `fit_probe`, in coordinates that make it well-conditioned."""

    def __init__(
        self,
        examples: Examples,
        vectors: np.ndarray,
        text: np.ndarray,
        scale: float,
        alpha: float,
        n_threads: int = 1,
        report_iteration: Callable[[], object] = lambda: None,
    ) -> None:
        self.examples, self.report_iteration = examples, report_iteration
        self.n_threads = n_threads
        self.solutions: dict[float, np.ndarray] = {}  # of all examples, by weight of the names
        self.codes, self.n_classes = examples.codes, len(text)
        n = len(self.codes)
        # Only ratios of weights and alpha matter. With weights of mean 1, alpha determines how
        # precise and how well-conditioned the solution must be.
        mean_weight = examples.weights.mean()
        self.weights = examples.weights / mean_weight
        self.alpha = max(alpha / mean_weight, _MIN_ALPHA)
        tolerance = _TOLERANCE_PER_ALPHA * self.alpha * min(1, n / _MANY_EXAMPLES)
        self.tolerance = np.clip(tolerance, _MIN_TOLERANCE, _MAX_TOLERANCE)
        self.has_all_classes = len(np.unique(self.codes)) == self.n_classes
        constant = np.full((n, 1), _INTERCEPT_FEATURE if self.has_all_classes else 0, np.float32)
        self.center = self._find_shared_part(vectors, text.shape[1])
        embeddings = examples.embeddings - self.center[: text.shape[1]]
        self.name_logits = np.float32(scale) * (embeddings @ text.T)
        self.inputs = np.hstack([vectors - self.center, constant])
        # The residual is a linear combination of the inputs (representer theorem), so the
        # smaller one of the two Gram matrices yields all its coordinates.
        self.is_wide = n < self.inputs.shape[1]
        singular, self.directions = find_directions(self.inputs, self.is_wide, _MAX_DIRECTIONS)
        # The Hessian of the cross entropy is that of least squares times p * (1 - p), which is
        # about a fiftieth per class at the solution, where most examples are fitted well. Dividing
        # by the root of the Hessian makes all directions about equally curved.
        self.scales = 1 / np.sqrt(singular**2 / (50 * max(self.n_classes, 2)) + self.alpha)
        projected = self.directions * singular if self.is_wide else self.inputs @ self.directions
        self.projected_inputs = (projected * self.scales).astype(np.float32)
        self.singular_values = singular

    def _find_shared_part(self, vectors: np.ndarray, n_components: int) -> np.ndarray:
        """Return what the embeddings of all images probably share, as a vector to subtract.

        If some classes have no examples, the others must not claim images for what they share.
        The mean of the classes also has some of what distinguishes them, so it is shrunk by the
        estimated share of that (James and Stein). The features have been centered before.
        """
        center = np.zeros(vectors.shape[1], dtype=np.float32)
        classes, index = np.unique(self.codes, return_inverse=True)
        if 1 < len(classes) < self.n_classes:
            members = np.eye(len(classes), dtype=np.float32)[index] * self.weights[:, None]
            means = members.T @ vectors[:, :n_components] / members.sum(axis=0)[:, None]
            mean, variance = means.mean(axis=0), means.var(axis=0, ddof=1).sum() / len(classes)
            center[:n_components] = mean * max(0, 1 - variance / max(mean @ mean, 1e-12))
        return center

    def find_share_without_examples(self, rows: Any = slice(None)) -> float:
        return 1 - len(np.unique(self.codes[rows])) / self.n_classes

    def compute_adjustments(self, rows: Any = slice(None)) -> np.ndarray:
        """Return what the calibrated logit of each class is reduced by.

        It is 0 for classes without examples, and for all if each has one. The examples say that no
        image belongs to a class without examples. This lowers its logit for all images, and more
        so if the other classes have more examples. These values were chosen on eight collections,
        with examples of 10, 50 and 90 % of the classes.
        """
        if self.has_all_classes:
            return np.zeros(self.n_classes)
        counts = np.bincount(self.codes[rows], self.weights[rows], self.n_classes)
        share = self.find_share_without_examples(rows)
        return np.log1p(counts * share * _DEFAULT_ALPHA / self.alpha)

    def solve(self, name_weight: float) -> np.ndarray:
        """Return the residual that is best for all examples, one column per class."""
        if name_weight not in self.solutions:
            every_row = np.arange(len(self.codes))
            self.solutions[name_weight] = self.solve_coordinates(every_row, name_weight)
        coordinates = self.scales[:, None] * self.solutions[name_weight]
        if not self.is_wide:
            return self.directions @ coordinates
        return self.inputs.T @ (self.directions @ (coordinates / self.singular_values[:, None]))

    def solve_folds(self, folds: np.ndarray, name_weight: float) -> list[np.ndarray]:
        """Return, for each fold, the coordinates that are best for the examples of the others.

        Several threads also solve all examples at the same time, so that none of them waits.
        """
        row_sets = [np.flatnonzero(folds != fold) for fold in range(folds.max() + 1)]
        solve = partial(self.solve_coordinates, name_weight=name_weight)
        if self.n_threads == 1:  # a pool would delay KeyboardInterrupt
            return list(map(solve, row_sets))
        every_row = np.arange(len(folds))
        *results, solution = map_threaded(solve, [*row_sets, every_row], self.n_threads)
        self.solutions[name_weight] = solution
        return results

    def solve_coordinates(self, rows: np.ndarray, name_weight: float) -> np.ndarray:
        """Return the coordinates of the residual that is best for some of the examples."""
        return solve_softmax_regression(
            self.projected_inputs[rows],
            np.float32(name_weight) * self.name_logits[rows],
            self.codes[rows],
            self.weights[rows].astype(np.float32),
            self.alpha * self.scales**2,
            self.tolerance,
            self.report_iteration,
        )


class _Validation(NamedTuple):
    """Loss of held-out examples at a temperature, and the measures of `Probe`."""

    loss: float
    temperature: float
    accuracy: float
    calibration_error: float


def _choose_penalty(
    make_problem: Callable[[float], _Problem], alpha: float
) -> tuple[_Problem, float, _Validation]:
    """Return the problem with the best penalty, and what `_choose_name_weight` returns for it."""
    problem = make_problem(alpha)
    best = problem, *_choose_name_weight(problem)
    has_many = len(problem.codes) > _MANY_PER_CLASS * len(np.unique(problem.codes))
    for factor in _PENALTY_FACTORS if has_many else ():
        problem = make_problem(factor * alpha)
        name_weight, validation = _choose_name_weight(problem)
        if not validation.loss < best[2].loss:  # NaN without a cross-validation
            break
        best = problem, name_weight, validation
    return best


def _choose_name_weight(problem: _Problem) -> tuple[float, _Validation]:
    """Return the weight of the names, and the results of a cross-validation with it.

    The names have not seen the examples, so that the weight with which they alone predict the
    examples best can be found without held-out ones. If a cross-validation is possible, a weight
    below 1 must be better in it. A weight above 1 would gain less than half a point there.
    """
    weight = _fit_name_weight(problem)
    folds, is_tested = _make_folds(problem)
    if not is_tested.any():
        return _choose_name_weight_untested(problem, weight)
    validation = _cross_validate(problem, 1.0, folds, is_tested)
    if weight < _DOUBTED_WEIGHT:
        weight = min(weight, _MAX_VALIDATED_WEIGHT)
        other = _cross_validate(problem, weight, folds, is_tested)
        if other.loss < validation.loss:
            return weight, other
    return 1.0, validation


def _fit_name_weight(problem: _Problem) -> float:
    """Return the weight with which the names alone predict the examples best.

    It is at least 1 if a class has no examples.
    """
    # The temperature is the inverse of the weight: one above 1 is a weight below 1.
    temperature, _ = _fit_temperature(
        problem.name_logits, problem.codes, problem.examples.weights, _NAME_WEIGHT_STD[::-1]
    )
    # The examples may be corrections of wrong predictions, whose names are always wrong.
    may_be_corrections = not problem.has_all_classes
    return max(1 / temperature, 1.0) if may_be_corrections else 1 / temperature


def _choose_name_weight_untested(problem: _Problem, weight: float) -> tuple[float, _Validation]:
    """Return what `_choose_name_weight` does if no cross-validation is possible."""
    # Without held-out examples, the only evidence of overconfidence is that of the names.
    temperature = 1.0
    if problem.has_all_classes:
        codes, weights = problem.codes, problem.examples.weights
        temperature = max(1.0, _fit_temperature(problem.name_logits, codes, weights)[0])
    validation = _Validation(np.nan, temperature, np.nan, np.nan)
    if problem.n_classes == 1:
        return 1.0, validation
    # The quotient has no jump at the largest weight that is doubted.
    return min(weight / _DOUBTED_WEIGHT, 1.0) if weight < 1 else weight, validation


def _make_folds(problem: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the fold of each example, and a mask of the examples to measure."""
    codes = problem.codes
    # Copies of an image are in the same fold, since they would be predicted from each other.
    _, first, copy_of = np.unique(
        problem.examples.find_copies(), return_index=True, return_inverse=True
    )
    counts = np.bincount(codes[first], minlength=problem.n_classes)
    # Classes with one example would be predicted from their names alone. Examples of a single
    # class are nearly always predicted as it, which would make probabilities extreme.
    is_tested = (counts[codes] >= 2) & (np.count_nonzero(counts) > 1)
    n_folds = min(_N_FOLDS, int(counts.max()))
    # Examples of each class are distributed in turns. Classes begin at different folds, so that
    # the folds have about the same size. They are in the order of their first examples, so that
    # the folds do not depend on the names.
    _, start, class_of = np.unique(codes, return_index=True, return_inverse=True)
    order = np.lexsort((first, start[class_of[first]]))
    folds = np.empty(len(first), dtype=np.intp)
    folds[order] = np.arange(len(first)) % n_folds
    return folds[copy_of.ravel()], is_tested


def _cross_validate(
    problem: _Problem, name_weight: float, folds: np.ndarray, is_tested: np.ndarray
) -> _Validation:
    """Return the temperature, the accuracy and the calibration error of held-out examples."""
    predictions = _predict_held_out(problem, name_weight, folds).select(is_tested)
    if 1 < len(np.unique(problem.codes)) < problem.n_classes:
        predictions = _add_new_classes(predictions, problem, name_weight)
    logits, adjustments, codes, weights = predictions
    temperature, loss = _fit_temperature(logits, codes, weights, adjustments=adjustments)
    proba = softmax(logits.astype(np.float64) / temperature - adjustments, axis=1)
    accuracy = float(np.average(proba.argmax(axis=1) == codes, weights=weights))
    error = expected_calibration_error(
        codes, proba, labels=np.arange(problem.n_classes), sample_weight=weights
    )
    return _Validation(loss, temperature, accuracy, error)


class _Predictions(NamedTuple):
    """Logits and adjustments of held-out examples, their classes and weights."""

    logits: np.ndarray
    adjustments: np.ndarray
    codes: np.ndarray
    weights: np.ndarray

    def select(self, rows: np.ndarray) -> _Predictions:
        return _Predictions._make(part[rows] for part in self)


def _add_new_classes(
    predictions: _Predictions, problem: _Problem, name_weight: float
) -> _Predictions:
    """Add predictions that represent the images of classes without examples.

    They are predictions of the examples of each class by those of other classes, with weights as
    if all classes were equally frequent.
    """
    seen, start, class_of = np.unique(problem.codes, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(start))  # in the order of the first examples, as in `_make_folds`
    class_folds = rank[class_of] % min(_N_FOLDS, len(seen))
    added = _predict_held_out(problem, name_weight, class_folds)
    share = min(_MAX_NEW_SHARE, problem.find_share_without_examples())
    total = predictions.weights.sum()
    # The ratios first: products of tiny or huge weights would underflow or overflow.
    predictions = predictions._replace(weights=predictions.weights * (total * (1 - share) / total))
    added = added._replace(weights=added.weights * (total * share / added.weights.sum()))
    return _Predictions._make(map(np.concatenate, zip(predictions, added, strict=True)))


def _predict_held_out(problem: _Problem, name_weight: float, folds: np.ndarray) -> _Predictions:
    """Predict the examples of each fold by the other folds."""
    logits = np.float32(name_weight) * problem.name_logits
    adjustments = np.zeros(logits.shape)
    for fold, coordinates in enumerate(problem.solve_folds(folds, name_weight)):
        is_held_out = folds == fold
        logits[is_held_out] += problem.projected_inputs[is_held_out] @ coordinates
        adjustments[is_held_out] = problem.compute_adjustments(~is_held_out)
    return _Predictions(logits, adjustments, problem.codes, problem.examples.weights)


def _fit_temperature(
    logits: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray,
    stds: tuple[float, float] = (_TEMPERATURE_STD, _TEMPERATURE_STD),
    adjustments: np.ndarray | float = 0.0,
) -> tuple[float, float]:
    """Return the most probable temperature and its loss. Few examples change it little from 1.

    `stds` are the standard deviations of its logarithm below and above 0, and `adjustments` are
    subtracted from the logits after the division by the temperature.
    """
    order = np.arange(len(codes))
    logits = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        log_proba = log_softmax(logits / np.exp(log_temperature) - adjustments, axis=1)
        prior = (log_temperature / stds[int(log_temperature > 0)]) ** 2 / 2
        return float(prior - np.sum(weights * log_proba[order, codes]))

    result = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded")
    return float(np.exp(result.x)), float(result.fun)
