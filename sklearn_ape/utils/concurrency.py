"""Threads, locks that survive a fork, and a thread-safe LRU cache."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakSet

# Seconds that a fork waits for libraries that other threads are using, usually for one batch.
_MAX_FORK_WAIT_S = 5.0

_all_locks: WeakSet[ForkSafeLock] = WeakSet()


class ForkSafeLock:
    """Reentrant lock that is free in a child process after a fork.

    `os.fork` copies the state of every lock but only the thread that forks. A lock held by
    another thread would never be released in the child, so each child gets new locks.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # The locks that the current thread has acquired: after a fork inside the `with` block the
        # child must release the parent's lock, not the new one.
        self._acquired = threading.local()
        _all_locks.add(self)

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._acquired.__dict__.setdefault("locks", []).append(lock)

    def __exit__(self, *exc_info: object) -> None:
        self._acquired.locks.pop().release()


def at_fork(**functions: Callable[[], object]) -> None:
    """Register functions by `os.register_at_fork`, on systems that can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**functions)


class _ForkDelay:
    """Context that a fork waits for other threads to leave. Any number may be in it at once.

    Libraries have locks of their own, which cannot be replaced in the child as those of
    `ForkSafeLock`: the memory allocator of MKL, for example, locks each time torch multiplies
    matrices. Stay in the context for a short time only.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._changed = threading.Condition()
        self._n_inside = self._n_forks = 0

    def __enter__(self) -> None:
        with self._changed:
            # Threads that enter again and again would delay a fork forever.
            self._changed.wait_for(lambda: not self._n_forks)
            self._n_inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._n_inside -= 1
            self._changed.notify_all()

    def wait_until_empty(self) -> None:
        with self._changed:
            self._n_forks += 1
            self._changed.wait_for(lambda: not self._n_inside, _MAX_FORK_WAIT_S)

    def reopen(self) -> None:
        with self._changed:
            self._n_forks -= 1
            self._changed.notify_all()


# Only one, so that a fork waits once for all libraries.
delay_forks = _ForkDelay()


def _renew_locks() -> None:
    for lock in list(_all_locks):
        lock._lock = threading.RLock()
    delay_forks.renew()


at_fork(
    before=delay_forks.wait_until_empty,
    after_in_parent=delay_forks.reopen,
    after_in_child=_renew_locks,
)


def never_destroy(value: Any) -> None:
    """Keep an object alive until the process ends, so that its destructor never runs.

    Destructors that wait for threads or remove files must not run in a forked process, where
    those threads do not exist and the files belong to the parent. A reference in a module is not
    enough, as the interpreter drops it before it exits.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """Dictionary of bounded size that drops the least recently used entries.

    It can be used by several threads, and by a child process after a fork. The limits are a number
    of entries and the sum of the `nbytes` of the values, which must be arrays then. With
    `keep_newest`, the newest entry is kept even if it alone exceeds `max_bytes`.
    """

    def __init__(
        self,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        keep_newest: bool = False,
    ) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.keep_newest = keep_newest
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._n_bytes = 0
        self._lock = ForkSafeLock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """Return the value of a key and mark it as used, or None if the key is missing."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: Key, value: Value) -> None:
        """Store a value, replacing an earlier one, and drop entries beyond the limits."""
        with self._lock:
            self._discard(key)
            self._entries[key] = value
            self._n_bytes += self._measure_size(value)
            while len(self._entries) > int(self.keep_newest) and (
                (self.max_entries is not None and len(self._entries) > self.max_entries)
                or (self.max_bytes is not None and self._n_bytes > self.max_bytes)
            ):
                self._discard(next(iter(self._entries)))

    def get_or_create(self, key: Key, create: Callable[[], Value]) -> Value:
        """Return the value of a key, calling `create` if the key is missing.

        The lock is held during the call, so that other threads wait for the value instead of
        creating it a second time.
        """
        with self._lock:
            if key not in self._entries:
                self.put(key, create())
            self._entries.move_to_end(key)
            return self._entries[key]

    def clear(self) -> None:
        """Drop every entry."""
        with self._lock:
            self._entries.clear()
            self._n_bytes = 0

    def _discard(self, key: Key) -> None:
        if key in self._entries:
            self._n_bytes -= self._measure_size(self._entries.pop(key))

    def _measure_size(self, value: Any) -> int:
        return 0 if self.max_bytes is None else value.nbytes


Item = TypeVar("Item")
Result = TypeVar("Result")
# Results that are computed ahead of the consumer, in addition to one per thread, so that threads
# do not wait while the consumer processes one.
_N_AHEAD = 2


def map_threaded(
    work: Callable[[Item], Result], items: Iterable[Item], n_threads: int
) -> Iterator[Result]:
    """Call a function for each item in several threads, and yield the results in order.

    Items are read only when they are needed: at most ``n_threads + 2`` results are being computed
    or wait to be consumed. The first exception ends the iteration. If the iteration ends early,
    running calls are completed and waiting calls are cancelled.
    """
    import torch
    from threadpoolctl import ThreadpoolController

    # torch computes with one core in each thread. Otherwise each thread would start its own pool,
    # and the pools would compete for the same cores. The libraries are found once, because it
    # takes milliseconds.
    openmp = ThreadpoolController().select(user_api="openmp")

    process_id = os.getpid()
    thread_ids: list[int] = []

    def start_thread() -> None:
        thread_ids.append(threading.get_native_id())
        torch.get_num_threads()  # torch sets the number itself at the first call in a thread
        openmp.limit(limits=1)  # OpenMP keeps it per thread: other threads are not affected

    pool = ThreadPoolExecutor(n_threads, "sklearn_ape", initializer=start_thread)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= n_threads + _N_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        if os.getpid() == process_id:  # the threads do not exist in a forked child
            wait(waiting)
        with delay_forks:
            pool.shutdown()
            _wait_until_threads_end(thread_ids)


_blas_lock = ForkSafeLock()


@contextmanager
def single_threaded_blas() -> Iterator[int]:
    """Let BLAS use one thread, and yield the number of threads that it used before.

    One thread of the process is in this context at a time: the setting of BLAS is the same for all
    threads, and would be restored while another one relies on it. The number is 1 if the setting
    cannot be changed, such as in the threads of a caller that has limited BLAS itself.
    """
    from threadpoolctl import ThreadpoolController

    with _blas_lock:
        blas = ThreadpoolController().select(user_api="blas")
        n_threads = max((library["num_threads"] for library in blas.info()), default=1)
        with blas.limit(limits=1):
            is_limited = all(library["num_threads"] == 1 for library in blas.info())
            yield n_threads if is_limited else 1


def _wait_until_threads_end(thread_ids: list[int]) -> None:
    """Wait for the system to end threads that have been joined, on Linux.

    Before their end, MKL gives their memory back under a lock.
    """
    deadline = time.monotonic() + 1  # another thread may have got the same number
    while any(os.path.exists(f"/proc/self/task/{thread_id}") for thread_id in thread_ids):
        if time.monotonic() > deadline:
            break
        time.sleep(1e-4)
