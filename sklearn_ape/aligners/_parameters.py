"""Checks of parameters, with messages that say what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def check_choice(estimator: Any, name: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless a parameter is one of some names."""
    value = getattr(estimator, name)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def check_integer(estimator: Any, name: str, least: int, optional: bool = False) -> None:
    """Raise ValueError unless a parameter is an integer of some size (or None)."""
    value = getattr(estimator, name)
    if value is None and optional:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        none = "None or " if optional else ""
        raise ValueError(f"{name} must be {none}an integer >= {least}, not {value!r}.")


def check_number(
    estimator: Any, name: str, low: float, high: float = math.inf, above: bool = False
) -> None:
    """Raise ValueError unless a parameter is a number in [low, high), or in (low, high)."""
    value = getattr(estimator, name)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not low <= float(value) < high or (above and float(value) == low):
        raise ValueError(
            f"{name} must be a number in {'(' if above else '['}{low:g}, {high:g}), not {value!r}."
        )
