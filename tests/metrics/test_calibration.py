"""Calibration error and temperature scaling."""

import warnings

import numpy as np
import pytest
import sklearn
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.utils.fixes import parse_version

from sklearn_ape.metrics import expected_calibration_error, fit_temperature


@pytest.fixture
def model():
    """Return 4,000 rows of logits and classes that are drawn from their softmax."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((4000, 5))
    gumbel = rng.gumbel(size=logits.shape)
    return logits, (logits + gumbel).argmax(axis=1)


class TestExpectedCalibrationError:
    @pytest.mark.parametrize("n_bins", [1, 7, 15])
    def test_ece_equals_loop_over_bins(self, model, n_bins):
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

    @pytest.mark.parametrize("weight", [5e-324, 1e308])
    def test_ece_does_not_depend_on_the_size_of_weights(self, weight):
        """The error was 0, because gaps were rounded to 0 or divided by infinity."""
        proba = [[0.6, 0.4], [0.6, 0.4], [0.5, 0.5]]
        error = expected_calibration_error(
            ["a"] * 3, proba, labels=["a", "b"], sample_weight=[weight] * 3
        )
        assert error == pytest.approx(1.3 / 3)

    def test_ece_is_small_if_calibrated_and_large_if_overconfident(self, model):
        logits, y = model
        assert expected_calibration_error(y, softmax(logits, axis=1)) < 0.03
        assert expected_calibration_error(y, softmax(10 * logits, axis=1)) > 0.2

    def test_labels_name_the_columns(self):
        proba = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
        labels = ["dog", "cat", "fish"]
        assert expected_calibration_error(["dog", "cat"], proba, 1, labels) == pytest.approx(0.15)
        with pytest.raises(ValueError, match="labels has 2 classes for 3 columns"):
            expected_calibration_error(["dog", "cat"], proba)
        with pytest.raises(ValueError, match="y has the class 'cow' in row 1, which is not in"):
            expected_calibration_error(["dog", "cow"], proba, labels=labels)

    @pytest.mark.parametrize("library", ["pandas", "polars"])
    @pytest.mark.parametrize("metric", [expected_calibration_error, fit_temperature])
    def test_columns_named_in_another_order_raise(self, model, metric, library):
        """Columns are used by position, so that the result would be wrong without an error."""
        frames = pytest.importorskip(library)
        y = np.array(list("abcde"))[model[1][:300]]
        scores = model[0][:300] if metric is fit_temperature else softmax(model[0][:300], axis=1)

        def measure(table, labels=None):
            arguments = (table, y) if metric is fit_temperature else (y, table)
            return metric(*arguments, labels=labels)

        table = frames.DataFrame(dict(zip("abcde", scores.T, strict=True)))
        swapped = table[list("bacde")]
        for labels in (None, list("abcde")):
            assert measure(table, labels) == measure(scores)
            with pytest.raises(ValueError, match=r"has another order .*'b', 'a', 'c'"):
                measure(swapped, labels)
        assert measure(swapped, list("bacde")) == pytest.approx(measure(scores))

    def test_numbers_of_columns_are_not_names(self):
        pd = pytest.importorskip("pandas")
        proba = [[0.9, 0.1], [0.2, 0.8]]
        error = expected_calibration_error([1, 0], pd.DataFrame(proba), 1, labels=[1, 0])
        assert error == pytest.approx(0.15)

    def test_invalid_probabilities_raise(self):
        with pytest.raises(ValueError, match="row 1 is not"):
            expected_calibration_error([0, 1], [[0.5, 0.5], [2.0, 1.0]])
        with pytest.raises(ValueError, match="NaN"):
            expected_calibration_error([0, 1], [[0.5, 0.5], [np.nan, 1.0]])

    @pytest.mark.parametrize("n_bins", [0, -1, 2.5, 15.0, np.nan, True, "15", None])
    def test_invalid_n_bins_raises(self, n_bins):
        with pytest.raises(ValueError, match="n_bins must be an integer >= 1, not"):
            expected_calibration_error([0, 1], np.eye(2), n_bins=n_bins)

    def test_repeated_labels_raise(self):
        with pytest.raises(ValueError, match="labels has duplicates: 'a'"):
            expected_calibration_error(["a", "b"], np.full((2, 2), 0.5), labels=["a", "a"])

    def test_labels_of_different_types_are_not_equal(self):
        """NumPy would convert the list [1, 'x'] to the texts '1' and 'x'."""
        proba = np.array([[0.9, 0.1], [0.2, 0.8]])
        assert expected_calibration_error([1, "x"], proba, 1, [1, "x"]) == pytest.approx(0.15)
        assert expected_calibration_error([1.0, 2], proba, 1, [1, 2]) == pytest.approx(0.15)
        for y, labels in (([1, "x"], ["1", "x"]), (["1", "2"], [1, 2]), ([1, 2], ["1", "2"])):
            with pytest.raises(ValueError, match=r"y has the class '?1'? in row 0"):
                expected_calibration_error(y, proba, 1, labels)
        with pytest.raises(ValueError, match="y mixes types that cannot be sorted"):
            expected_calibration_error([1, "x"], proba)
        with pytest.raises(ValueError, match=r"y has 1 missing value \(row 1\)"):
            expected_calibration_error(["a", None], proba)


def best_on_grid(logits, y):
    """Return the temperature of the highest likelihood among 1e-12 to 1e12 times 1.001."""
    inverses = np.geomspace(1e-12, 1e12, 601)
    for _ in range(3):
        with np.errstate(over="ignore"):
            losses = [loss_at(inverse, logits, y) for inverse in inverses]
        best = int(np.argmin(losses))
        assert 0 < best < len(inverses) - 1
        inverses = np.geomspace(inverses[best - 1], inverses[best + 1], 41)
    return 1 / inverses[20]


def loss_at(inverse, logits, y):
    others = logits - logits[np.arange(len(y)), y][:, None]
    return np.logaddexp.reduce(inverse * others, axis=1).mean()


class TestFitTemperature:
    @pytest.mark.parametrize("factor", [1e-3, 0.3, 1.0, 50.0])
    def test_known_temperature_is_recovered(self, model, factor):
        logits, y = model
        assert fit_temperature(factor * logits, y) == pytest.approx(factor, rel=0.05)

    def test_logits_of_two_classes_may_be_differences(self, model):
        """`decision_function` of two classes returns one number per sample."""
        logits = model[0][:, :2]
        y = (logits[:, 1] + np.random.default_rng(0).logistic(size=len(logits)) > logits[:, 0]) * 1
        difference = logits[:, 1] - logits[:, 0]
        assert fit_temperature(difference, y) == pytest.approx(fit_temperature(logits, y))

    def test_temperature_does_not_depend_on_offsets_and_column_order(self, model):
        logits, y = model[0][:500], model[1][:500]
        shifted = logits + np.arange(500)[:, None]
        assert fit_temperature(shifted, y) == pytest.approx(fit_temperature(logits, y))
        names = np.array(["e", "b", "d", "a", "c"])
        named = fit_temperature(logits, names[y], labels=names)
        assert named == pytest.approx(fit_temperature(logits, y))

    @pytest.mark.skipif(
        parse_version(sklearn.__version__) < parse_version("1.8"), reason="new in scikit-learn 1.8"
    )
    def test_probabilities_equal_scikit_learn(self, model):
        logits, y = 5 * model[0], model[1]

        class LogitClassifier(ClassifierMixin, BaseEstimator):
            def fit(self, X, y):
                self.classes_ = np.unique(y)
                return self

            def decision_function(self, X):
                return X

            def predict(self, X):
                return self.classes_[X.argmax(axis=1)]

        classifier = FrozenEstimator(LogitClassifier().fit(logits, y))
        theirs = CalibratedClassifierCV(classifier, method="temperature").fit(logits, y)
        ours = softmax(logits / fit_temperature(logits, y), axis=1)
        np.testing.assert_allclose(ours, theirs.predict_proba(logits), atol=1e-4)

    @pytest.mark.parametrize("value", [-1e4, -1e5, -1e6, -1e9, -1e12, -1e300, -np.inf])
    def test_masked_columns_do_not_change_the_temperature(self, model, value):
        """The columns are masked in all rows, or a different one in each row."""
        logits, y = model[0][:300], model[1][:300]
        expected = fit_temperature(logits, y)
        wide = np.insert(logits, [0, 3, 5], value, axis=1)
        labels = [10, 0, 1, 2, 11, 3, 4, 12]
        assert fit_temperature(wide, y, labels=labels) == pytest.approx(expected, rel=1e-6)
        rng = np.random.default_rng(0)
        masked = logits.copy()
        masked[np.arange(300), (y + rng.integers(1, 5, 300)) % 5] = value
        assert fit_temperature(masked, y) == pytest.approx(best_on_grid(masked, y), rel=1e-3)

    @pytest.mark.parametrize("is_right", [True, False])
    @pytest.mark.parametrize("factor", [1e-7, 1e7])
    def test_rows_of_another_scale_do_not_limit_the_search(self, model, is_right, factor):
        logits, y = model[0][:300].copy(), model[1][:300]
        row = np.flatnonzero((logits.argmax(axis=1) == y) == is_right)[0]
        logits[row] *= factor
        assert fit_temperature(logits, y) == pytest.approx(best_on_grid(logits, y), rel=1e-3)

    @pytest.mark.parametrize("seed", range(30))
    def test_temperature_is_best_of_a_grid_at_any_scale(self, seed):
        """Samples are few, offset and masked, with accuracies from chance to nearly 1."""
        rng = np.random.default_rng(seed)
        n, k = rng.integers(5, 60), rng.integers(2, 7)
        y = np.r_[np.arange(k), rng.integers(k, size=n)]
        logits = rng.standard_normal((n + k, k)) * 10.0 ** rng.uniform(-1, 1, (n + k, 1))
        logits[np.arange(n + k), y] += rng.choice([0.5, 2.0, 8.0])
        logits[0] = np.where(np.arange(k) == y[0], -1.0, 1.0)  # one sample is wrong
        scale = 10.0 ** rng.integers(-6, 7)
        if logits.mean() >= logits[np.arange(n + k), y].mean():
            with pytest.raises(ValueError, match="logits are unrelated to y"):
                fit_temperature(scale * logits, y)
            return
        found = fit_temperature(scale * logits, y)
        assert found / scale == pytest.approx(best_on_grid(logits, y), rel=1e-3)
        offset = scale * (logits + 1e5 * rng.standard_normal((n + k, 1)))
        assert fit_temperature(offset, y) == pytest.approx(found, rel=1e-3)

    @pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
    def test_temperature_of_equal_margins_has_closed_form(self, scale):
        """At 501 of 1001 the best temperature is 500 times the logits."""
        logits, y = np.tile([scale, 0.0], (1001, 1)), np.arange(1001) > 500
        expected = scale / np.log(501 / 500)
        assert fit_temperature(logits, y) == pytest.approx(expected, rel=1e-6)
        with pytest.raises(ValueError, match=r"beyond the range of float64\. Multiply the logits"):
            fit_temperature(logits / scale * 1e307, y)

    def test_excluded_true_class_and_infinity_raise(self):
        with pytest.raises(ValueError, match="is -inf for the true class of sample 1"):
            fit_temperature([[1.0, 0.0], [0.0, -np.inf], [1.0, 0.0]], [0, 1, 1])
        for value in (np.inf, np.nan):
            with pytest.raises(ValueError, match="logits contains NaN or infinity in row 1"):
                fit_temperature([[1.0, 0.0], [0.0, value]], [0, 1])

    def test_repeated_labels_raise(self, model):
        with pytest.raises(ValueError, match="labels has duplicates: 0"):
            fit_temperature(model[0], model[1], labels=[0, 1, 2, 3, 0])

    def test_logits_without_optimum_raise(self):
        with pytest.raises(ValueError, match="logits predict every sample correctly"):
            fit_temperature(np.eye(3), [0, 1, 2])
        with pytest.raises(ValueError, match="logits are unrelated to y"):
            fit_temperature(np.eye(3), [1, 2, 0])
        with pytest.raises(ValueError, match="logits are unrelated to y"):
            fit_temperature(np.zeros((3, 3)), [1, 2, 0])


@pytest.mark.parametrize("y", ["ab", b"ab", {"a": 0, "b": 1}, {"a", "b"}])
def test_classes_in_invalid_container_raise(y):
    with pytest.raises(ValueError, match=r"y (is a single class|must be a sequence of classes)"):
        expected_calibration_error(y, [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"labels (is a single class|must be a sequence of)"):
        expected_calibration_error(["a", "b"], [[0.5, 0.5], [0.5, 0.5]], labels=y)


def test_inconsistent_lengths_raise():
    """NumPy would compare a single class with all rows."""
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        expected_calibration_error([0], np.eye(2), labels=[0, 1])


def test_probabilities_in_place_of_logits_warn():
    """Their temperature is not that of the classifier."""
    logits = np.array([[2.0, 0.0], [2.0, 0.5], [0.5, 1.0]])
    with pytest.warns(UserWarning, match="logits holds probabilities, because"):
        fit_temperature(softmax(logits, axis=1), [0, 1, 1])
    with warnings.catch_warnings(action="error"):
        temperature = fit_temperature(logits, [0, 1, 1])
        assert fit_temperature(log_softmax(logits, axis=1), [0, 1, 1]) == pytest.approx(
            temperature
        )
