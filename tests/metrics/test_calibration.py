"""Calibration error by a plain loop, and temperatures that are known."""

import numpy as np
import pytest
import sklearn
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.utils.fixes import parse_version

from sklearn_ape.metrics import expected_calibration_error, fit_temperature


@pytest.fixture
def model():
    """4,000 samples whose classes are drawn from the softmax of the logits: calibrated."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((4000, 5))
    gumbel = rng.gumbel(size=logits.shape)
    return logits, (logits + gumbel).argmax(axis=1)


class TestExpectedCalibrationError:
    @pytest.mark.parametrize("n_bins", [1, 7, 15])
    def test_is_that_of_a_loop_over_bins(self, model, n_bins):
        proba = softmax(3 * model[0][:300], axis=1)
        confidence, right = proba.max(axis=1), proba.argmax(axis=1) == model[1][:300]
        expected = 0.0
        for k in range(n_bins):
            inside = (confidence > k / n_bins) & (confidence <= (k + 1) / n_bins)
            if inside.any():
                gap = abs(right[inside].mean() - confidence[inside].mean())
                expected += inside.mean() * gap
        ours = expected_calibration_error(model[1][:300], proba, n_bins)
        assert ours == pytest.approx(expected)

    def test_is_small_when_calibrated_and_large_when_too_sure(self, model):
        logits, y = model
        assert expected_calibration_error(y, softmax(logits, axis=1)) < 0.03
        assert expected_calibration_error(y, softmax(10 * logits, axis=1)) > 0.2

    def test_labels_name_the_columns(self):
        proba = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
        labels = ["dog", "cat", "fish"]
        assert expected_calibration_error(["dog", "cat"], proba, 1, labels) == pytest.approx(0.15)
        with pytest.raises(ValueError, match="3 columns and 2 classes: pass labels"):
            expected_calibration_error(["dog", "cat"], proba)
        with pytest.raises(ValueError, match="Sample 1 is of class 'cow', which no column"):
            expected_calibration_error(["dog", "cow"], proba, labels=labels)

    def test_what_is_no_probability_is_refused(self):
        with pytest.raises(ValueError, match="Row 1 of proba holds no probabilities"):
            expected_calibration_error([0, 1], [[0.5, 0.5], [2.0, 1.0]])
        with pytest.raises(ValueError, match="NaN"):
            expected_calibration_error([0, 1], [[0.5, 0.5], [np.nan, 1.0]])
        with pytest.raises(ValueError, match="n_bins must be at least 1"):
            expected_calibration_error([0, 1], np.eye(2), n_bins=0)


class TestFitTemperature:
    @pytest.mark.parametrize("factor", [1e-3, 0.3, 1.0, 50.0])
    def test_finds_the_factor_that_was_put_in(self, model, factor):
        logits, y = model
        assert fit_temperature(factor * logits, y) == pytest.approx(factor, rel=0.05)

    def test_no_other_temperature_is_likelier(self, model):
        logits, y = model
        best = fit_temperature(logits, y)
        losses = [
            log_loss(y, softmax(logits / (best * factor), axis=1)) for factor in (0.99, 1, 1.01)
        ]
        assert min(losses) == losses[1]

    def test_offsets_of_rows_and_order_of_columns_do_not_matter(self, model):
        logits, y = model[0][:500], model[1][:500]
        shifted = logits + np.arange(500)[:, None]
        assert fit_temperature(shifted, y) == pytest.approx(fit_temperature(logits, y))
        names = np.array(["e", "b", "d", "a", "c"])
        named = fit_temperature(logits, names[y], labels=names)
        assert named == pytest.approx(fit_temperature(logits, y))

    @pytest.mark.skipif(
        parse_version(sklearn.__version__) < parse_version("1.8"), reason="new in scikit-learn 1.8"
    )
    def test_probabilities_are_those_of_scikit_learns_wrapper(self, model):
        logits, y = 5 * model[0], model[1]

        class Given(ClassifierMixin, BaseEstimator):
            def fit(self, X, y):
                self.classes_ = np.unique(y)
                return self

            def decision_function(self, X):
                return X

            def predict(self, X):
                return self.classes_[X.argmax(axis=1)]

        given = FrozenEstimator(Given().fit(logits, y))
        theirs = CalibratedClassifierCV(given, method="temperature").fit(logits, y)
        ours = softmax(logits / fit_temperature(logits, y), axis=1)
        np.testing.assert_allclose(ours, theirs.predict_proba(logits), atol=1e-4)

    def test_without_a_best_temperature_it_says_why(self):
        with pytest.raises(ValueError, match="class of every sample has the largest logit"):
            fit_temperature(np.eye(3), [0, 1, 2])
        with pytest.raises(ValueError, match="say nothing of the classes"):
            fit_temperature(np.eye(3), [1, 2, 0])
        with pytest.raises(ValueError, match="say nothing of the classes"):
            fit_temperature(np.zeros((3, 3)), [1, 2, 0])
