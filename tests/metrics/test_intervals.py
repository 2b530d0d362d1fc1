"""Intervals hold what they promise, and pairs narrow them."""

import numpy as np
import pytest
from scipy.stats import norm

from sklearn_ape.metrics import bootstrap_interval, paired_difference


def test_is_the_normal_interval_of_many_hits():
    hits = np.random.default_rng(0).random(3000) < 0.3
    interval = bootstrap_interval(hits, confidence=0.9, random_state=0)
    half = norm.ppf(0.95) * hits.std() / np.sqrt(3000)
    assert interval.estimate == hits.mean()
    assert interval.low == pytest.approx(hits.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(hits.mean() + half, abs=0.1 * half)


def test_pairs_tell_apart_what_single_intervals_do_not():
    """Of 200 queries the second model gets 8 wrong that the first gets right."""
    first = np.arange(200) < 120
    second = np.arange(200) < 112
    one, other = (bootstrap_interval(hits, random_state=0) for hits in (first, second))
    assert one.low < other.high
    difference = paired_difference(first, second, random_state=0)
    assert difference.estimate == pytest.approx(0.04)
    assert 0 < difference.low < 0.04 < difference.high < 0.08


def test_repeats_by_seed_and_leaves_the_global_generator_alone():
    values = np.random.default_rng(0).random(50)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    one, again, other = (bootstrap_interval(values, random_state=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert before == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_interval(np.ones(20)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "parameters", "message"),
    [
        ([1.0], {}, "at least 2 values, not 1"),
        ([1.0, np.nan], {}, "Value 1 is not finite"),
        ([0.0, 1.0], {"confidence": 95}, "confidence must be between 0 and 1"),
        ([0.0, 1.0], {"n_resamples": 0}, "n_resamples must be at least 1"),
    ],
)
def test_bad_input_is_named(values, parameters, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **parameters)


def test_models_on_different_queries_are_refused():
    with pytest.raises(ValueError, match="same queries, and there are 3 and 2"):
        paired_difference([1, 0, 1], [1, 0])
