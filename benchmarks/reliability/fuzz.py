"""Fuzzing: each kind of input in a child process, which may crash or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .._process import ROOT
from .._results import OutcomeCounts

_CHILD = """
import json, sys
from tests.robustness.hostile.fuzz import FUZZERS
input_name, examples, report = sys.argv[1:]
try:
    counts = dict(FUZZERS[input_name](int(examples)))
except AssertionError:
    counts = {"wrong": 1}
    raise
finally:
    with open(report, "w") as file:
        json.dump(locals().get("counts", {"crash": 1}), file)
"""
_TIMEOUT = 3600
_SLOW_INPUTS = ("captions", "labels and templates")


def measure(examples: int) -> list[OutcomeCounts]:
    """Try examples of each kind of input; a tenth where each example is encoded several times."""
    from tests.robustness.hostile.fuzz import FUZZERS

    return [
        _measure(name, examples // 10 if name in _SLOW_INPUTS else examples) for name in FUZZERS
    ]


def _measure(input_name: str, examples: int) -> OutcomeCounts:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-c", _CHILD, input_name, str(examples), str(report)]
        try:
            subprocess.run(command, env=environment, timeout=_TIMEOUT, check=False, cwd=folder)
            counts = json.loads(report.read_text()) if report.is_file() else {"crash": 1}
        except subprocess.TimeoutExpired:
            counts = {"hang": 1}
    return OutcomeCounts.count(input_name, counts, sum(counts.values()))
