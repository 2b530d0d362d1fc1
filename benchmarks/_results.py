"""Recorder of benchmark results: rows, CSV files and the command line of the four programs."""

from __future__ import annotations

import argparse
import csv
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


class Results:
    """Rows of a CSV file, which are on the disk as soon as they are measured.

    Parameters
    ----------
    path : Path
        CSV file. It is created, with its folder, by the first call of `append`.
    columns : sequence of str
        Names of the columns.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = list(columns)
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            # A killed process can leave half a line, which must not pass for a measurement.
            complete = text[: text.rfind("\n") + 1]
            reader = csv.DictReader(io.StringIO(complete))
            self.rows = list(reader)
            if complete and reader.fieldnames != self.columns:
                raise ValueError(
                    f"{path} has the columns {reader.fieldnames}, expected {self.columns}. "
                    "Delete the file, or choose another folder with --output."
                )
            if complete != text:
                path.write_text(complete, encoding="utf-8")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to the file and flush them to the disk."""
        records = [
            {
                column: "" if row.get(column) is None else str(row[column])
                for column in self.columns
            }
            for row in rows
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(self._format(records, header=not self.path.stat().st_size))
            stream.flush()
            os.fsync(stream.fileno())
        self.rows += records

    def remove(self, column: str, values: Collection[str]) -> None:
        """Remove the rows whose column has one of the values, and rewrite the file atomically."""
        self.rows = [row for row in self.rows if row[column] not in values]
        if self.path.is_file():
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(self._format(self.rows, header=True), encoding="utf-8")
            os.replace(temporary, self.path)

    def _format(self, rows: list[dict[str, str]], header: bool) -> str:
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()


@dataclass(frozen=True)
class Comparison:
    """A measurement and that of a peer, made in the same run.

    Attributes
    ----------
    name : str
        What is measured.
    value : float
        Measurement of sklearn_ape.
    unit : str
        Unit of both values.
    peer : str
        Name of the peer.
    peer_value : float or None
        Measurement of the peer.
    target : str
        Bound of value / peer_value, such as "at least 6" or "at most 1.3"; "" if there is none.
    """

    name: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    target: str = ""

    @property
    def ratio(self) -> float | None:
        """Return the value divided by that of the peer."""
        return self.value / self.peer_value if self.peer_value else None

    @property
    def verdict(self) -> str:
        """Return "met" or "missed", or "" without a target or a peer."""
        if not self.target or self.ratio is None:
            return ""
        bound, limit = self.target.split()[1:]
        is_met = self.ratio >= float(limit) if bound == "least" else self.ratio <= float(limit)
        return "met" if is_met else "missed"

    @property
    def failure(self) -> str:
        """Describe a missed target; "" if it was not missed."""
        return f"target missed: {self.name}" if self.verdict == "missed" else ""

    def as_record(self) -> dict[str, Any]:
        """Return the columns of the CSV file."""
        return asdict(self) | {"ratio": self.ratio, "verdict": self.verdict}


@dataclass(frozen=True)
class OutcomeCounts:
    """Number of cases by outcome; only right answers and clear errors are acceptable."""

    name: str
    cases: int
    right: int
    clear_errors: int
    crashes: int
    hangs: int
    wrong: int
    lost: int

    @classmethod
    def count(
        cls, name: str, outcomes: Iterable[str] | Mapping[str, int], cases: int
    ) -> OutcomeCounts:
        """Count outcomes; cases without an outcome are lost.

        Unclear messages and memory above the limit count as wrong.
        """
        counts = Counter(outcomes)
        return cls(
            name,
            cases,
            right=counts["right"],
            clear_errors=counts["error"],
            crashes=counts["crash"],
            hangs=counts["hang"],
            wrong=counts["wrong"] + counts["unclear"] + counts["greedy"],
            lost=cases - counts.total() + counts["lost"],
        )

    @property
    def failure(self) -> str:
        """Describe unacceptable outcomes; "" if there are none."""
        n_failures = self.crashes + self.hangs + self.wrong + self.lost
        return f"{n_failures} failures: {self.name}" if n_failures else ""

    def as_record(self) -> dict[str, Any]:
        """Return the columns of the CSV file."""
        return asdict(self)


COMPARISON_COLUMNS = (
    "part", "name", "value", "unit", "peer", "peer_value", "target", "ratio", "verdict",
)  # fmt: skip
OUTCOME_COLUMNS = (
    "part", "name", "cases", "right", "clear_errors", "crashes", "hangs", "wrong", "lost",
)  # fmt: skip


def make_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the description of a program, with its line breaks."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def make_results_parser(
    program: str, description: str | None, parts: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Return a parser with the options of all programs that write results."""
    parser = make_parser(program, description)
    if parts:
        parser.add_argument(
            "parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all parts)"
        )
    parser.add_argument("--output", type=Path, help="folder of results (default: docs/results)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run on little data to try the program; results go to a temporary folder",
    )
    return parser


def choose_folder(options: argparse.Namespace) -> Path:
    """Return the output folder; quick runs must not overwrite published results."""
    if options.output is not None:
        return options.output
    return Path(tempfile.gettempdir(), "benchmarks-quick") if options.quick else RESULTS


def run_parts(
    program: str,
    parts: Sequence[str],
    columns: Sequence[str],
    parser: argparse.ArgumentParser,
    choose_size: Callable[[argparse.Namespace], Any] = lambda options: options.quick,
) -> list[str]:
    """Run the chosen parts of a program, record their rows and return their failures.

    Parameters
    ----------
    program : str
        Name of the package within `benchmarks` and of the CSV file.
    parts : sequence of str
        Modules of the package. Each has a function `measure`, which returns rows.
    columns : sequence of str
        Columns of the CSV file.
    parser : ArgumentParser
        Parser made by `make_parser`.
    choose_size : callable
        Maps the parsed options to the argument of `measure`.
    """
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(parts)):
        parser.error(f"unknown parts: {', '.join(unknown)}. Choose from {', '.join(parts)}.")
    results = Results(choose_folder(options) / f"{program}.csv", columns)
    failures = []
    for part in options.parts or parts:
        print(f"\n{part}", flush=True)
        rows = import_module(f"benchmarks.{program}.{part}").measure(choose_size(options))
        records = [{"part": part, **row.as_record()} for row in rows]
        print_table(records)
        results.remove("part", [part])
        results.append(records)
        failures += [row.failure for row in rows if row.failure]
    return failures


def print_table(records: Sequence[Mapping[str, Any]]) -> None:
    """Print records as aligned columns, with four significant digits."""
    if not records:
        return
    lines = [[key for key in records[0] if key != "part"]]
    lines += [[_format_cell(record[key]) for key in lines[0]] for record in records]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
