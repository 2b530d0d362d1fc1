"""Calibration error, temperature scaling and per-class accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.utils import Bunch, check_array, check_consistent_length
from sklearn.utils.validation import _check_sample_weight

from ..utils.messages import warn
from ..utils.validation import (
    as_labels,
    check_integer,
    find_repeated,
    format_list,
    ignores_underflow,
    list_distinct_labels,
)

# A smaller slope of the likelihood, relative to the mean difference of logits, is due to rounding.
_ROUNDING = 1e-12


@ignores_underflow
def expected_calibration_error(
    y_true: Any, proba: Any, n_bins: int = 15, labels: Any = None, sample_weight: Any = None
) -> float:
    """Compute the expected calibration error (ECE), the mean gap of confidence and accuracy.

    Predictions are put into bins by the probability of the predicted class [1]_. In each bin, the
    mean probability is compared with the accuracy. The gaps are averaged, weighted by the number
    of predictions.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    proba : array-like of shape (n_samples, n_classes)
        Predicted probabilities. The sum of each row must be 1.
    n_bins : int, default=15
        Number of bins of equal width. Empty bins are ignored.
    labels : array-like of shape (n_classes,) or None, default=None
        Class of each column, such as a classifier's ``classes_``, in the order of the columns.
        None uses the sorted classes of `y_true`, which must be as many as there are columns.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weights of the predictions. None gives each the weight 1.

    Returns
    -------
    error : float
        Calibration error between 0 (perfectly calibrated) and 1.

    Raises
    ------
    ValueError
        If `proba` are not probabilities, a class has no column, `labels` has duplicates, the
        columns of a table have the names of the classes in another order, `n_bins` is not an
        integer of at least 1, or a weight is negative.

    See Also
    --------
    sklearn.calibration.calibration_curve : Values of the bins for two classes, for a plot.
    sklearn.metrics.log_loss : A loss that depends on accuracy and on calibration.

    Notes
    -----
    The error depends on `n_bins` and is too large for few samples.

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
    names = _get_column_names(proba)
    proba = check_array(proba, dtype=np.float64, input_name="proba")
    invalid = np.flatnonzero((np.abs(proba.sum(axis=1) - 1) > 1e-3) | (proba < 0).any(axis=1))
    if invalid.size:
        raise ValueError(
            f"proba must have rows of probabilities with the sum 1, and row {invalid[0]} is not. "
            "Pass the output of predict_proba."
        )
    columns = _find_columns(y_true, labels, proba, names)
    confidence = proba.max(axis=1)
    is_correct = proba.argmax(axis=1) == columns
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    weights = _check_sample_weight(sample_weight, proba, ensure_non_negative=True)
    weights = weights / weights.max()  # sums of very large or small weights are not precise
    gaps = np.bincount(bins, weights=weights * (confidence - is_correct))
    return float(np.abs(gaps).sum() / weights.sum())


@ignores_underflow
def fit_temperature(logits: Any, y: Any, labels: Any = None) -> float:
    """Fit the temperature for temperature scaling of logits.

    The temperature minimizes the negative log-likelihood of `y` [1]_. It does not change
    predictions. It can be used for other labels, too, but is less exact for them [2]_.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_classes), or (n_samples,) for two classes
        Output of ``decision_function`` for samples that were not used for training. ``-inf``
        excludes a class for a sample, and so does a large negative number such as -1e9.
    y : array-like of shape (n_samples,)
        True classes.
    labels : array-like of shape (n_classes,) or None, default=None
        Class of each column, such as a classifier's ``classes_``, in the order of the columns.
        None uses the sorted classes of `y`, which must be as many as there are columns.

    Returns
    -------
    temperature : float
        Positive temperature. The calibrated probabilities are ``softmax(logits / temperature)``.
        For a `ZeroShotClassifier`, divide the logit scale by the temperature.

    Raises
    ------
    ValueError
        If a class has no column, `labels` has duplicates, the columns of a table have the names of
        the classes in another order, the class of a sample is excluded, or there is no optimum:
        all samples are predicted correctly, the logits are unrelated to the classes, or the
        optimal temperature is not a positive float64.

    Warns
    -----
    UserWarning
        If the rows of `logits` are probabilities.

    See Also
    --------
    sklearn.calibration.CalibratedClassifierCV : With ``method="temperature"`` (scikit-learn 1.8
        and later), it returns a calibrated classifier instead of the number.
    expected_calibration_error : Calibration error, which a good temperature reduces.

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
    names = _get_column_names(logits)
    logits = _check_logits(logits)
    columns = _find_columns(y, labels, logits, names)
    rows = np.arange(len(logits))
    excluded = np.flatnonzero(logits[rows, columns] == -np.inf)
    if excluded.size:
        raise ValueError(
            f"logits is -inf for the true class of sample {excluded[0]}, so that its probability "
            "is 0 at any temperature. Check that labels has the order of the columns."
        )
    finite = np.isfinite(logits)
    logits, logit_exponent = _rescale(logits, finite)
    margins, margin_exponent = _rescale(logits - logits[rows, columns][:, None], finite)
    exponent = logit_exponent + margin_exponent
    log_inverse = _maximize_likelihood(margins, finite)
    with np.errstate(over="ignore", under="ignore"):
        temperature = float(np.ldexp(np.exp(-log_inverse), exponent))
    if not 0 < temperature < np.inf:
        raise ValueError(
            "logits have an optimal temperature beyond the range of float64. Multiply the logits "
            f"by 2.0**{-exponent}."
        )
    return temperature


def _check_logits(logits: Any) -> np.ndarray:
    """Return logits with one column per class, of which -inf excludes a class."""
    logits = check_array(
        logits, dtype=np.float64, ensure_2d=False, ensure_all_finite=False, input_name="logits"
    )
    if logits.ndim == 1:  # of two classes, decision_function returns the difference
        logits = np.column_stack([np.zeros_like(logits), logits])
    invalid = np.flatnonzero((np.isnan(logits) | (logits == np.inf)).any(axis=1))
    if invalid.size:
        raise ValueError(
            f"logits contains NaN or infinity in row {invalid[0]}. Only -inf, which excludes a "
            "class, is allowed."
        )
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1) and (logits % 1 != 0).any():
        warn(
            "logits holds probabilities, because each row is at least 0 and adds up to 1. Pass "
            "the output of decision_function, or the logarithms of the probabilities."
        )
    return logits


def _maximize_likelihood(margins: np.ndarray, finite: np.ndarray) -> float:
    """Return the logarithm of the inverse temperature of the highest likelihood.

    `margins` are the differences of the logits from the logit of the true class. The margins of
    excluded classes are not `finite`.
    """
    finite_margins = np.where(finite, margins, 0.0)

    # The derivative of the loss at an infinite temperature, where all classes are equally likely.
    slope = np.mean(finite_margins.sum(axis=1) / finite.sum(axis=1))
    if slope >= -_ROUNDING * np.abs(finite_margins).mean():
        raise ValueError(
            "logits are unrelated to y: the logit of the true class is not higher than the mean "
            "of the row. Check that labels has the order of the columns."
        )
    max_margin = finite_margins.max()
    if max_margin <= 0:
        raise ValueError(
            "logits predict every sample correctly, so the likelihood has no maximum: it keeps "
            "increasing as the temperature decreases. Pass more samples, or more difficult ones."
        )

    # The log-likelihood is concave in the inverse temperature: find the root of its derivative
    # between two bounds that hold for logits of any scale.
    def derivative(log_inverse: float) -> float:
        proba = softmax(np.exp(log_inverse) * margins, axis=1)
        return float(np.mean(np.sum(proba * finite_margins, axis=1)))

    # Lower bound: the second derivative is a variance, at most a quarter of the squared range of a
    # row. Upper bound: above it, the largest margin of a wrong class outweighs those of all other
    # classes, each of which subtracts at most 1 / (e * inverse).
    n_samples, n_classes = margins.shape
    low = np.log(-slope) - np.log(np.mean(np.ptp(finite_margins, axis=1) ** 2) / 4)
    high = np.log(n_samples) + 2 * np.log(n_classes) - 1 - np.log(max_margin)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return brentq(derivative, low - 1, high + 1, xtol=1e-10, maxiter=1000)


def _rescale(numbers: np.ndarray, finite: np.ndarray) -> tuple[np.ndarray, int]:
    """Divide numbers by a power of two, which is exact, and return its exponent as well.

    Differences of the results cannot overflow, and the square of the largest cannot underflow.
    """
    largest = np.abs(numbers[finite]).max()
    exponent = int(np.frexp(largest)[1]) + 1
    return np.ldexp(numbers, -exponent), exponent


def _get_column_names(scores: Any) -> list[Any] | None:
    """Return the column names of a table, or None for an array and for numbered columns."""
    names = getattr(scores, "column_names", getattr(scores, "columns", None))  # pyarrow, pandas
    return None if names is None or list(names) == list(range(len(names))) else list(names)


def _find_columns(y: Any, labels: Any, scores: np.ndarray, names: list[Any] | None) -> np.ndarray:
    """Return the column of the class of each sample, if columns with `names` are in its order."""
    y = as_labels(y)
    check_consistent_length(y, scores)
    classes = list_distinct_labels(y, "y") if labels is None else as_labels(labels, "labels")
    if len(classes) != scores.shape[1]:
        raise ValueError(
            f"labels has {len(classes)} classes for {scores.shape[1]} columns. Pass "
            "labels=classifier.classes_."
        )
    column_of = {label: column for column, label in enumerate(classes.tolist())}
    if len(column_of) < len(classes):
        repeated = find_repeated(classes.tolist())
        raise ValueError(
            f"labels has duplicates: {format_list(repeated)}. Pass one class per column."
        )
    if names is not None and names != list(column_of) and set(names) == set(column_of):
        raise ValueError(
            f"labels, which is the sorted classes of y by default, has another order "
            f"({format_list(column_of)}) than the names of the columns ({format_list(names)}). "
            "Pass labels=list(columns)."
        )
    columns = np.array([column_of.get(label, -1) for label in y.tolist()])
    missing = np.flatnonzero(columns < 0)
    if missing.size:
        label = y[missing[:1]].tolist()[0]
        raise ValueError(
            f"y has the class {label!r} in row {missing[0]}, which is not in labels. Pass the "
            "classes of all columns."
        )
    return columns


def per_class_accuracy(y_true: Any, y_pred: Any) -> Bunch:
    """Compute the accuracy per class: the fraction of its samples that are predicted correctly.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes, of types that can be sorted.
    y_pred : array-like of shape (n_samples,)
        Predicted classes. Classes that are not in `y_true` count as errors. They may have another
        type, such as an ``unknown_label`` that is a str if the classes are integers.

    Returns
    -------
    result : sklearn.utils.Bunch
        Three arrays of the same length: ``classes``, the sorted classes of `y_true`;
        ``accuracy``, between 0 and 1; and ``support``, the number of samples of each class.

    Raises
    ------
    ValueError
        If a class is missing (None or NaN), or the classes of `y_true` cannot be sorted.

    See Also
    --------
    sklearn.metrics.balanced_accuracy_score : Mean of these accuracies.
    sklearn.metrics.classification_report : Table with recall and precision per class.

    Examples
    --------
    >>> from sklearn_ape.metrics import per_class_accuracy
    >>> result = per_class_accuracy(["cat", "cat", "dog"], ["cat", "fish", "dog"])
    >>> for name, accuracy, n in zip(result.classes, result.accuracy, result.support):
    ...     print(f"{name}: {accuracy:.0%} of {n}")
    cat: 50% of 2
    dog: 100% of 1
    """
    truth, predicted = as_labels(y_true, "y_true"), as_labels(y_pred, "y_pred")
    check_consistent_length(truth, predicted)
    classes = list_distinct_labels(truth, "y_true")
    codes = np.searchsorted(classes, truth)
    # Compare as objects, since NumPy would convert numbers to texts to compare them with texts.
    hits = truth.astype(object) == predicted.astype(object)
    support = np.bincount(codes)
    n_hits = np.bincount(codes, weights=hits)
    return Bunch(classes=classes, accuracy=n_hits / support, support=support)
