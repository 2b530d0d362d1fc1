"""The table of inputs and outcomes: every cell of it, for tests, page and benchmark."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tests.numerics.arrays import FIT_SIZES, KINDS, SIZES, Form
from tests.numerics.cell import Cell
from tests.numerics.scores import score_cells
from tests.numerics.sets import set_cells
from tests.numerics.subjects import IMAGE, N_TRAIN, SUBJECTS, TEXT, Subject
from tests.numerics.texts import text_cells

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
