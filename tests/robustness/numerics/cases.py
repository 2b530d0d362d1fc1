"""A cell of the table of inputs and outcomes, and what became of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OUTCOMES = ("right", "warning", "error")
ERRORS = (ValueError, TypeError, FloatingPointError)


@dataclass(frozen=True)
class Cell:
    """An input given to one entrance, and what must come of it.

    Parameters
    ----------
    table : str
        Which table of the page it stands in.
    given : str
        The input, in words.
    to : str
        The entrance.
    expected : {"right", "warning", "error"}
        "right": what `run` asserts holds, and nothing is said; "warning": it holds, and a warning
        with `words` is given; "error": an error with `words` is raised.
    words : tuple of str
        What messages must hold.
    means : str
        What right means, in words.
    run : callable
        Gives the input and asserts that the answer is right.
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
    """Return "right" or "error" as `Row` counts them; raise AssertionError for anything else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cell.run()
        except ERRORS as error:
            message = str(error)
            assert cell.expected == "error", f"refused: {message}"
            absent = [word for word in cell.words if word not in message]
            assert not absent, f"the message lacks {absent}: {message}"
            return "error"
    assert cell.expected != "error", "taken without a word"
    said = [str(one.message) for one in caught if _is_ours(one)]
    if cell.expected == "warning":
        lacking = [word for word in cell.words if not any(word in message for message in said)]
        assert not lacking, f"no warning holds {lacking}: {said}"
    else:
        assert not said, f"unexpected warnings: {said}"
    return "right"


def _is_ours(warning: Any) -> bool:
    """Leave out what is said of a library's future, and of names that a fit did not have."""
    is_of_names = "feature names" in str(warning.message)
    return issubclass(warning.category, UserWarning | RuntimeWarning) and not is_of_names


def outcome(cell: Cell) -> str:
    """Return what `benchmarks/reliability` counts a cell as."""
    try:
        return check(cell)
    except AssertionError as error:
        return "unclear" if str(error).startswith("the message lacks") else "wrong"
    except Exception:
        return "crash"
