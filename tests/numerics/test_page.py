"""The page says what the cells say."""

from tests.numerics.page import BEGIN, END, PAGE, tables
from tests.numerics.table import CELLS


def test_tables_of_the_page_are_those_of_the_cells():
    """Else: python tests/numerics page."""
    page = PAGE.read_text()
    found = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == tables(), "docs/numerics.md is out of date: see the docstring of this test"


def test_cells_have_names_of_their_own():
    """So that a cell can be run alone, and none hides another."""
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert all(cell.words for cell in CELLS if cell.expected != "right")
    assert all(cell.means for cell in CELLS if cell.expected == "right")
