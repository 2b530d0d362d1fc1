"""Telling how far a request has come."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[float, str], None]
"""Told of the share done, from 0 to 1, and what is being done."""


def no_report(share: float, what: str) -> None:
    """Tell nobody."""


def part(report: Report, start: float, end: float) -> Report:
    """Return what reports a part of the whole.

    >>> part(lambda share, what: print(share, what), 0.5, 1)(0.5, "half of the second half")
    0.75 half of the second half
    """
    return lambda share, what: report(start + share * (end - start), what)
