"""Confidence intervals for means and paired differences."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, bootstrap, norm, t

from ..utils.validation import (
    as_column,
    as_floats,
    check_integer,
    check_number,
    resolve_random_state,
)

_MAX_BATCH_VALUES = 2**22  # bounds the memory of the resamples
# Means of resamples that differ from the mean by less than this fraction of the range of the
# values are equal to it up to rounding.
_ROUNDING = 1e-12


class Interval(NamedTuple):
    """Mean and its confidence interval.

    Attributes
    ----------
    estimate : float
        Mean of the values.
    low, high : float
        Bounds of the interval.
    """

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    values: Any,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.RandomState | None = None,
) -> Interval:
    """Compute the confidence interval of a mean, such as the fraction of hits among queries.

    Zeros and ones (recall, accuracy) get the Wilson score interval of a proportion, and all other
    values a bootstrap interval.

    Parameters
    ----------
    values : array-like of shape (n_queries,)
        One number per query, such as ``retrieval_ranks(...) < 1`` for recall@1 or
        ``y_pred == y_true`` for accuracy.
    confidence : float, default=0.95
        Nominal coverage: the fraction of such intervals that contain the true mean.
    n_resamples : int, default=2000
        Number of bootstrap resamples of values other than zeros and ones.
    random_state : int, RandomState instance or None, default=None
        Random seed of the resamples.

    Returns
    -------
    interval : Interval
        ``estimate`` (the mean), ``low`` and ``high``.

    Raises
    ------
    ValueError
        If there are fewer than two values, a value is not finite, or a parameter is out of range.

    See Also
    --------
    paired_difference : Interval of the difference of two models, narrower than two intervals.

    Notes
    -----
    Queries are assumed to be independent. If several belong together, such as five captions of
    one image, pass the mean of each group.

    The percentile bootstrap is too narrow for proportions near 0 or 1: with 20 queries and a true
    mean of 0.05 its intervals of 95 % contain the true mean in 64 % of samples, and Wilson
    intervals [1]_ in 92 %. These have a positive width even if all queries are hits.

    For other values the bias-corrected and accelerated bootstrap (BCa) [2]_ is used, with its
    quantiles widened for few values as Student's t is wider than the normal distribution [3]_.
    Such intervals have zero width if all values are equal, and are too narrow for few values of a
    very skewed distribution, such as ranks. Pass reciprocal ranks or hits instead.

    References
    ----------
    .. [1] E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
       Journal of the American Statistical Association, 1927.
    .. [2] B. Efron, "Better Bootstrap Confidence Intervals", Journal of the American Statistical
       Association, 1987.
    .. [3] T. C. Hesterberg, "What Teachers Should Know About the Bootstrap", The American
       Statistician, 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import bootstrap_interval
    >>> hits = np.arange(200) < 150
    >>> interval = bootstrap_interval(hits)
    >>> interval.estimate, round(interval.low, 3), round(interval.high, 3)
    (0.75, 0.686, 0.805)
    """
    sample = _check_sample(values, "values", confidence, n_resamples)
    if _is_binary(sample):
        hits = int(sample.sum())
        low, high = binomtest(hits, len(sample)).proportion_ci(confidence, method="wilson")
    else:
        low, high = _compute_bootstrap_bounds(sample, confidence, n_resamples, random_state)
    return _make_interval(sample, low, high)


def paired_difference(
    first: Any,
    second: Any,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.RandomState | None = None,
) -> Interval:
    """Compute the confidence interval of the difference of two models on the same queries.

    Queries that are hard for both models cancel, so that models can differ significantly even if
    their own intervals overlap.

    Parameters
    ----------
    first, second : array-like of shape (n_queries,)
        One number per query for each model, in the same order; see `bootstrap_interval`.
    confidence : float, default=0.95
        Nominal coverage: the fraction of such intervals that contain the true difference.
    n_resamples : int, default=2000
        Number of bootstrap resamples of values other than zeros and ones.
    random_state : int, RandomState instance or None, default=None
        Random seed of the resamples.

    Returns
    -------
    interval : Interval
        Interval of the mean of ``first - second``. If it does not contain 0, one of the models is
        better.

    Raises
    ------
    ValueError
        If the models do not have the same number of values, or the values are not valid for
        `bootstrap_interval`.

    See Also
    --------
    bootstrap_interval : Interval of one model.

    Notes
    -----
    If both models have only zeros and ones, the result is the adjusted Wald interval of Bonett and
    Price [1]_, which adds one query to each kind of disagreement. It has a positive width even if
    the models agree on all queries. For other values, the differences are resampled as in
    `bootstrap_interval`.

    References
    ----------
    .. [1] D. G. Bonett and R. M. Price, "Adjusted Wald Confidence Interval for a Difference of
       Binomial Proportions Based on Paired Data", Journal of Educational and Behavioral
       Statistics, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import paired_difference
    >>> hits = np.arange(200) < 150
    >>> better = np.arange(200) < 160
    >>> interval = paired_difference(better, hits)
    >>> round(interval.estimate, 4), interval.low > 0
    (0.05, True)
    """
    first_sample = _check_sample(first, "first", confidence, n_resamples)
    second_sample = _check_sample(second, "second", confidence, n_resamples)
    if len(first_sample) != len(second_sample):
        raise ValueError(
            f"first has {len(first_sample)} values and second has {len(second_sample)}. Pass "
            "one value per query for each model."
        )
    differences = first_sample - second_sample
    if not (_is_binary(first_sample) and _is_binary(second_sample)):
        bounds = _compute_bootstrap_bounds(differences, confidence, n_resamples, random_state)
        return _make_interval(differences, *bounds)
    n_better, n_worse = np.sum(differences > 0) + 1, np.sum(differences < 0) + 1
    n = len(differences) + 2
    mean = (n_better - n_worse) / n
    half_width = norm.ppf((1 + confidence) / 2) * np.sqrt(((n_better + n_worse) / n - mean**2) / n)
    return _make_interval(differences, max(mean - half_width, -1.0), min(mean + half_width, 1.0))


def _check_sample(values: Any, name: str, confidence: float, n_resamples: int) -> np.ndarray:
    """Return values as float64, and raise ValueError for invalid values and parameters."""
    sample = as_floats(values, name, ensure_2d=False, ensure_min_samples=0)
    sample = as_column(sample, name).astype(np.float64)
    if len(sample) < 2:
        raise ValueError(f"{name} must have at least 2 values, not {len(sample)}.")
    if not np.isfinite(sample).all():
        raise ValueError(
            f"{name} must be finite. Value {np.flatnonzero(~np.isfinite(sample))[0]} is not."
        )
    check_number(confidence, "confidence", 0, 1, closed="neither")
    check_integer(n_resamples, "n_resamples", 1)
    return sample


def _is_binary(sample: np.ndarray) -> bool:
    return bool(np.isin(sample, (0.0, 1.0)).all())


def _make_interval(sample: np.ndarray, low: float, high: float) -> Interval:
    """Return an interval that contains the mean, from which rounding may separate the bounds."""
    estimate = float(sample.mean())
    return Interval(estimate, float(min(low, estimate)), float(max(high, estimate)))


def _compute_bootstrap_bounds(
    sample: np.ndarray,
    confidence: float,
    n_resamples: int,
    random_state: int | np.random.RandomState | None,
) -> tuple[float, float]:
    """Return the bounds of the BCa interval of the mean, with widened quantiles."""
    if np.ptp(sample) == 0:
        return sample[0], sample[0]
    # Squares and cubes of very large or small values are not numbers of float64. A power of two
    # scales the values without rounding.
    exponent = np.frexp(np.abs(sample).max())[1]
    sample = np.ldexp(sample, -exponent)
    n, mean, std = len(sample), sample.mean(), sample.std()
    means = bootstrap(
        (sample,),
        np.mean,
        n_resamples=n_resamples,
        batch=max(1, _MAX_BATCH_VALUES // n),
        method="percentile",
        random_state=resolve_random_state(random_state),
    ).bootstrap_distribution
    is_tie = np.abs(means - mean) <= _ROUNDING * np.ptp(sample)
    n_below = np.sum((means < mean) & ~is_tie) + is_tie.sum() / 2
    # The shift by one half keeps the bias finite if all resamples are on one side of the mean.
    bias = norm.ppf((n_below + 0.5) / (n_resamples + 1))
    # For a mean, the jackknife estimate is a function of the skewness and needs no resamples.
    acceleration = np.mean(((sample - mean) / std) ** 3) / (6 * np.sqrt(n))
    half_width = t.ppf((1 + confidence) / 2, n - 1) * np.sqrt(n / (n - 1))
    z = bias + np.array([-half_width, half_width])
    # Beyond the pole of the formula, the bound is the extreme mean of the resamples.
    low, high = np.quantile(means, norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-3)))
    return np.ldexp(low, exponent), np.ldexp(high, exponent)
