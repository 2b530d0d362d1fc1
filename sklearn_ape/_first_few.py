"""Lists in messages: the first of them, and a sign that there are more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

_SHOWN = 5


def first_few(values: Iterable[Any], show: Callable[[Any], str] = repr) -> str:
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
