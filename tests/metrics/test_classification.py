"""Accuracy class by class."""

import numpy as np

from sklearn_ape.metrics import per_class_accuracy


def test_is_the_share_of_each_class_that_is_right():
    """Unsorted classes, one never right, and a prediction that is no class of y_true."""
    y_true = np.array(["b", "c", "a", "b", "a", "b", "b"])
    y_pred = np.array(["b", "a", "a", "b", "unknown", "a", "b"])
    result = per_class_accuracy(y_true, y_pred)
    assert result.classes.tolist() == ["a", "b", "c"]
    assert result.accuracy.tolist() == [0.5, 0.75, 0.0]
    assert result.support.tolist() == [2, 4, 1]
