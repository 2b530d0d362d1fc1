"""A measurement in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def child(part: str, *arguments: str) -> tuple[float, float]:
    """Return the two numbers that a part of these benchmarks prints, started by itself."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.memory.{part}", *arguments],
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    first, second = map(float, done.stdout.split())
    return first, second
