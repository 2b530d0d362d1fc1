"""Metrics of retrieval and classification, calibration, and confidence intervals.

Metrics of scikit-learn are not repeated here. For top-k accuracy, use
``sklearn.metrics.top_k_accuracy_score(y, classifier.decision_function(X), k=5,
labels=classifier.classes_)``. The Brier score and the log loss are also in ``sklearn.metrics``.
"""

from ._bootstrap import Interval, bootstrap_interval, paired_difference
from ._classification import expected_calibration_error, fit_temperature, per_class_accuracy
from .retrieval import rank_report, recall_at_k, retrieval_ranks, retrieval_report

__all__ = [
    "Interval",
    "bootstrap_interval",
    "expected_calibration_error",
    "fit_temperature",
    "paired_difference",
    "per_class_accuracy",
    "rank_report",
    "recall_at_k",
    "retrieval_ranks",
    "retrieval_report",
]
