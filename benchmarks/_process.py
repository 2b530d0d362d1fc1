"""Measurements in child processes, and the memory of a process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[1]


def run_module(module: str, *arguments: object) -> str:
    """Run a module of this repository in a child process and return what it prints.

    Memory that a process has freed and code that it has compiled change later measurements, so
    each measurement of memory is made in a new process.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[4:])} failed:\n{process.stderr[-2000:]}")
    return process.stdout


def run_for_numbers(module: str, *arguments: object) -> list[float]:
    """Run a module in a child process and return the numbers on its last line."""
    return list(map(float, run_module(module, *arguments).splitlines()[-1].split()))


def read_memory(field: str = "VmRSS", pid: int | str = "self") -> int:
    """Return the memory of a process in bytes.

    Parameters
    ----------
    field : {"VmRSS", "RssAnon", "VmHWM"}
        Resident memory, its part that no file backs, or the peak of resident memory. `getrusage`
        is no substitute for "VmHWM": its peak includes that of the parent process.
    pid : int or "self"
        Process.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


class PeakMemory:
    """Context manager that samples the memory of this process, in bytes.

    Parameters
    ----------
    field : str, default="VmRSS"
        See `read_memory`.
    interval : float, default=0.02
        Seconds between two samples.
    """

    def __init__(self, field: str = "VmRSS", interval: float = 0.02) -> None:
        self.field = field
        self.interval = interval

    def __enter__(self) -> Self:
        self.before = self.peak = read_memory(self.field)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(self.interval):
            self.peak = max(self.peak, read_memory(self.field))
