"""Cases of the tables in docs/numerics_cases.md, and the tables themselves."""

import pytest

from tests.robustness.numerics.case_table import BEGIN, CELLS, END, PAGE, tables
from tests.robustness.numerics.cases import check


@pytest.mark.sampled(20)
@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_case_has_expected_outcome(cell):
    """The result is correct, or the expected warning or error is raised."""
    check(cell)


def test_tables_of_the_page_are_up_to_date():
    """Run ``python -m tests.robustness.numerics page`` to update the page."""
    page = PAGE.read_text()
    page_tables = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert page_tables == tables(), (
        "docs/numerics_cases.md is out of date: see the docstring of this test"
    )


def test_names_of_cases_are_unique():
    """Each case can be selected by its name, and none replaces another."""
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert all(cell.words for cell in CELLS if cell.expected != "right")
    assert all(cell.means for cell in CELLS if cell.expected == "right")
