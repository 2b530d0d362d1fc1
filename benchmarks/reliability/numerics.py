"""Outcomes of unusual numbers; each table is run in a child process, which may crash or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .._process import ROOT
from .._results import OutcomeCounts

_COMMAND = [sys.executable, "-m", "tests.robustness.numerics"]
_TIMEOUT = 900


def measure(examples: int) -> list[OutcomeCounts]:
    """Run every cell of the tables; their number does not depend on the number of examples."""
    counts = subprocess.run(
        [*_COMMAND, "counts"], env=_environment(), check=True, capture_output=True, text=True
    ).stdout
    return [_measure_table(*item) for item in json.loads(counts.splitlines()[-1]).items()]


def _measure_table(table: str, n_cells: int) -> OutcomeCounts:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.txt")
        command = [*_COMMAND, "outcomes", table, str(report)]
        end = "crash"
        try:
            subprocess.run(command, env=_environment(), timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            end = "hang"
        outcomes = report.read_text().split() if report.is_file() else []
    if len(outcomes) < n_cells:  # the rest is counted as lost
        outcomes.append(end)
    return OutcomeCounts.count(table, outcomes, n_cells)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
