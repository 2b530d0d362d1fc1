"""Validation of the parameters of metrics."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import column_or_1d

from .._numbers import is_missing
from .._sequences import check_sequence


def check_count(value: Any, name: str) -> None:
    """Raise ValueError unless a value is an integer of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be at least 1 and an integer, not {value!r}.")


def as_labels(y: Any) -> np.ndarray:
    """Return classes as an array of one dimension that changes none of them.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Classes, of any type.

    Returns
    -------
    y : ndarray of shape (n_samples,)
        Of objects where NumPy would turn numbers into texts.
    """
    check_sequence(y, "y", "class", "classes")
    if not hasattr(y, "dtype"):
        y = list(y)
        kinds = {isinstance(value, str) for value in y}
        if len(kinds) > 1:
            listed, y = y, np.empty(len(y), dtype=object)
            y[:] = listed
    return column_or_1d(y)


def distinct_labels(y: np.ndarray, name: str) -> np.ndarray:
    """Return the sorted classes of an array that `as_labels` returned.

    Raises
    ------
    ValueError
        When a class is missing (None, NaN or NA), or the classes cannot be sorted.
    """
    missing = [row for row, value in enumerate(y.tolist()) if is_missing(value)]
    if missing:
        raise ValueError(
            f"{name} has {len(missing)} missing values, the first in row {missing[0]}. Leave "
            "these rows out."
        )
    try:
        return np.unique(y)
    except TypeError:
        raise ValueError(
            f"{name} mixes types that cannot be sorted, such as texts and numbers. Use one type."
        ) from None
