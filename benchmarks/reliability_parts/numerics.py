"""The table of inputs and outcomes, each part of it in a child process, which may die or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .rows import ROOT, Row

_COMMAND = [sys.executable, "-m", "tests.robustness.numerics"]
_SECONDS = 900


def measure(examples: int) -> list[Row]:
    """Try every cell; their number is that of the table, whatever number of examples is asked."""
    counts = subprocess.run(
        [*_COMMAND, "counts"], env=_environment(), check=True, capture_output=True, text=True
    ).stdout
    return [_measure(*item) for item in json.loads(counts.splitlines()[-1]).items()]


def _measure(table: str, n_cells: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.txt")
        command = [*_COMMAND, "outcomes", table, str(report)]
        ended = "crash"
        try:
            subprocess.run(command, env=_environment(), timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            ended = "hang"
        found = report.read_text().split() if report.is_file() else []
    if len(found) < n_cells:  # those behind it are lost
        found.append(ended)
    return Row.of("numerics", table, found, n_cells)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
