"""What is raised for items that cannot be encoded."""

from __future__ import annotations

import reprlib
from os import PathLike
from typing import Any

import numpy as np

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


def described(item: Any, error: ItemError) -> str:
    """Name an item in front of what is wrong with it."""
    if isinstance(getattr(item, "where", None), str):  # of a shard; tensors have a method `where`
        return f"{item.where} {error}"
    if isinstance(item, str | PathLike):
        return f"{str(item)[:200]!r} {error}"
    if isinstance(item, bytes | bytearray | memoryview):
        return f"the {type(item).__name__} object {error}"
    if hasattr(item, "getexif") or isinstance(item, np.ndarray):
        return f"the {'array' if isinstance(item, np.ndarray) else 'PIL image'} {error}"
    return f"{reprlib.repr(item)} {error}"


def summary(errors: dict[int, str], modality: str) -> str:
    """Name the first bad rows, a line each."""
    plural = "s" if len(errors) > 1 else ""
    lines = [f"  row {row}: {errors[row]}" for row in sorted(errors)[:_NAMED_IN_ERRORS]]
    if len(errors) > _NAMED_IN_ERRORS:
        lines.append(f"  and {len(errors) - _NAMED_IN_ERRORS} more.")
    return "\n".join([f"{len(errors)} {modality}{plural} cannot be encoded:", *lines, ""])
