"""Accuracy class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support
from sklearn.utils import Bunch


def per_class_accuracy(y_true: Any, y_pred: Any) -> Bunch:
    """Share of every class's samples that are predicted right: its recall.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Classes.
    y_pred : array-like of shape (n_samples,)
        Predicted classes; those that `y_true` does not have are wrong.

    Returns
    -------
    result : sklearn.utils.Bunch
        ``classes``, the sorted classes of `y_true`; ``accuracy``, between 0 and 1; and
        ``support``, the number of samples of each: arrays of one length.

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
    classes = np.unique(np.asarray(y_true))
    _, recall, _, support = precision_recall_fscore_support(
        y_true, y_pred, labels=classes, average=None, zero_division=0.0
    )
    return Bunch(classes=classes, accuracy=recall, support=support)
