"""Time of the import, of the first demo and of the second demo.

    python -m benchmarks.first_run

Each figure is measured in a separate process. The import alternates with ``import sklearn, torch``
and must take less than 1.5 times as long; the exit status is 1 otherwise.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ._results import make_parser

MAX_IMPORT_RATIO = 1.5
REPEATS = 5


def time_command(*command: str) -> float:
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


def time_imports() -> list[float]:
    """Return the median seconds of each import; the imports alternate."""
    rounds = [
        [time_command(sys.executable, "-c", code) for code in IMPORTS] for _ in range(REPEATS + 1)
    ]
    # The first round reads the files from the disk, the others from the page cache.
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def main() -> int:
    make_parser("first_run", __doc__).parse_args()
    base, package, classes = time_imports()
    with tempfile.TemporaryDirectory() as folder:
        demo = (
            sys.executable, "-m", "sklearn_ape", "demo", "--quiet",
            "--cache", str(Path(folder) / "features"), "--output", str(Path(folder) / "report"),
        )  # fmt: skip
        first, second = time_command(*demo), time_command(*demo)
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        (IMPORTS[0], base, ""),
        (IMPORTS[1], package, f"{package / base:.2f} x, at most {MAX_IMPORT_RATIO} x"),
        (IMPORTS[2], classes, f"{classes / base:.2f} x"),
        ("first demo", first, ""),
        ("second demo", second, f"{second / first:.2f} x the first"),
    ]
    print(f"{'step':<56}{'seconds':>9}  ratio")
    for name, value, ratio in rows:
        print(f"{name:<56}{value:>9.2f}  {ratio}")
    return int(package / base > MAX_IMPORT_RATIO)


if __name__ == "__main__":
    sys.exit(main())
