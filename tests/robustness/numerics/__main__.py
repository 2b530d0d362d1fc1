"""Commands for the tables of numerical cases; run them from the repository root.

python -m tests.robustness.numerics page                  # write docs/numerics_cases.md
python -m tests.robustness.numerics counts                # the number of cases per table, as JSON
python -m tests.robustness.numerics outcomes TABLE FILE   # append the outcome of each case
"""

import json
import sys
from collections import Counter

from tests.robustness.numerics.case_table import CELLS, write
from tests.robustness.numerics.cases import outcome


def main(command: str, *options: str) -> None:
    if command == "page":
        write()
    elif command == "counts":
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
