"""Whether probabilities mean what they say, and the one number that mends most of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from .._numbers import ignores_underflow

# Of the inverse temperature, in units of one over the spread of the logits.
_LOG_SCALES = (-12.0, 12.0)


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
        When `proba` holds no probabilities, or a class has no column.

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
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, not {n_bins}.")
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

    It minimises the negative log-likelihood of `y`, and changes no prediction.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_classes)
        What ``decision_function`` returns, of samples not trained on.
    y : array-like of shape (n_samples,)
        Classes.
    labels : array-like of shape (n_classes,) or None, default=None
        Class of every column, a classifier's ``classes_``. None takes the sorted classes of `y`,
        which must then be as many as the columns.

    Returns
    -------
    temperature : float
        Above 0. ``softmax(logits / temperature)`` are the probabilities. A `ZeroShotClassifier`
        gives them with its logit scale divided by it.

    Raises
    ------
    ValueError
        When a class has no column, or no temperature is best: all samples are right, or the
        logits say nothing of the classes.

    See Also
    --------
    sklearn.calibration.CalibratedClassifierCV : With ``method="temperature"`` (scikit-learn 1.8
        and later) it wraps a classifier together with its temperature: take it to calibrate and
        go on with an estimator. Take `fit_temperature` for the number alone, such as to fit it
        on one set of classes and use it on others, which a wrapped classifier does not allow.
    expected_calibration_error : What it lowers.

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
    >>> logits = np.tile([10.0, 0.0], (4, 1))  # very sure, and right three times of four
    >>> round(fit_temperature(logits, [0, 0, 0, 1]), 3)
    9.102
    """
    logits = check_array(logits, dtype=np.float64, input_name="logits")
    columns = _columns(y, labels, logits)
    rows = np.arange(len(logits))
    logits = logits - logits[rows, columns][:, None]
    # The likelihood's slope where all classes are alike; it is concave in 1 / temperature.
    if logits.mean() >= 0:
        raise ValueError(
            "The logits say nothing of the classes: that of a sample's class is no higher than "
            "the mean of its row. Check that labels names the columns in their order."
        )
    others = logits.copy()
    others[rows, columns] = -np.inf
    if others.max() <= 0:
        raise ValueError(
            "The class of every sample has the largest logit, so the likelihood has no maximum: "
            "the lower the temperature, the better. Pass more samples, or harder ones."
        )

    def loss(log_scale: float) -> float:
        return float(logsumexp(np.exp(log_scale) * logits, axis=1).mean())

    spread = np.log(np.ptp(logits, axis=1).max())
    bounds = (_LOG_SCALES[0] - spread, _LOG_SCALES[1] - spread)
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(-best.x))


def _columns(y: Any, labels: Any, scores: np.ndarray) -> np.ndarray:
    """Return the column of every sample's class."""
    y = column_or_1d(y)
    check_consistent_length(y, scores)
    labels = np.unique(y) if labels is None else column_or_1d(labels)
    if len(labels) != scores.shape[1]:
        raise ValueError(
            f"There are {scores.shape[1]} columns and {len(labels)} classes: pass "
            "labels=classifier.classes_."
        )
    order = np.argsort(labels)
    at = np.searchsorted(labels, y, sorter=order).clip(max=len(labels) - 1)
    columns = order[at]
    missing = np.flatnonzero(labels[columns] != y)
    if missing.size:
        name = y[missing[:1]].tolist()[0]
        raise ValueError(f"Sample {missing[0]} is of class {name!r}, which no column stands for.")
    return columns
