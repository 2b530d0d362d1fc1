"""When progress bars are shown."""

import os
import pty
import select
import subprocess
import sys
import termios
import threading
from types import SimpleNamespace

import pytest
from joblib import Parallel, delayed
from tqdm import tqdm

from sklearn_ape.aligners.starter import load_starter
from sklearn_ape.utils.messages import make_progress_bar, shows_progress


class Terminal:
    """Simulated standard error."""

    def __init__(self, is_terminal):
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def stderr(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)

    def replace(value):
        monkeypatch.setattr(sys, "stderr", value)

    return replace


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_terminals_show_bars_by_default(stderr, is_terminal):
    stderr(Terminal(is_terminal))
    assert shows_progress(None) is is_terminal
    assert shows_progress(1)
    assert not shows_progress(0)


def test_notebooks_show_bars_by_default(stderr, monkeypatch):
    stderr(Terminal(False))
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert shows_progress(None)


def test_processes_without_standard_error_show_no_bars(stderr):
    """Standard error is None in windowed programs."""
    stderr(None)
    assert not shows_progress(None)


def test_worker_processes_show_no_bars():
    """Bars of several processes would overwrite each other."""

    def shows_progress_in_terminal():  # a local function does not make workers import this file
        sys.stderr = SimpleNamespace(isatty=lambda: True, write=len, flush=list)
        return shows_progress(None)

    results = Parallel(n_jobs=2)(delayed(shows_progress_in_terminal)() for _ in range(2))
    assert results == [False, False]


def test_hidden_bars_do_not_wait_for_other_processes():
    """Forked processes share the lock of tqdm. One that is killed may never release it."""
    is_held, is_over = threading.Event(), threading.Event()

    def hold_lock():
        with tqdm.get_lock():
            is_held.set()
            is_over.wait(60)

    def use_bar():
        with make_progress_bar(3, 0) as bar:
            bar.set_postfix(error=0.1)
            bar.update()

    threads = [threading.Thread(target=work, daemon=True) for work in (hold_lock, use_bar)]
    threads[0].start()
    is_held.wait(60)
    threads[1].start()
    threads[1].join(10)
    is_waiting = threads[1].is_alive()
    is_over.set()
    assert not is_waiting


_CODE = """
import time
from sklearn_ape.utils.messages import make_progress_bar
for seconds, name in ((0.1, "short"), (2.2, "long")):
    with make_progress_bar(2, None, desc=name) as bar:
        time.sleep(seconds)
        bar.update()
"""


@pytest.mark.exhaustive
def test_long_work_shows_a_bar_in_a_terminal():
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    code = [sys.executable, "-c", _CODE]
    subprocess.run(code, stderr=child, check=True, timeout=60)
    assert select.select([parent], [], [], 0)[0], "nothing was written"
    output = os.read(parent, 10_000).decode()  # before the terminal is closed, which discards it
    os.close(child)
    os.close(parent)
    assert "long:  50%" in output
    assert "short" not in output


def test_starter_shows_progress_by_default():
    """The first score of a new user encodes images for many seconds."""
    starter = load_starter()
    assert starter.image_encoder_.verbose is None
    assert starter.text_encoder_.verbose is None
