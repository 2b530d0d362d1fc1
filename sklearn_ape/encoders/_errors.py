"""What is raised for items that cannot be encoded."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from .._first_few import first_few

_NAMED_IN_ERRORS = 5


class ItemError(ValueError):
    """One item cannot be encoded; the message says why and what to do."""


class EncodingError(ValueError):
    """Some items could not be encoded.

    Parameters
    ----------
    message : str
        Names the first bad rows and the remedy.
    errors : dict of {int: str}
        See below.

    Attributes
    ----------
    errors : dict of {int: str}
        The reason for every bad row found.
    """

    def __init__(self, message: str, errors: dict[int, str]) -> None:
        super().__init__(message)
        self.errors = errors

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.errors)


class EncodingFailedWarning(UserWarning):
    """Some items could not be encoded; their features are NaN."""


class _Described(str):
    """Description of an error, with the name of the item and the reason as attributes."""

    name: str
    reason: str


def described(item: Any, error: ItemError) -> str:
    """Name an item in front of what is wrong with it."""
    name = ""
    if isinstance(getattr(item, "where", None), str):  # of a shard; tensors have a method `where`
        name = item.where
    elif isinstance(item, str | PathLike):
        name = repr(str(item)[:200])
    text = _Described(f"{name or _unnamed(item)} {error}")
    text.name, text.reason = name, str(error)
    return text


def _unnamed(item: Any) -> str:
    if isinstance(item, bytes | bytearray | memoryview):
        return f"the {type(item).__name__} object"
    if hasattr(item, "getexif") or isinstance(item, np.ndarray):
        return f"the {'array' if isinstance(item, np.ndarray) else 'PIL image'}"
    return reprlib.repr(item)


def summary(errors: Mapping[int, str], modality: str) -> str:
    """Name the first bad rows: one line per reason, with all its rows."""
    rows_of: dict[str, list[int]] = {}
    for row in sorted(errors):
        rows_of.setdefault(getattr(errors[row], "reason", errors[row]), []).append(row)
    groups = list(rows_of.items())
    lines = [_line(errors, reason, rows) for reason, rows in groups[:_NAMED_IN_ERRORS]]
    n_more = sum(len(rows) for _, rows in groups[_NAMED_IN_ERRORS:])
    if n_more:
        lines.append(f"  and {n_more} more.")
    plural = "s" if len(errors) > 1 else ""
    return "\n".join([f"{len(errors)} {modality}{plural} cannot be encoded:", *lines, ""])


def _line(errors: Mapping[int, str], reason: str, rows: list[int]) -> str:
    if len(rows) == 1:
        return f"  row {rows[0]}: {errors[rows[0]]}"
    names = list(dict.fromkeys(getattr(errors[row], "name", "") for row in rows))
    each = f"each of {first_few(names, str)} " if all(names) else "each "
    if len(names) == 1:
        each = f"{names[0]} " if names[0] else "each "
    if not hasattr(errors[rows[0]], "reason"):  # kept in a file as plain text
        each = ""
    return f"  rows {first_few(rows, str)} ({len(rows)} in all): {each}{reason}"
