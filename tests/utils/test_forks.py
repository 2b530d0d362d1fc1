"""A forked process computes, whatever its parent has done: it never hangs."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sklearn_ape.utils.concurrency import ForkSafeLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
SCRIPT = Path(__file__).with_name("forked_work.py")


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment | {"TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_child_of_a_process_that_has_encoded_encodes(engine):
    if engine != "torch":
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    run("encode", engine)


def test_child_encodes_and_trains_while_a_thread_of_the_parent_holds_all_locks():
    run("locked")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_child_encodes_while_a_thread_of_the_parent_encodes(engine):
    if engine != "torch":
        pytest.importorskip(engine)
    run("busy", engine)


def test_child_of_a_process_that_has_trained_trains_in_one_thread():
    run("trained")


def test_pool_of_forked_workers_encodes():
    run("pool")


class TestForkSafeLock:
    def test_is_reentrant_and_excludes_other_threads(self):
        lock = ForkSafeLock()
        entered = threading.Event()

        def enter():
            with lock:
                entered.set()

        thread = threading.Thread(target=enter)
        with lock, lock:
            thread.start()
            assert not entered.wait(0.1)
        thread.join(10)
        assert entered.is_set()

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_child_of_a_fork_within_the_block_releases_and_acquires_it(self):
        lock = ForkSafeLock()
        child = 0
        status = 1
        try:
            with lock:
                child = os.fork()
                with lock:
                    pass
            with lock:
                status = 0
        finally:
            if child == 0:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_fork_waits_for_a_lock_that_guards_a_library(self):
        lock = ForkSafeLock(guards_library=True)
        acquired, is_released = threading.Event(), []

        def hold():
            with lock:
                acquired.set()
                time.sleep(0.3)
                is_released.append(True)

        thread = threading.Thread(target=hold)
        thread.start()
        acquired.wait(10)
        child = os.fork()
        if child == 0:
            os._exit(0 if is_released else 1)
        assert os.waitpid(child, 0)[1] == 0
        thread.join(10)
        with lock:
            pass
