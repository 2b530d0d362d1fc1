"""MultiLabelZeroShotClassifier passes the estimator checks of scikit-learn that apply to it."""

import warnings

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import CCAAligner, MultiLabelZeroShotClassifier


class _BinaryDigits(MultiLabelZeroShotClassifier):
    """Reads a Y of one column as class numbers, whose binary digits are the labels."""

    def fit(self, X, Y, captions=None):
        return super().fit(X, self._encode(Y), captions)

    def score(self, X, y, sample_weight=None):
        return super().score(X, self._encode(y), sample_weight)

    def _encode(self, Y):
        column = None if Y is None else np.asarray(Y)
        if column is None or column.size != len(column):
            return Y
        codes = np.unique(column.ravel(), return_inverse=True)[1]
        return (codes[:, None] >> np.arange(len(self.labels))) & 1


def passed_checks(kind, settings):
    texts = HashingVectorizer(n_features=32, analyzer="char")
    labels = [f"label {number}" for number in range(5)]
    estimator = kind(**{"labels": labels, "aligner": CCAAligner(text_encoder=texts), **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    return [result["check_name"] for result in results if result["status"] == "passed"]


def test_estimator_checks():
    """The checks that do not pass one column of numbers as several labels pass."""
    passed = passed_checks(MultiLabelZeroShotClassifier, {})
    assert len(passed) >= 20
    for check in ("check_no_attributes_set_in_init", "check_get_params_invariance",
                  "check_set_params", "check_estimator_cloneable", "check_estimator_repr",
                  "check_do_not_raise_errors_in_init_or_set_params",
                  "check_classifiers_multilabel_representation_invariance",
                  "check_classifiers_multilabel_output_format_predict",
                  "check_classifiers_multilabel_output_format_predict_proba",
                  "check_classifiers_multilabel_output_format_decision_function"):  # fmt: skip
        assert check in passed


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "settings",
    [{"prevalence": 0.3, "shrinkage": 0.0, "cv": 2},
     {"templates": ["{}", "a {}"], "logit_scale": 5.0, "standardize": False},
     {"labels": {n: f"thing {n}" for n in range(5)},
      "prevalence": {n: 0.1 + n / 10 for n in range(5)}, "cv": 4}],
    ids=["thresholds", "cosines", "numbered"],
)  # fmt: skip
def test_estimator_checks_with_single_columns_encoded(settings):
    """The checks of X, parameters and state pass with other settings than the default.

    With a single template, Y with one label would give all images the same caption.
    """
    passed = passed_checks(_BinaryDigits, settings)
    assert len(passed) >= 49
    for check in ("check_estimators_nan_inf", "check_estimators_dtypes", "check_dtype_object",
                  "check_estimators_pickle", "check_fit_idempotent", "check_n_features_in",
                  "check_n_features_in_after_fitting", "check_methods_subset_invariance",
                  "check_methods_sample_order_invariance", "check_estimator_sparse_array",
                  "check_estimator_sparse_matrix", "check_dict_unchanged",
                  "check_f_contiguous_array_estimator"):  # fmt: skip
        assert check in passed
