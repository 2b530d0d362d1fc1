"""Checks of parameters and of sequences, and short lists for error messages."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import islice
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
from sklearn.utils import check_array, column_or_1d

_SHOWN = 5


def format_list(values: Iterable[Any], show: Callable[[Any], str] = repr) -> str:
    """Return the first five values with commas between, and ", ..." where there are more.

    Parameters
    ----------
    values : iterable
        Labels, paths or numbers of rows.
    show : callable, default=repr
        Turns one of them into text.
    """
    shown = [show(value) for value in islice(values, _SHOWN + 1)]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


P = ParamSpec("P")


T = TypeVar("T")


FLOATS = [np.float64, np.float32, np.float16]
"""What `check_array` lets pass; it makes the first of them of anything else."""


def as_numeric(features: Any, name: str) -> Any:
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
                f"them {format_list(rows, str)}. Fill them in, or leave these rows out."
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
        as_numeric(features, name),
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


def check_sequence(values: Any, name: str, kind: str, kinds: str | None = None) -> None:
    """Refuse a single item, and a container whose items have no number or no order.

    Python reads a str as a sequence of letters and a dict as a sequence of its keys. Without this
    check they would be accepted as such.

    Parameters
    ----------
    values : object
        The argument.
    name : str
        Name of the parameter, for messages.
    kind : str
        Noun for one item, such as "text" or "image".
    kinds : str or None, default=None
        Noun for the items. None is the plural of `kind`.

    Raises
    ------
    ValueError
        When `values` is a str, bytes, a path or a PIL image; or a dict, a set, an iterator, an
        array without dimensions or anything else that is not a sequence.
    """
    if isinstance(values, str | bytes | bytearray | memoryview | PathLike):
        shown = reprlib.repr(str(values)) if isinstance(values, str) and kind != "image" else name
        raise ValueError(
            f"{name} is a single {kind}, not a sequence of them: pass a list, [{shown}]."
        )
    kinds = kinds or f"{kind}s"
    if hasattr(values, "getexif"):
        raise ValueError(
            f"{name} is a single image, not a sequence of "
            f"{'them' if kind == 'image' else kinds}: pass a list, [{name}]."
        )
    if getattr(values, "ndim", 1) == 0:
        raise ValueError(
            f"{name} must be a sequence of {kinds}, not a single object in an array without "
            f"dimensions: pass a list, [{name}.item()]."
        )
    is_sized = hasattr(values, "__len__") or hasattr(values, "__array__")
    has_no_order = isinstance(values, Mapping | set | frozenset | type)
    # dok_array of scipy is a dict as well as an array.
    if (has_no_order and not hasattr(values, "ndim")) or not is_sized:
        items = f"{name}.values()" if isinstance(values, Mapping) else name
        shown = f"list({items})" if hasattr(values, "__iter__") else f"[{name}]"
        raise ValueError(
            f"{name} must be a sequence of {kinds} (a list, an array, a column), not "
            f"{type(values).__name__}: pass a list, {shown}."
        )


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless a parameter is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def check_integer(value: Any, name: str, low: int, optional: bool = False) -> None:
    """Raise ValueError unless a parameter is an integer of at least `low`, or None if optional."""
    if value is None and optional:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < low:
        none = "None or " if optional else ""
        raise ValueError(f"{name} must be {none}an integer >= {low}, not {value!r}.")


def check_number(
    value: Any,
    name: str,
    low: float,
    high: float = math.inf,
    closed: Literal["left", "both", "neither"] = "left",
    optional: bool = False,
) -> None:
    """Raise ValueError unless a parameter is a number in an interval, or None if optional.

    Parameters
    ----------
    value : object
        Value of the parameter.
    name : str
        Name of the parameter, for the message.
    low, high : float
        Bounds of the interval.
    closed : {"left", "both", "neither"}, default="left"
        Which bounds belong to the interval.
    optional : bool, default=False
        Whether None is valid.
    """
    if value is None and optional:
        return
    is_valid = isinstance(value, Real) and not isinstance(value, bool)
    if is_valid:
        above = float(value) > low if closed == "neither" else float(value) >= low
        below = float(value) <= high if closed == "both" else float(value) < high
        is_valid = above and below
    if not is_valid:
        none = "None or " if optional else ""
        left, right = "(" if closed == "neither" else "[", "]" if closed == "both" else ")"
        raise ValueError(
            f"{name} must be {none}a number in {left}{low:g}, {high:g}{right}, not {value!r}."
        )


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
