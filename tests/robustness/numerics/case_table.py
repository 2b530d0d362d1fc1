"""All cases of the tables in docs/numerics.md, and these tables in Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.numerics.array_cases import FIT_SIZES, KINDS, SIZES, Form
from tests.robustness.numerics.cases import Cell
from tests.robustness.numerics.estimators import ALIGNERS, IMAGE, N_TRAIN, SUBJECTS, TEXT, Subject
from tests.robustness.numerics.pair_cases import set_cells
from tests.robustness.numerics.score_cases import score_cells
from tests.robustness.numerics.text_cases import text_cells

_PLAIN = (IMAGE[:N_TRAIN], TEXT[:N_TRAIN], IMAGE[N_TRAIN:], TEXT[N_TRAIN:])


def _answer(subject: Subject, form: Callable[[np.ndarray], Any]) -> np.ndarray:
    return subject.answer(*(form(rows) for rows in _PLAIN))


@cache
def _expected(subject: Subject, form: Form) -> np.ndarray:
    return _answer(subject, form.like)


@cache
def _plain_answer(subject: Subject) -> np.ndarray:
    return _answer(subject, lambda rows: rows)


def _as_expected(subject: Subject, form: Form) -> None:
    found = _answer(subject, form.make)
    if form.expected == "error":  # told by the caller, which wants a message
        return
    is_plain = form.like(IMAGE) is IMAGE
    expected = _plain_answer(subject) if is_plain else _expected(subject, form)
    if form.tolerance == 0:
        np.testing.assert_array_equal(found, expected)
    else:
        tolerance = max(form.tolerance, subject.closeness)
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=form.tolerance)


def _is_finite(subject: Subject, form: Form) -> None:
    assert np.isfinite(_answer(subject, form.make)).all()


def _cells_of_features() -> list[Cell]:
    cells = []
    for title, forms in (("kinds of arrays", KINDS), ("sizes of numbers", SIZES)):
        cells += [
            Cell(title, form.name, subject.name, form.expected, form.words, form.means,
                 lambda subject=subject, form=form: _as_expected(subject, form))
            for form in forms
            for subject in SUBJECTS
            if subject.takes(form.name)
        ]  # fmt: skip
    cells += [
        Cell("unlike the rest", form.name, subject.name, form.expected, form.words, form.means,
             lambda subject=subject, form=form: _is_finite(subject, form))
        for form in FIT_SIZES
        for subject in SUBJECTS
        if subject.fits and subject.takes(form.name)
    ]  # fmt: skip
    return cells


CELLS: list[Cell] = [*_cells_of_features(), *set_cells(), *text_cells(), *score_cells()]


PAGE = Path(__file__).resolve().parents[3] / "docs" / "numerics.md"
BEGIN, END = (
    "<!-- tables: written by tests/robustness/numerics/case_table.py -->",
    "<!-- end of tables -->",
)
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
