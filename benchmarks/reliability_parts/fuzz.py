"""Fuzzing: every entrance in a child process, which may die or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .rows import ROOT, Row

_CHILD = """
import json, sys
from tests.robustness.hostile.fuzz import FUZZERS
entrance, examples, report = sys.argv[1:]
try:
    found = dict(FUZZERS[entrance](int(examples)))
except AssertionError:
    found = {"wrong": 1}
    raise
finally:
    with open(report, "w") as file:
        json.dump(locals().get("found", {"crash": 1}), file)
"""
_SECONDS = 3600
_THROUGH_A_NETWORK = ("captions", "labels and templates")


def measure(examples: int) -> list[Row]:
    """Try so many examples of each entrance; a tenth where each is several passes of a network."""
    from tests.robustness.hostile.fuzz import FUZZERS

    return [
        _measure(name, examples // 10 if name in _THROUGH_A_NETWORK else examples)
        for name in FUZZERS
    ]


def _measure(entrance: str, examples: int) -> Row:
    environment = {**os.environ, "PYTHONPATH": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-c", _CHILD, entrance, str(examples), str(report)]
        try:
            subprocess.run(command, env=environment, timeout=_SECONDS, check=False, cwd=folder)
            found = json.loads(report.read_text()) if report.is_file() else {"crash": 1}
        except subprocess.TimeoutExpired:
            found = {"hang": 1}
    return Row.of("fuzz", entrance, found, sum(found.values()))
