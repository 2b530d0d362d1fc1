"""Every cell of the table of inputs and outcomes on the page docs/numerics.md."""

import pytest

from tests.numerics.cell import check
from tests.numerics.table import CELLS


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_cell(cell):
    """Right, as the cell says what that is, or refused or warned of in its words."""
    check(cell)
