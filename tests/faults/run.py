"""Run groups of faults in this process, which starts no threads: ``python -m faults.run``."""

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

from faults.child import Outcome
from faults.world import World


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("groups", nargs="+", help="modules of this package, as NAME=AMOUNT")
    options = parser.parse_args()
    with options.report.open("w") as report, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # children may be nobody
        os.chdir(folder)
        failed = False
        group = "world"
        try:
            world = World(Path(folder, "world"))
            for group, amount in (text.split("=") for text in options.groups):
                place = Path(folder, group)
                place.mkdir()
                module = importlib.import_module(f"faults.{group}")
                for outcome in module.outcomes(place, float(amount), world):
                    print(replace(outcome, group=group).line(), file=report, flush=True)
        except BaseException as error:
            traceback.print_exc()
            failed = True
            told = f"{type(error).__name__}: {error}"
            print(Outcome("all that follows", "crash", told, group=group).line(), file=report)
    sys.exit(failed)


if __name__ == "__main__":
    main()
