"""Runs the parts of `speed.py` and `memory.py`, and keeps what they measure."""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from benchmarks._results import Row, save, show


def main(what: str, parts: tuple[str, ...], description: str) -> None:
    """Measure the parts asked for; rows of the others are kept as they are in the csv file."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all if none")
    parser.add_argument("--quick", action="store_true", help="a trial of a minute or so")
    parser.add_argument("--output", type=Path, help="folder of results (default: docs/results)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {parts}")
    output = options.output
    if output is None:  # trial runs must not mix with the real rows
        real = Path(__file__).resolve().parents[1] / "docs" / "results"
        output = Path(tempfile.gettempdir(), "benchmark-quick") if options.quick else real
    missed = []
    for part in options.parts or parts:
        print(f"\n{part}", flush=True)
        rows = import_module(f"benchmarks.{what}.{part}").measure(options.quick)
        show(rows)
        missed += [row.what for row in rows if row.verdict == "missed"]
        _keep(rows, part, output / f"{what}.csv")
    if missed:
        print(f"\nBelow the bar: {'; '.join(missed)}", file=sys.stderr)


def _keep(rows: list[Row], part: str, path: Path) -> None:
    kept = []
    if path.is_file():
        with path.open(newline="") as file:
            kept = [line for line in csv.DictReader(file) if line["part"] != part]
    save(rows, path, part, kept)
