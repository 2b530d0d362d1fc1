"""Rows of the tables of `speed.py` and `memory.py`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measurement beside that of a peer, made in the same run.

    `ratio` is ours / theirs; `bar` says in words what it should be, such as "at least 6".
    """

    what: str
    ours: float
    unit: str
    peer: str = ""
    theirs: float | None = None
    bar: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours divided by the peer's."""
        return self.ours / self.theirs if self.theirs else None

    @property
    def verdict(self) -> str:
        """Say "met" or "missed" for a bar of the form "at least x" or "at most x"."""
        words = self.bar.split()
        if len(words) < 3 or self.ratio is None:
            return ""
        limit = float(words[2].rstrip("x×"))
        good = self.ratio >= limit if words[1] == "least" else self.ratio <= limit
        return "met" if good else "missed"


def show(rows: Iterable[Row]) -> None:
    """Print a table."""
    lines = [("what", "ours", "peer", "theirs", "ratio", "bar")]
    for row in rows:
        theirs = "" if row.theirs is None else f"{row.theirs:,.4g} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        bar = f"{row.bar} ({row.verdict})" if row.verdict else row.bar
        lines.append((row.what, f"{row.ours:,.4g} {row.unit}", row.peer, theirs, ratio, bar))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def save(rows: Iterable[Row], path: Path, part: str, others: Iterable[dict] = ()) -> None:
    """Write the rows of a part as csv, with their ratios, behind lines of other parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        fields = ["part", "what", "ours", "unit", "peer", "theirs", "bar", "ratio", "verdict"]
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(others)
        for row in rows:
            more = {"part": part, "ratio": row.ratio, "verdict": row.verdict}
            writer.writerow({**asdict(row), **more})
