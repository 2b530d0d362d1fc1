"""All numerical cases, and their tables in docs/numerics_cases.md as Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.numerics.array_cases import FIT_SIZES, KINDS, SIZES, Form
from tests.robustness.numerics.cases import Cell
from tests.robustness.numerics.estimators import (
    ALIGNERS,
    ENTRY_POINTS,
    IMAGE,
    N_TRAIN,
    TEXT,
    EntryPoint,
)
from tests.robustness.numerics.pair_cases import make_pair_cells
from tests.robustness.numerics.score_cases import make_score_cells
from tests.robustness.numerics.text_cases import make_text_cells

_PLAIN = (IMAGE[:N_TRAIN], TEXT[:N_TRAIN], IMAGE[N_TRAIN:], TEXT[N_TRAIN:])


def _compute(entry_point: EntryPoint, form: Callable[[np.ndarray], Any]) -> np.ndarray:
    return entry_point.compute(*(form(rows) for rows in _PLAIN))


@cache
def _expected(entry_point: EntryPoint, form: Form) -> np.ndarray:
    return _compute(entry_point, form.like)


@cache
def _compute_plain(entry_point: EntryPoint) -> np.ndarray:
    return _compute(entry_point, lambda rows: rows)


def _check_expected(entry_point: EntryPoint, form: Form) -> None:
    results = _compute(entry_point, form.make)
    if form.expected == "error":  # the caller reports the missing error
        return
    is_plain = form.like(IMAGE) is IMAGE
    expected = _compute_plain(entry_point) if is_plain else _expected(entry_point, form)
    if form.tolerance == 0:
        np.testing.assert_array_equal(results, expected)
    else:
        tolerance = max(form.tolerance, entry_point.closeness)
        np.testing.assert_allclose(results, expected, atol=tolerance, rtol=form.tolerance)


def _check_finite(entry_point: EntryPoint, form: Form) -> None:
    assert np.isfinite(_compute(entry_point, form.make)).all()


def _make_feature_cells() -> list[Cell]:
    cells = []
    for title, forms in (("kinds of arrays", KINDS), ("sizes of numbers", SIZES)):
        cells += [
            Cell(title, form.name, entry_point.name, form.expected, form.words, form.means,
                 lambda entry_point=entry_point, form=form: _check_expected(entry_point, form))
            for form in forms
            for entry_point in ENTRY_POINTS
            if entry_point.takes(form.name)
        ]  # fmt: skip
    cells += [
        Cell("unlike the rest", form.name, entry_point.name, form.expected, form.words, form.means,
             lambda entry_point=entry_point, form=form: _check_finite(entry_point, form))
        for form in FIT_SIZES
        for entry_point in ENTRY_POINTS
        if entry_point.fits and entry_point.takes(form.name)
    ]  # fmt: skip
    return cells


CELLS: list[Cell] = [
    *_make_feature_cells(),
    *make_pair_cells(),
    *make_text_cells(),
    *make_score_cells(),
]


PAGE = Path(__file__).resolve().parents[3] / "docs" / "numerics_cases.md"
BEGIN, END = (
    "<!-- tables: written by tests/robustness/numerics/case_table.py -->",
    "<!-- end of tables -->",
)
# Entry points of more than this fraction of the rows are named above the table.
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
    """Replace the tables of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}")


def _table(title: str, cells: list[Cell]) -> str:
    counts = Counter(cell.to for cell in cells)
    n_rows = len({cell.given for cell in cells})
    usual = [name for name in counts if counts[name] > _USUAL * n_rows]
    lines = [f"## {_TITLES[title]}", ""]
    if usual:
        occasional = [name for name in counts if name not in usual]
        also = (
            f" Some rows are also tested with {_format_names(occasional)}." if occasional else ""
        )
        lines += [f"These inputs are tested with {_format_names(usual)}.{also}", ""]
    lines += ["| input | outcome |", "|---|---|"]
    rows: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        rows[cell.given][_describe_outcome(cell)].append(cell.to)
    for given, outcomes in rows.items():
        outcome_texts = [
            f"{text}{_name_entry_points(to, usual, len(outcomes))}"
            for text, to in outcomes.items()
        ]
        lines.append(f"| {_escape(given)} | {'; '.join(outcome_texts)} |")
    return "\n".join(lines)


def _name_entry_points(names: list[str], usual: list[str], n_outcomes: int) -> str:
    """Return the entry points of an outcome if they differ from those named above the table."""
    absent = [name for name in usual if name not in names]
    if not usual or n_outcomes > 1 or len(absent) >= len(names):
        return f" ({_format_names(names)})"
    return f" (not tested: {_format_names(absent)})" if absent else ""


def _describe_outcome(cell: Cell) -> str:
    named = ", ".join(f"“{_escape(word)}”" for word in cell.words)
    if cell.expected == "error":
        return f"**error** with {named} in the message"
    if cell.expected == "warning":
        return f"**warning** with {named} in the message; {_escape(cell.means)}"
    return f"**correct**: {_escape(cell.means)}"


def _format_names(names: list[str]) -> str:
    remaining = list(names)
    parts = []
    if set(ALIGNERS) <= set(remaining):
        parts.append("CCA, ASIF, Kernel and APE aligners")
        remaining = [name for name in remaining if name not in ALIGNERS]
    return ", ".join([*parts, *(f"`{name}`" for name in remaining)])


def _escape(text: str) -> str:
    for sign in ("|", "{", "}", "*", "_", "<", ">"):
        text = text.replace(sign, f"\\{sign}")
    return text
