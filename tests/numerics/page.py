"""Writes the tables of docs/numerics.md: python tests/numerics page."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from tests.numerics.cell import Cell
from tests.numerics.subjects import ALIGNERS
from tests.numerics.table import CELLS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "numerics.md"
BEGIN, END = "<!-- tables: written by tests/numerics/page.py -->", "<!-- end of tables -->"
# Of the rows of a table: who is given so many is named above it.
_USUAL = 0.5
_TITLES = {
    "kinds of arrays": "Features: array types",
    "sizes of numbers": "Features: magnitudes",
    "unlike the rest": "Features: outliers and constant offsets in fit",
    "sets of pairs": "Training pairs",
    "texts": "Texts",
    "labels": "Labels and templates",
    "metrics, losses, heads": "Metrics, losses and heads",
}


def tables() -> str:
    """Return all tables as Markdown."""
    return "\n\n".join(_table(title, [c for c in CELLS if c.table == title]) for title in _TITLES)


def write() -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}")


def _table(title: str, cells: list[Cell]) -> str:
    counts = Counter(cell.to for cell in cells)
    n_rows = len({cell.given for cell in cells})
    usual = [name for name in counts if counts[name] > _USUAL * n_rows]
    lines = [f"### {_TITLES[title]}", ""]
    if usual:
        some = [name for name in counts if name not in usual]
        also = f" Some rows are also tested with {_listed(some)}." if some else ""
        lines += [f"These inputs are tested with {_listed(usual)}.{also}", ""]
    lines += ["| input | outcome |", "|---|---|"]
    rows: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        rows[cell.given][_said(cell)].append(cell.to)
    for given, outcomes in rows.items():
        told = [f"{said}{_by_whom(to, usual, len(outcomes))}" for said, to in outcomes.items()]
        lines.append(f"| {_escaped(given)} | {'; '.join(told)} |")
    return "\n".join(lines)


def _by_whom(names: list[str], usual: list[str], n_outcomes: int) -> str:
    """Say who is meant, where it is not everyone who is usual in the table."""
    absent = [name for name in usual if name not in names]
    if not usual or n_outcomes > 1 or len(absent) >= len(names):
        return f" ({_listed(names)})"
    return f" (not tested: {_listed(absent)})" if absent else ""


def _said(cell: Cell) -> str:
    named = ", ".join(f"“{_escaped(word)}”" for word in cell.words)
    if cell.expected == "error":
        return f"**error** with {named} in the message"
    if cell.expected == "warning":
        return f"**warning** with {named} in the message; {_escaped(cell.means)}"
    return f"**correct**: {_escaped(cell.means)}"


def _listed(names: list[str]) -> str:
    left = list(names)
    shown = []
    if set(ALIGNERS) <= set(left):
        shown.append("CCA, ASIF, Kernel and APE aligners")
        left = [name for name in left if name not in ALIGNERS]
    return ", ".join([*shown, *(f"`{name}`" for name in left)])


def _escaped(text: str) -> str:
    for sign in ("|", "{", "}", "*", "_", "<", ">"):
        text = text.replace(sign, f"\\{sign}")
    return text
