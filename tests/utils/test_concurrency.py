"""Locks, threads and forked processes."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from sklearn_ape.utils.concurrency import ForkSafeLock, map_threaded

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
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


@pytest.mark.exhaustive
@needs_fork
@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_forked_child_of_process_that_has_encoded_can_encode(engine):
    if engine != "torch":
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    run("encode", engine)


@pytest.mark.exhaustive
@needs_fork
def test_forked_child_can_work_while_parent_holds_all_locks():
    run("locked")


@pytest.mark.exhaustive
@needs_fork
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_forked_child_can_encode_while_parent_encodes(engine):
    if engine != "torch":
        pytest.importorskip(engine)
    run("busy", engine)


@pytest.mark.exhaustive
@needs_fork
def test_forked_child_of_process_that_has_trained_trains_in_one_thread():
    run("trained")


@pytest.mark.exhaustive
@needs_fork
def test_pool_of_forked_workers_can_encode():
    run("pool")


@needs_fork
class TestForkSafeLock:
    def test_lock_is_reentrant_and_excludes_other_threads(self):
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
    def test_child_forked_within_block_can_release_and_acquire_lock(self):
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
    def test_fork_waits_for_lock_that_guards_a_library(self):
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


def test_map_threaded_keeps_order():
    """The order does not depend on how long each item takes."""
    waits = [0.03, 0.0, 0.02, 0.0, 0.01, 0.0]
    results = map_threaded(lambda wait: time.sleep(wait) or wait, waits, 3)
    assert list(results) == waits


@pytest.mark.parametrize("n_threads", [1, 4])
def test_map_threaded_limits_unconsumed_results(n_threads):
    """Results do not accumulate if the consumer is slow."""
    started = []
    results = map_threaded(started.append, range(100), n_threads)
    for taken in range(1, 20):
        next(results)
        time.sleep(0.002)
        assert len(started) <= taken + n_threads + 2
    results.close()


def test_first_error_stops_map_threaded():
    """Items not started are left; threads have ended."""
    started = []

    def work(item):
        started.append(item)
        if item == 3:
            raise RuntimeError("three")
        return item

    n_before = threading.active_count()
    results = map_threaded(work, range(1000), 2)
    with pytest.raises(RuntimeError, match="three"):
        list(results)
    assert len(started) < 12
    assert threading.active_count() == n_before


def test_interrupt_ends_threads():
    """Ctrl-C between two results waits for running items and ends the threads."""
    results = map_threaded(lambda item: time.sleep(0.01) or item, range(1000), 2)
    next(results)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("n_threads", [1, 2])
def test_torch_uses_one_core_per_thread(n_threads):
    """The calling thread is not affected."""
    n_before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        used = list(map_threaded(lambda _: torch.get_num_threads(), range(4), n_threads))
        assert used == [1] * 4
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(n_before)
