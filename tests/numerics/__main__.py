"""What is done with the table besides testing it.

python tests/numerics page                  # write the tables of docs/numerics.md
python tests/numerics counts                # how many cells each table has, as JSON
python tests/numerics outcomes TABLE FILE   # append what becomes of each cell to a file
"""

import json
import sys
from collections import Counter
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(_ROOT)


def main(what: str, *options: str) -> None:
    from tests.numerics import page
    from tests.numerics.cell import outcome
    from tests.numerics.table import CELLS

    if what == "page":
        page.write()
    elif what == "counts":
        print(json.dumps(Counter(cell.table for cell in CELLS)))
    else:
        table, path = options
        for cell in CELLS:
            if cell.table == table:
                kind = outcome(cell)
                if kind not in ("right", "error"):
                    print(f"{kind}: {cell.name}", file=sys.stderr)
                with open(path, "a") as file:
                    print(kind, file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
