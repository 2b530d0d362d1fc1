"""Count what goes wrong: hostile files, fuzzing, numbers, faults, many visitors. Nothing may.

    python benchmarks/reliability.py                   # all parts
    python benchmarks/reliability.py hostile           # one
    python benchmarks/reliability.py --examples 20000  # more fuzzing; 2,000 without it

Prints a line for each part and writes docs/results/reliability.csv. Exits with 1 if anything
crashed, hung, answered wrongly or was lost. A part is a module of `reliability_parts`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path

from benchmarks.reliability.rows import Row

PARTS = ("hostile", "fuzz", "numerics", "faults", "service")
_RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "reliability.csv"


def show(rows: list[Row]) -> None:
    names = [field.name for field in fields(Row)]
    lines = [names, *([str(value) for value in asdict(row).values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def keep(rows: list[Row], part: str, path: Path) -> None:
    """Write the rows of a part behind those of the others."""
    kept = []
    if path.is_file():
        with path.open(newline="") as file:
            kept = [line for line in csv.DictReader(file) if line["part"] != part]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows([*kept, *map(asdict, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none")
    parser.add_argument("--examples", type=int, default=2000, help="of each fuzzed entrance")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="csv file of results")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {PARTS}")
    failures = 0
    for part in options.parts or PARTS:
        print(f"\n{part}", flush=True)
        rows = import_module(f"benchmarks.reliability.{part}").measure(options.examples)
        show(rows)
        keep(rows, part, options.output)
        failures += sum(row.failures for row in rows)
    if failures:
        sys.exit(f"\n{failures} failures")


if __name__ == "__main__":
    main()
