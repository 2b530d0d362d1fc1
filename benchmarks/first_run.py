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


IMPORTS = (
    "import sklearn, torch",
    "import sklearn_ape",
    "from sklearn_ape import APEAligner, ZeroShotClassifier",
)


def import_seconds() -> list[float]:
    """Return the median of each import, started in turn."""
    rounds = [
        [seconds(sys.executable, "-c", code) for code in IMPORTS] for _ in range(REPEATS + 1)
    ]
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]  # 1st: disk cache


def main() -> int:
    imports = import_seconds()
    theirs, ours = imports[:2]
    with tempfile.TemporaryDirectory() as folder:
        demo = (
            sys.executable, "-m", "sklearn_ape", "demo", "--quiet",
            "--cache", str(Path(folder) / "features"), "--output", str(Path(folder) / "report"),
        )  # fmt: skip
        first, second = seconds(*demo), seconds(*demo)
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        (IMPORTS[0], theirs, ""),
        (IMPORTS[1], ours, f"{ours / theirs:.2f} x, bar {IMPORT_BAR} x"),
        (IMPORTS[2], imports[2], f"{imports[2] / theirs:.2f} x"),
        ("first demo", first, ""),
        ("second demo", second, f"{second / first:.2f} x the first"),
    ]
    print(f"{'what':<56}{'seconds':>9}  ratio")
    for name, value, ratio in rows:
        print(f"{name:<56}{value:>9.2f}  {ratio}")
    return int(ours / theirs > IMPORT_BAR)


if __name__ == "__main__":
    sys.exit(main())
