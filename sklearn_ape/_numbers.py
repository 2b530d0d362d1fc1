"""Arrays of numbers of every kind, as floats."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from sklearn.utils import check_array

from ._first_few import first_few

P = ParamSpec("P")
T = TypeVar("T")

FLOATS = [np.float64, np.float32, np.float16]
"""What `check_array` lets pass; it makes the first of them of anything else."""


def plain_numbers(features: Any, name: str) -> Any:
    """Refuse what NumPy would take for other numbers than were meant.

    Parameters
    ----------
    features : object
        What was passed.
    name : str
        For messages.

    Returns
    -------
    features : object
        The same, a masked array without masks as a plain one.

    Raises
    ------
    ValueError
        When numbers are masked, or are times.
    """
    if isinstance(features, np.ma.MaskedArray):
        if np.ma.is_masked(features):
            masked = np.ma.getmaskarray(features).reshape(len(features), -1)
            rows = np.flatnonzero(masked.any(axis=1))
            raise ValueError(
                f"{name} is a masked array with masked numbers in {rows.size} rows, the first of "
                f"them {first_few(rows, str)}. Fill them in, or leave these rows out."
            )
        return np.asarray(features.data)
    dtype = getattr(features, "dtype", None)
    if getattr(dtype, "kind", "") in ("m", "M"):
        raise ValueError(f"{name} holds times ({dtype}): expected numbers.")
    return features


def as_floats(features: Any, name: str, **options: Any) -> np.ndarray:
    """Return an array of one of `FLOATS`, as `check_array` makes it, whatever its numbers.

    Parameters
    ----------
    features : array-like of shape (n, n_features)
        What was passed.
    name : str
        For messages.
    **options : object
        Of `check_array`.
    """
    return check_array(
        plain_numbers(features, name),
        dtype=FLOATS,
        ensure_all_finite=False,
        input_name=name,
        **options,
    )


def is_missing(value: Any) -> bool:
    """Say whether a value is None, NaN, NaT, or pandas's NA (which is not equal to itself)."""
    if value is None or type(value).__name__ == "NAType":
        return True
    differs = value != value
    return isinstance(differs, bool | np.bool_) and bool(differs)


def ignores_underflow(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function compute under ``np.errstate(all="raise")``; use it as a decorator.

    Small probabilities and products of small numbers are rounded to zero, which is correct. The
    caller's settings hold for overflow, division by zero and invalid operations.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with np.errstate(under="ignore"):
            return function(*args, **kwargs)

    return wrapped
