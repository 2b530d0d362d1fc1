"""A line of the table of `reliability.py`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# The corpus is part of the tests.
ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)


@dataclass(frozen=True)
class Row:
    """Cases of one kind and what became of them; only the first three may be above zero."""

    part: str
    what: str
    cases: int
    right: int
    clear_errors: int
    crashes: int = 0
    hangs: int = 0
    wrong: int = 0
    lost: int = 0

    @property
    def failures(self) -> int:
        """Count what must not happen."""
        return self.crashes + self.hangs + self.wrong + self.lost

    @classmethod
    def of(cls, part: str, what: str, kinds: Iterable[str] | Mapping[str, int], cases: int) -> Row:
        """Count outcomes; cases without one are lost.

        Unclear messages and memory beyond the bound count as wrong.
        """
        found = Counter(kinds)
        n_wrong = found["wrong"] + found["unclear"] + found["greedy"]
        n_lost = cases - found.total() + found["lost"]
        return cls(
            part, what, cases, found["right"], found["error"], found["crash"], found["hang"],
            n_wrong, n_lost,
        )  # fmt: skip
