"""What was fitted, as read from a file: looked at before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._first_few import first_few


class State:
    """Named values of a file, each given out once and checked.

    Parameters
    ----------
    values : mapping of str to object
        As `Shareable._fitted_state` returned them.
    where : str
        What errors call the place in the file.

    Raises
    ------
    ValueError
        From every method, when a value is missing or not of the kind asked for.

    Examples
    --------
    >>> from sklearn_ape.persistence import State
    >>> state = State({"n": 3, "more": {"scale": 1.5}}, "model")
    >>> state.integer("n", least=1)
    3
    >>> state.part("more").number("scale")
    1.5
    >>> state.close()
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must be an object, not {_short(values)}.")
        self._values = dict(values)
        self._parts: list[State] = []
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def __len__(self) -> int:
        return len(self._values)

    def value(self, name: str) -> Any:
        """Return anything."""
        if name not in self._values:
            raise ValueError(f"{self.where} has no {name!r}.")
        return self._values.pop(name)

    def optional(self, name: str) -> Any:
        """Return anything, or None where there is nothing."""
        return self._values.pop(name, None)

    def peek(self, name: str) -> Any:
        """Return anything, or None, and leave it there."""
        return self._values.get(name)

    def part(self, name: str) -> State:
        """Return named values within."""
        part = State(self.value(name), f"{self.where}.{name}")
        self._parts.append(part)
        return part

    def integer(self, name: str, least: int = 0, most: int = 2**53) -> int:
        """Return an integer in [least, most]."""
        value = self.value(name)
        if type(value) is not int or not least <= value <= most:
            self._refuse(name, f"an integer from {least} to {most}", value)
        return value

    def number(self, name: str, above: float = -math.inf) -> float:
        """Return a finite number above another."""
        value = self.value(name)
        if type(value) not in (int, float) or not above < value < math.inf:
            self._refuse(name, f"a number above {above:g}", value)
        return float(value)

    def text(self, name: str) -> str:
        """Return a str."""
        value = self.value(name)
        if not isinstance(value, str):
            self._refuse(name, "a text", value)
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of str."""
        value = self.value(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self._refuse(name, "a list of texts", value)
        return value

    def array(
        self, name: str, shape: Sequence[int | None], kinds: str = "f", finite: bool = True
    ) -> np.ndarray:
        """Return an array of some shape (None for any length) and kinds of numpy's types."""
        value = self.value(name)
        if (
            not isinstance(value, np.ndarray)
            or value.dtype.kind not in kinds
            or value.ndim != len(shape)
            or any(wanted not in (None, n) for wanted, n in zip(shape, value.shape, strict=True))
        ):
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            self._refuse(name, f"an array of shape ({wanted}) and kind {kinds!r}", value)
        if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{self.where}.{name} holds numbers that are not finite.")
        return value

    def close(self) -> None:
        """Refuse values that nobody asked for."""
        if self._values:
            raise ValueError(
                f"{self.where} has {first_few(sorted(self._values))}, which this "
                "version of sklearn-ape does not know: pip install --upgrade sklearn-ape."
            )
        for part in self._parts:
            part.close()

    def _refuse(self, name: str, wanted: str, value: Any) -> None:
        raise ValueError(f"{self.where}.{name} must be {wanted}, not {_short(value)}.")


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    return repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"
