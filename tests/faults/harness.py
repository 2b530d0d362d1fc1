"""Start a group of faults in a process of its own, and collect what became of its cases."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from faults.child import Outcome

_TESTS = Path(__file__).resolve().parents[1]
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def outcomes(groups, seconds=1800):
    """Return what became of all cases; the last is a crash or a hang if it ended early.

    Parameters
    ----------
    groups : dict of {str: float}
        Modules of this package, and how much of each: 1 is what the suite does.
    """
    paths = [str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        **_ONE_THREAD,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.jsonl")
        asked = [f"{group}={amount}" for group, amount in groups.items()]
        command = [sys.executable, "-m", "faults.run", str(report), *asked]
        hangs, code = False, 0
        try:
            code = subprocess.run(
                command, env=environment, timeout=seconds, cwd=folder, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            hangs = True
        lines = report.read_text().splitlines() if report.is_file() else []
    done = [Outcome(**json.loads(line)) for line in lines]
    if hangs:
        done.append(Outcome("all that follows", "hang", f"{seconds} s"))
    elif code and not any(outcome.kind == "crash" for outcome in done):
        done.append(Outcome("all that follows", "crash", f"exit code {code}"))
    return done
