"""Time what a newcomer waits for: the import, the first demo, the second demo.

    python benchmarks/first_run.py

Every figure is of a process of its own. The import is compared with ``import sklearn, torch`` in
the same run, alternating, and must stay below 1.5 times that.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORT_BAR = 1.5
REPEATS = 5


def seconds(*command: str) -> float:
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return time.perf_counter() - start


def import_seconds() -> tuple[float, float]:
    """Return the medians of ours and of the two libraries it stands on, started in turn."""
    ours, theirs = [], []
    for repeat in range(REPEATS + 1):
        pair = (
            seconds(sys.executable, "-c", "import sklearn_ape"),
            seconds(sys.executable, "-c", "import sklearn, torch"),
        )
        if repeat:  # the first warms the disk cache up
            ours.append(pair[0])
            theirs.append(pair[1])
    return statistics.median(ours), statistics.median(theirs)


def main() -> int:
    ours, theirs = import_seconds()
    with tempfile.TemporaryDirectory() as folder:
        demo = (
            sys.executable, "-m", "sklearn_ape", "demo", "--quiet",
            "--cache", str(Path(folder) / "features"), "--output", str(Path(folder) / "report"),
        )  # fmt: skip
        first, second = seconds(*demo), seconds(*demo)
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        ("import sklearn, torch", theirs, ""),
        ("import sklearn_ape", ours, f"{ours / theirs:.2f} x, bar {IMPORT_BAR} x"),
        ("first demo", first, ""),
        ("second demo", second, f"{second / first:.2f} x the first"),
    ]
    print(f"{'what':<24}{'seconds':>9}  ratio")
    for name, value, ratio in rows:
        print(f"{name:<24}{value:>9.2f}  {ratio}")
    return int(ours / theirs > IMPORT_BAR)


if __name__ == "__main__":
    sys.exit(main())
