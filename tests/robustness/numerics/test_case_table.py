"""Every case of the tables in docs/numerics.md, and the tables themselves."""

import pytest

from tests.robustness.numerics.case_table import BEGIN, CELLS, END, PAGE, tables
from tests.robustness.numerics.cases import check


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_cell(cell):
    """Right, as the cell says what that is, or refused or warned of in its words."""
    check(cell)


def test_tables_of_the_page_are_those_of_the_cells():
    """To write them: python -m tests.robustness.numerics page."""
    page = PAGE.read_text()
    found = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == tables(), "docs/numerics.md is out of date: see the docstring of this test"


def test_cells_have_names_of_their_own():
    """So that a cell can be run alone, and none hides another."""
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert all(cell.words for cell in CELLS if cell.expected != "right")
    assert all(cell.means for cell in CELLS if cell.expected == "right")
