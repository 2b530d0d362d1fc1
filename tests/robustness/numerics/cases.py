"""Cells of the tables of numerical cases, and checks of their outcomes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OUTCOMES = ("right", "warning", "error")
ERRORS = (ValueError, TypeError, FloatingPointError)


@dataclass(frozen=True)
class Cell:
    """Input of one entry point and its expected outcome.

    Parameters
    ----------
    table : str
        Name of the table.
    given : str
        Description of the input.
    to : str
        Name of the entry point: a class, method or function.
    expected : {"right", "warning", "error"}
        "right": `run` passes without a warning. "warning": `run` passes, and a warning contains
        all `words`. "error": an error with all `words` is raised.
    words : tuple of str
        Words that the message of the warning or error must contain.
    means : str
        Description of the correct result.
    run : callable
        Function that passes the input and checks the result.
    """

    table: str
    given: str
    to: str
    expected: str
    words: tuple[str, ...]
    means: str
    run: Callable[[], Any]

    @property
    def name(self) -> str:
        return f"{self.table}: {self.given} -> {self.to}"


def check(cell: Cell) -> str:
    """Return "right" or "error", or raise an AssertionError for any other outcome."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cell.run()
        except ERRORS as error:
            message = str(error)
            assert cell.expected == "error", f"unexpected error: {message}"
            missing_words = [word for word in cell.words if word not in message]
            assert not missing_words, f"the message lacks {missing_words}: {message}"
            return "error"
    assert cell.expected != "error", "no error was raised"
    messages = [str(warning.message) for warning in caught if _is_relevant(warning)]
    if cell.expected == "warning":
        missing_words = [
            word for word in cell.words if not any(word in message for message in messages)
        ]
        assert not missing_words, f"no warning holds {missing_words}: {messages}"
    else:
        assert not messages, f"unexpected warnings: {messages}"
    return "right"


def _is_relevant(warning: Any) -> bool:
    """Return whether a warning says something about the input.

    Deprecations and feature names do not. Neither do warnings of matrix products: OpenBLAS sets
    floating point flags for values that it pads with, so that NumPy sometimes warns of a correct
    product (https://github.com/numpy/numpy/issues/24067). `Cell.run` checks the values.
    """
    message = str(warning.message)
    is_of_product = "encountered in matmul" in message
    is_about_names = "feature names" in message
    return issubclass(warning.category, UserWarning | RuntimeWarning) and not (
        is_of_product or is_about_names
    )


def outcome(cell: Cell) -> str:
    """Return the outcome of a cell as `benchmarks/reliability` counts it."""
    try:
        return check(cell)
    except AssertionError as error:
        return "unclear" if str(error).startswith("the message lacks") else "wrong"
    except Exception:
        return "crash"
