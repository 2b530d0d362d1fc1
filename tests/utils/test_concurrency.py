"""Locks, threads and forked processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from threadpoolctl import ThreadpoolController

from sklearn_ape.utils.concurrency import (
    ForkSafeLock,
    delay_forks,
    map_threaded,
    single_threaded_blas,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
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
@pytest.mark.parametrize(
    ("engine", "cases"),
    {
        "torch": ["encode", "pool", "train", "classify", "encode_while_encoding"],
        "onnx": ["encode"],
        "openvino": ["encode", "encode_while_encoding"],
        "faiss": ["search"],
    }.items(),
    ids=["torch", "onnx", "openvino", "faiss"],
)
def test_forked_child_can_encode_and_train(engine, cases):
    """The cases of an engine share a process, which loads it only once."""
    if engine != "torch":
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    run(engine, *cases)


@pytest.mark.exhaustive
@needs_fork
def test_forked_child_can_work_while_parent_holds_all_locks():
    run("torch", "encode_while_locked")


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


@needs_fork
class TestDelayForks:
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_fork_waits_for_threads_inside_and_holds_up_others(self):
        """Threads that enter again and again do not delay a fork forever."""
        n_inside, is_stopped = [0, 0], threading.Event()

        def work(number):
            while not is_stopped.is_set():
                with delay_forks:
                    n_inside[number] = 1
                    time.sleep(0.05)
                    n_inside[number] = 0

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        start = time.monotonic()
        try:
            for _ in range(5):  # a fork of a process with much memory takes 0.1 s
                child = os.fork()
                if child == 0:
                    with delay_forks:
                        os._exit(sum(n_inside))
                assert os.waitpid(child, 0)[1] == 0
            assert time.monotonic() - start < 5
        finally:
            is_stopped.set()
            for thread in threads:
                thread.join(10)

    def test_several_threads_can_be_inside(self):
        both = threading.Barrier(2, timeout=10)

        def work():
            with delay_forks:
                both.wait()

        thread = threading.Thread(target=work)
        thread.start()
        work()
        thread.join(10)


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


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_iteration_can_be_ended_in_a_forked_child():
    """It does not wait for calls of threads that the child does not have."""
    results = map_threaded(lambda item: time.sleep(0.3) or item, range(10), 2)
    next(results)
    child = os.fork()
    if child == 0:
        results.close()
        os._exit(0)
    end = time.monotonic() + 10
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.01)
    results.close()
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="this system does not list threads"
)
def test_threads_of_map_threaded_end_before_it_returns():
    """A child would wait for locks that a thread holds at its end, after Python joined it."""
    for _ in range(100):
        before = set(os.listdir("/proc/self/task"))
        list(map_threaded(lambda _: torch.ones(300, 300) @ torch.ones(300, 300), range(2), 2))
        assert set(os.listdir("/proc/self/task")) <= before


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


def count_blas_threads():
    return {lib["num_threads"] for lib in ThreadpoolController().select(user_api="blas").info()}


def test_threads_limit_blas_one_after_the_other():
    """The second one to enter would restore the number that the first one set."""
    before = count_blas_threads()
    entered, may_leave = threading.Event(), threading.Event()
    numbers = []

    def enter_and_wait():
        with single_threaded_blas() as n_threads:
            numbers.append((n_threads, count_blas_threads()))
            entered.set()
            may_leave.wait(10)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(enter_and_wait)
        assert entered.wait(10)
        second = pool.submit(enter_and_wait)
        time.sleep(0.1)
        assert len(numbers) == 1
        may_leave.set()
        first.result()
        second.result()
    assert numbers == [(max(before), {1})] * 2
    assert count_blas_threads() == before


def test_ignored_limit_of_blas_gives_no_more_threads():
    """New versions of threadpoolctl ignore it in a thread if another one has set a limit."""

    def enter():
        with single_threaded_blas() as n_threads:
            return n_threads * max(count_blas_threads())

    with ThreadpoolController().limit(limits=3, user_api="blas"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() == 3


def test_error_restores_the_threads_of_blas():
    with ThreadpoolController().limit(limits=3, user_api="blas"):
        for _ in range(2):
            with pytest.raises(KeyError), single_threaded_blas() as n_threads:
                raise KeyError
            assert n_threads == 3
            assert count_blas_threads() == {3}
