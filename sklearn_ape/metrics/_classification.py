"""Calibration error, temperature scaling and per-class accuracy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.utils import Bunch, check_array, check_consistent_length

from ..utils.validation import (
    as_labels,
    check_integer,
    distinct_labels,
    format_list,
    ignores_underflow,
)

# A slope of the likelihood below this, per mean difference of logits, is rounding error.
_ROUNDING = 1e-12


@ignores_underflow
def expected_calibration_error(
    y_true: Any, proba: Any, n_bins: int = 15, labels: Any = None
) -> float:
    """Mean gap between how sure a classifier is and how often it is right.

    Predictions are put into bins by the probability of the predicted class; in each the mean
    probability is compared with the share that is right, and the gaps are averaged, weighted by
    the number of predictions.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Classes.
    proba : array-like of shape (n_samples, n_classes)
        Probabilities, each row adding up to 1.
    n_bins : int, default=15
        Bins of equal width. Empty ones do not count.
    labels : array-like of shape (n_classes,) or None, default=None
        Class of every column, a classifier's ``classes_``. None takes the sorted classes of
        `y_true`, which must then be as many as the columns.

    Returns
    -------
    error : float
        Between 0, where probabilities mean what they say, and 1.

    Raises
    ------
    ValueError
        When `proba` holds no probabilities, a class has no column, `labels` repeat, or `n_bins`
        is not an integer of at least 1.

    See Also
    --------
    sklearn.calibration.calibration_curve : The bins of a classifier of two classes, to draw.
    sklearn.metrics.log_loss : Rewards being right as well as being calibrated.

    Notes
    -----
    It depends on `n_bins`, and few samples make it too large: compare on one set of samples.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On Calibration of Modern Neural
       Networks", ICML 2017.

    Examples
    --------
    >>> from sklearn_ape.metrics import expected_calibration_error
    >>> proba = [[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]]
    >>> round(expected_calibration_error(["a", "a", "b", "b"], proba), 3)
    0.3
    """
    check_integer(n_bins, "n_bins", 1)
    proba = check_array(proba, dtype=np.float64, input_name="proba")
    off = np.flatnonzero((np.abs(proba.sum(axis=1) - 1) > 1e-3) | (proba < 0).any(axis=1))
    if off.size:
        raise ValueError(
            f"Row {off[0]} of proba holds no probabilities, which are from 0 and add up to 1: "
            "pass what predict_proba returns."
        )
    columns = _columns(y_true, labels, proba)
    confidence = proba.max(axis=1)
    right = proba.argmax(axis=1) == columns
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    gaps = np.bincount(bins, weights=confidence - right)
    return float(np.abs(gaps).sum() / len(proba))


@ignores_underflow
def fit_temperature(logits: Any, y: Any, labels: Any = None) -> float:
    """Find the temperature by which logits are divided for the best probabilities.

    It minimizes the negative log-likelihood of `y`, and changes no prediction.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_classes)
        What ``decision_function`` returns for samples that were not trained on. ``-inf`` excludes
        a class from a sample; a large negative number such as -1e9 does the same.
    y : array-like of shape (n_samples,)
        Classes.
    labels : array-like of shape (n_classes,) or None, default=None
        Class of every column, such as a classifier's ``classes_``. None takes the sorted classes
        of `y`, of which there must then be as many as columns.

    Returns
    -------
    temperature : float
        Above 0. ``softmax(logits / temperature)`` are the probabilities. A `ZeroShotClassifier`
        gives them with its logit scale divided by it.

    Raises
    ------
    ValueError
        When a class has no column, `labels` repeat, the class of a sample is excluded, or no
        temperature is best: all samples are predicted correctly, the logits are unrelated to the
        classes, or the best temperature is not a positive float64.

    See Also
    --------
    sklearn.calibration.CalibratedClassifierCV : With ``method="temperature"`` (scikit-learn 1.8
        and later) it wraps a classifier together with its temperature. Use it to continue with an
        estimator, and `fit_temperature` for the number alone, for example to fit it on one set of
        classes and use it on others, which a wrapped classifier does not allow.
    expected_calibration_error : The error that a good temperature reduces.

    Notes
    -----
    The likelihood is concave in the inverse temperature. The root of its derivative is searched
    between two bounds that enclose it for all logits, whatever their scale, so that single rows
    or columns of another magnitude do not limit the search.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On Calibration of Modern Neural
       Networks", ICML 2017.
    .. [2] W. LeVine et al., "Enabling Calibration in the Zero-Shot Inference of Large
       Vision-Language Models", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import fit_temperature
    >>> logits = np.tile([10.0, 0.0], (4, 1))  # very confident, and correct for three of four
    >>> round(fit_temperature(logits, [0, 0, 0, 1]), 3)
    9.102
    """
    logits = check_array(logits, dtype=np.float64, ensure_all_finite=False, input_name="logits")
    broken = np.flatnonzero((np.isnan(logits) | (logits == np.inf)).any(axis=1))
    if broken.size:
        raise ValueError(
            f"logits contains NaN or infinity in row {broken[0]}. Only -inf, which excludes a "
            "class, is allowed."
        )
    columns = _columns(y, labels, logits)
    rows = np.arange(len(logits))
    excluded = np.flatnonzero(logits[rows, columns] == -np.inf)
    if excluded.size:
        raise ValueError(
            f"The logit of the class of sample {excluded[0]} is -inf: its probability is 0 at any "
            "temperature. Check that labels names the columns in their order."
        )
    finite = np.isfinite(logits)
    logits, exponent = _scaled(logits, finite)
    margins, more = _scaled(logits - logits[rows, columns][:, None], finite)
    exponent += more
    present = np.where(finite, margins, 0.0)

    # The derivative of the loss at an infinite temperature, where all classes are equally likely.
    slope = np.mean(present.sum(axis=1) / finite.sum(axis=1))
    if slope >= -_ROUNDING * np.abs(present).mean():
        raise ValueError(
            "The logits are unrelated to the classes: the logit of a sample's class is not higher "
            "than the mean of its row. Check that labels names the columns in their order."
        )
    largest = present.max()
    if largest <= 0:
        raise ValueError(
            "The class of every sample has the largest logit, so the likelihood has no maximum: "
            "the lower the temperature, the better. Pass more samples, or harder ones."
        )

    def derivative(log_inverse: float) -> float:
        proba = softmax(np.exp(log_inverse) * margins, axis=1)
        return float(np.mean(np.sum(proba * present, axis=1)))

    # The second derivative is a variance, at most a quarter of the squared range of a row, which
    # bounds the root from below. Above the other bound, the largest margin of a wrong class
    # outweighs those of all others, each of which subtracts at most 1 / (e * inverse).
    n_samples, n_classes = logits.shape
    low = np.log(-slope) - np.log(np.mean(np.ptp(present, axis=1) ** 2) / 4)
    high = np.log(n_samples) + 2 * np.log(n_classes) - 1 - np.log(largest)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        root = brentq(derivative, low - 1, high + 1, xtol=1e-10, maxiter=1000)
        temperature = float(np.ldexp(np.exp(-root), exponent))
    if not 0 < temperature < np.inf:
        raise ValueError(
            "The best temperature is beyond the range of float64. Rescale the logits: multiply "
            f"them by 2.0**{-exponent}."
        )
    return temperature


def _scaled(numbers: np.ndarray, finite: np.ndarray) -> tuple[np.ndarray, int]:
    """Return numbers divided by a power of two, which loses nothing, and its exponent.

    Differences of them cannot overflow, and squares of the largest are in range.
    """
    largest = np.abs(numbers, where=finite, out=np.zeros_like(numbers)).max()
    exponent = int(np.frexp(largest)[1]) + 1
    return np.ldexp(numbers, -exponent), exponent


def _columns(y: Any, labels: Any, scores: np.ndarray) -> np.ndarray:
    """Return the column of every sample's class."""
    y = as_labels(y)
    check_consistent_length(y, scores)
    classes = distinct_labels(y, "y") if labels is None else as_labels(labels)
    if len(classes) != scores.shape[1]:
        raise ValueError(
            f"There are {scores.shape[1]} columns and {len(classes)} classes: pass "
            "labels=classifier.classes_."
        )
    column_of = {label: column for column, label in enumerate(classes.tolist())}
    if len(column_of) < len(classes):
        repeated = [label for label, count in Counter(classes.tolist()).items() if count > 1]
        raise ValueError(f"labels repeat: {format_list(repeated)}. Pass one class per column.")
    columns = np.array([column_of.get(label, -1) for label in y.tolist()])
    missing = np.flatnonzero(columns < 0)
    if missing.size:
        name = y[missing[:1]].tolist()[0]
        raise ValueError(f"Sample {missing[0]} is of class {name!r}, which no column stands for.")
    return columns


def per_class_accuracy(y_true: Any, y_pred: Any) -> Bunch:
    """Share of each class's samples that are predicted correctly: its recall.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Classes, of types that can be sorted.
    y_pred : array-like of shape (n_samples,)
        Predicted classes. Those that `y_true` does not have count as wrong, whatever their type,
        such as an ``unknown_label`` that is a text among classes that are numbers.

    Returns
    -------
    result : sklearn.utils.Bunch
        ``classes``, the sorted classes of `y_true`; ``accuracy``, between 0 and 1; and
        ``support``, the number of samples of each: arrays of one length.

    Raises
    ------
    ValueError
        When a class is missing (None or NaN), or the classes of `y_true` cannot be sorted.

    See Also
    --------
    sklearn.metrics.balanced_accuracy_score : The mean of these accuracies.
    sklearn.metrics.classification_report : A table with precision as well.

    Examples
    --------
    >>> from sklearn_ape.metrics import per_class_accuracy
    >>> result = per_class_accuracy(["cat", "cat", "dog"], ["cat", "fish", "dog"])
    >>> for name, accuracy, n in zip(result.classes, result.accuracy, result.support):
    ...     print(f"{name}: {accuracy:.0%} of {n}")
    cat: 50% of 2
    dog: 100% of 1
    """
    truth, predicted = as_labels(y_true), as_labels(y_pred)
    check_consistent_length(truth, predicted)
    classes = distinct_labels(truth, "y_true")
    place = {label: number for number, label in enumerate(classes.tolist())}
    codes = np.array([place[label] for label in truth.tolist()], dtype=int)
    # Objects are compared one by one: NumPy would compare a number with a text as texts.
    hits = truth.astype(object) == predicted.astype(object)
    support = np.bincount(codes, minlength=len(classes))
    n_hits = np.bincount(codes, weights=hits, minlength=len(classes))
    return Bunch(classes=classes, accuracy=n_hits / support, support=support)
