"""Confidence intervals for means and paired differences: formulas, coverage and errors."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, multinomial, norm, t

from sklearn_ape.metrics import bootstrap_interval, paired_difference


def wilson(n_hits, n, confidence):
    """Solve (share - p)² = z² p (1 - p) / n for p."""
    z, share = norm.ppf((1 + confidence) / 2), n_hits / n
    roots = np.roots([1 + z**2 / n, -2 * share - z**2 / n, share**2])
    return sorted(roots.real)


def make_hits(n_ones, n):
    return (np.arange(n) < n_ones).astype(float)


class TestProportions:
    @pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
    @pytest.mark.parametrize("n", [2, 7, 100, 3000])
    def test_interval_of_hits_is_wilson_interval(self, n, confidence):
        for n_hits in {0, 1, n // 3, n - 1, n}:
            interval = bootstrap_interval(make_hits(n_hits, n), confidence)
            assert interval.estimate == n_hits / n
            np.testing.assert_allclose(interval[1:], wilson(n_hits, n, confidence), atol=1e-9)

    @pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.5, 0.95])
    @pytest.mark.parametrize("n", [10, 20, 100, 1000])
    def test_coverage_of_hits_is_near_nominal(self, n, p):
        """The sum over all numbers of hits is exact; percentile intervals cover 0.10 to 0.95."""
        covered = 0.0
        for n_hits in np.arange(n + 1)[binom.pmf(np.arange(n + 1), n, p) > 1e-9]:
            interval = bootstrap_interval(make_hits(n_hits, n))
            covered += binom.pmf(n_hits, n, p) * (interval.low <= p <= interval.high)
        assert 0.90 < covered < 0.99

    def test_interval_of_equal_hits_has_positive_width(self):
        low = bootstrap_interval(np.ones(20)).low
        assert 0.8 < low < 0.9
        assert bootstrap_interval(np.zeros(20)) == pytest.approx((0.0, 0.0, 1 - low))

    @pytest.mark.parametrize(
        "kind", [bool, np.float16, np.uint8, object, pd.Series, "boolean", list, "column"]
    )
    def test_hits_of_any_type_give_equal_intervals(self, kind):
        hits = np.arange(30) % 3 == 0
        containers = {list: hits.tolist(), pd.Series: pd.Series(hits), "column": hits[:, None],
                "boolean": pd.Series(hits, dtype="boolean")}  # fmt: skip
        values = containers[kind] if kind in containers else hits.astype(kind)
        assert bootstrap_interval(values) == bootstrap_interval(hits.astype(float))


class TestMeans:
    @pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
    @pytest.mark.parametrize("has_ties", [False, True])
    def test_interval_is_widened_bca_interval(self, has_ties, confidence):
        """The formula is applied to the same resamples. One half of the ties is below the mean."""
        values = np.random.default_rng(0).exponential(size=25)
        values = 1e5 * (np.arange(25) % 5) / 7 if has_ties else values
        interval = bootstrap_interval(values, confidence, n_resamples=999, random_state=3)
        rows = np.random.RandomState(3).randint(0, 25, size=(999, 25))
        means = values[rows].mean(axis=1)
        left_out = np.array([np.delete(values, row).mean() for row in range(25)])
        jackknife = left_out.mean() - left_out
        acceleration = (jackknife**3).sum() / (6 * (jackknife**2).sum() ** 1.5)
        is_tie = abs(means - values.mean()) < 1e-9 * values.max()
        assert is_tie.any() == has_ties
        n_below = (~is_tie & (means < values.mean())).sum() + is_tie.sum() / 2
        bias = norm.ppf((n_below + 0.5) / 1000)
        for end, side in ((interval.low, -1), (interval.high, 1)):
            z = bias + side * t.ppf((1 + confidence) / 2, 24) * np.sqrt(25 / 24)
            level = norm.cdf(bias + z / (1 - acceleration * z))
            assert end == pytest.approx(np.quantile(means, level))

    def test_coverage_of_clustered_hits_is_near_nominal(self):
        """The values are 20 means of five hits each; percentile intervals cover 88 %."""
        rng = np.random.default_rng(0)
        covered = 0
        for seed in range(300):
            values = rng.binomial(5, rng.beta(2.85, 0.15, 20)) / 5
            interval = bootstrap_interval(values, n_resamples=500, random_state=seed)
            covered += interval.low <= 0.95 <= interval.high
        assert 0.91 < covered / 300 < 0.98

    def test_interval_of_many_values_is_normal_interval(self):
        values = np.random.default_rng(0).random(3000)
        interval = bootstrap_interval(values, confidence=0.9, random_state=0)
        half = norm.ppf(0.95) * values.std() / np.sqrt(3000)
        assert interval.estimate == values.mean()
        assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)

    @pytest.mark.parametrize("values", [[0.3, 0.5], [0.0, 0.0, 7.0], [1e-9, 1.0, 1.0, 1.0]])
    def test_interval_of_few_values_contains_mean_within_range(self, values):
        interval = bootstrap_interval(values, 0.999, n_resamples=50, random_state=0)
        assert min(values) <= interval.low <= interval.estimate <= interval.high <= max(values)

    @pytest.mark.parametrize("factor", [2.0**-900, 2.0**900])
    def test_interval_scales_with_values(self, factor):
        """Squares of such values are 0 or infinity, which raised an error or lost the skewness."""
        values = np.random.default_rng(0).exponential(size=20)
        interval = bootstrap_interval(values, random_state=0)
        scaled = bootstrap_interval(factor * values, random_state=0)
        assert scaled == tuple(factor * bound for bound in interval)

    def test_interval_of_equal_values_has_zero_width(self):
        assert bootstrap_interval([0.3] * 20) == pytest.approx((0.3, 0.3, 0.3))

    def test_interval_depends_only_on_its_seed(self):
        values = np.random.default_rng(0).random(50)
        state = np.random.get_state()[1].tolist()  # noqa: NPY002
        first, repeated, other = (
            bootstrap_interval(values, random_state=seed) for seed in (1, 1, 2)
        )
        assert first == repeated != other
        assert state == np.random.get_state()[1].tolist()  # noqa: NPY002


class TestPairedDifference:
    def test_paired_interval_is_narrower_than_single_intervals(self):
        """The second model fails on 8 of 200 queries that the first answers correctly."""
        first = np.arange(200) < 120
        second = np.arange(200) < 112
        first_interval, second_interval = (bootstrap_interval(hits) for hits in (first, second))
        assert first_interval.low < second_interval.high
        difference = paired_difference(first, second)
        assert difference.estimate == pytest.approx(0.04)
        assert 0 < difference.low < 0.04 < difference.high < 0.08
        reverse = paired_difference(second, first)
        assert reverse == pytest.approx((-0.04, -difference.high, -difference.low))

    @pytest.mark.parametrize("n", [10, 20, 60])
    @pytest.mark.parametrize("p", [(0.02, 0.0), (0.05, 0.05), (0.05, 0.02), (0.2, 0.05),
                                   (0.4, 0.1), (0.01, 0.9)])  # fmt: skip
    def test_coverage_of_paired_hits_is_near_nominal(self, n, p):
        """The sum over all numbers of queries that one model alone answers correctly is exact."""
        covered = 0.0
        for n_first in range(n + 1):
            for n_second in range(n + 1 - n_first):
                counts = n_first, n_second, n - n_first - n_second
                probability = multinomial.pmf(counts, n, [*p, 1 - sum(p)])
                if probability < 1e-7:
                    continue
                first = make_hits(n_first, n)
                second = make_hits(n_second, n)[::-1]
                interval = paired_difference(first, second)
                assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
                covered += probability * (interval.low <= p[0] - p[1] <= interval.high)
        assert covered > 0.93

    def test_interval_of_equal_models_has_positive_width(self):
        hits = np.arange(50) < 20
        interval = paired_difference(hits, hits)
        assert interval.estimate == 0
        assert 0.04 < interval.high == -interval.low < 0.08

    def test_interval_is_bounded_if_one_model_is_always_better(self):
        interval = paired_difference(np.ones(30), np.zeros(30))
        assert interval.estimate == interval.high == 1
        assert 0.8 < interval.low < 1

    def test_values_other_than_hits_are_resampled(self):
        """Differences of 0 and 1 between other values are not treated as hits."""
        first, second = np.array([0.5, 1.5] * 10), np.array([0.5] * 20)
        interval = paired_difference(first, second, random_state=0)
        doubled = bootstrap_interval(2 * (first - second), random_state=0)
        assert interval == pytest.approx(np.array(doubled) / 2)
        assert interval != bootstrap_interval(first - second)
        hits = make_hits(12, 20)
        expected = bootstrap_interval(hits - second, random_state=0)
        assert paired_difference(hits, second, random_state=0) == expected


@pytest.mark.parametrize(
    ("values", "parameters", "message"),
    [
        ([1.0], {}, "at least 2 values, not 1"),
        ([], {}, "at least 2 values, not 0"),
        ([1.0, np.nan], {}, r"must be finite\. Value 1 is not"),
        (pd.Series([True, None], dtype="boolean"), {}, r"must be finite\. Value 1 is not"),
        ([0.0, 1.0], {"confidence": 95}, r"confidence must be a number in \(0, 1\)"),
        ([0.0, 1.0], {"confidence": np.nan}, r"confidence must be a number in \(0, 1\)"),
        ([0.0, 1.0], {"n_resamples": 0}, "n_resamples must be an integer >= 1"),
        ([0.0, 1.0], {"n_resamples": 99.5}, "n_resamples must be an integer >= 1"),
        (
            np.ma.masked_array([0, 1, 1], mask=[0, 1, 0]),
            {},
            r"^(values|first) has masked values in 1 row ",
        ),
        (np.zeros((3, 2)), {}, r"(values|first) must have one dimension, not the shape \(3, 2\)"),
    ],
)
def test_invalid_input_raises(values, parameters, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **parameters)
    with pytest.raises(ValueError, match=message):
        paired_difference(values, values, **parameters)


def test_error_names_the_second_model():
    with pytest.raises(ValueError, match=r"^second must be finite"):
        paired_difference([1, 0], [1, np.nan])


def test_different_numbers_of_queries_raise():
    with pytest.raises(ValueError, match="first has 3 values and second has 2"):
        paired_difference([1, 0, 1], [1, 0])
