"""Accuracy class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Bunch, check_consistent_length

from ._checks import as_labels, distinct_labels


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
