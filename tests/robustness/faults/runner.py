"""Groups of faults, run in a separate process: ``python -m tests.robustness.faults.runner``.

The process starts no threads, so that it can fork.
"""

import argparse
import os
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

from tests.robustness.child_processes import Outcome, run_module
from tests.robustness.faults import (
    cache_versions,
    clock_changes,
    denied_access,
    full_disks,
    killed_workloads,
    shared_cache,
)
from tests.robustness.faults.world import SharedInputs

GROUPS = {
    "killing": killed_workloads,
    "full": full_disks,
    "locked": denied_access,
    "clock": clock_changes,
    "shared": shared_cache,
    "versions": cache_versions,
}


def outcomes(groups, seconds=1800):
    """Return the outcomes of all cases; the last is a crash or hang if the process ended early.

    Parameters
    ----------
    groups : dict of {str: float}
        Names of groups (see `GROUPS`) and multiples of the number of cases in the tests.
    """
    arguments = [f"{group}={amount}" for group, amount in groups.items()]
    return run_module("tests.robustness.faults.runner", arguments, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument(
        "groups",
        nargs="+",
        help=f"groups as NAME=AMOUNT, where NAME is one of {', '.join(GROUPS)}",
    )
    options = parser.parse_args()
    with options.report.open("w") as report, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # children may run as the user nobody
        os.chdir(folder)
        failed = False
        group = "inputs"
        try:
            inputs = SharedInputs(Path(folder, "inputs"))
            for group, amount in (text.split("=") for text in options.groups):
                place = Path(folder, group)
                place.mkdir()
                for outcome in GROUPS[group].outcomes(place, float(amount), inputs):
                    print(replace(outcome, group=group).line(), file=report, flush=True)
        except BaseException as error:
            traceback.print_exc()
            failed = True
            message = f"{type(error).__name__}: {error}"
            print(Outcome("all that follows", "crash", message, group=group).line(), file=report)
    sys.exit(failed)


if __name__ == "__main__":
    main()
