"""How sure a mean over queries is, and a difference of two."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap
from sklearn.utils import check_random_state, column_or_1d

_RESAMPLED_AT_ONCE = 2**22


class Interval(NamedTuple):
    """A mean and the confidence interval around it.

    Attributes
    ----------
    estimate : float
        The mean.
    low, high : float
        The ends of the interval.
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
    """Confidence interval of a mean, such as of hits per query, by `scipy.stats.bootstrap`.

    Parameters
    ----------
    values : array-like of shape (n_queries,)
        A number a query, such as ``retrieval_ranks(...) < 1`` for recall@1 or
        ``y_pred == y_true`` for accuracy.
    confidence : float, default=0.95
        Share of such intervals that hold the true mean.
    n_resamples : int, default=2000
        How often queries are drawn anew.
    random_state : int, RandomState instance or None, default=None
        Draws the queries.

    Returns
    -------
    interval : Interval
        ``estimate`` (the mean), ``low`` and ``high``: percentiles of the means of the resamples.

    Raises
    ------
    ValueError
        When there are fewer than two values, one is not finite, or a parameter is out of range.

    See Also
    --------
    paired_difference : Compares two models, with narrower intervals than two of these.

    Notes
    -----
    Queries are taken as independent. Where several belong together, such as five captions of one
    picture, pass the mean of each group.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import bootstrap_interval
    >>> hits = np.arange(200) < 150
    >>> interval = bootstrap_interval(hits, random_state=0)
    >>> interval.estimate
    0.75
    >>> bool(0.67 < interval.low < 0.72 and 0.78 < interval.high < 0.83)
    True
    """
    sample = column_or_1d(values).astype(np.float64)
    if len(sample) < 2:
        raise ValueError(f"An interval needs at least 2 values, not {len(sample)}.")
    if not np.isfinite(sample).all():
        raise ValueError(f"Value {np.flatnonzero(~np.isfinite(sample))[0]} is not finite.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence!r}.")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, not {n_resamples!r}.")
    low, high = bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=n_resamples,
        batch=max(1, _RESAMPLED_AT_ONCE // len(sample)),
        method="percentile",
        random_state=check_random_state(random_state),
    ).confidence_interval
    return Interval(float(sample.mean()), float(low), float(high))


def paired_difference(
    first: Any,
    second: Any,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.RandomState | None = None,
) -> Interval:
    """How much better one model is than another on the same queries.

    Queries that are hard for both models cancel, so it tells models apart whose own intervals
    overlap.

    Parameters
    ----------
    first, second : array-like of shape (n_queries,)
        A number a query of each model, in the same order; see `bootstrap_interval`.
    confidence : float, default=0.95
        Share of such intervals that hold the true difference.
    n_resamples : int, default=2000
        How often queries are drawn anew.
    random_state : int, RandomState instance or None, default=None
        Draws the queries.

    Returns
    -------
    interval : Interval
        Of the mean of ``first - second``; an interval without 0 speaks for one of the models.

    Raises
    ------
    ValueError
        When the models have not as many values, or `bootstrap_interval` refuses them.

    See Also
    --------
    bootstrap_interval : Of one model.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import paired_difference
    >>> hits = np.arange(200) < 150
    >>> better = np.arange(200) < 160
    >>> interval = paired_difference(better, hits, random_state=0)
    >>> round(interval.estimate, 4), interval.low > 0
    (0.05, True)
    """
    one, other = (column_or_1d(side).astype(np.float64) for side in (first, second))
    if len(one) != len(other):
        raise ValueError(
            f"Both models need a value for each of the same queries, and there are {len(one)} and "
            f"{len(other)}."
        )
    return bootstrap_interval(one - other, confidence, n_resamples, random_state)
