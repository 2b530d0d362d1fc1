"""What is raised for items that cannot be encoded."""

from __future__ import annotations

from typing import Any


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
