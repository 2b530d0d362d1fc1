"""Threads, and locks that survive a fork."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakSet

PATIENCE_S = 5.0
"""How long a fork waits for a library that is in use."""


_locks: WeakSet[ForkSafeLock] = WeakSet()


# By thread: several may fork at once.
_awaited = threading.local()


class ForkSafeLock:
    """Reentrant lock that is free in a child process, whatever held it in the parent.

    `os.fork` copies the state of every lock, but only the thread that forks: a lock that another
    thread held would never be released in the child.

    Parameters
    ----------
    guards_library : bool, default=False
        Whether the lock guards a library with locks of its own, which cannot be renewed. A fork
        then waits until the lock is free, so hold it for a short time only.

    Examples
    --------
    >>> from sklearn_ape.utils.concurrency import ForkSafeLock
    >>> lock = ForkSafeLock()
    >>> with lock:
    ...     print("locked")
    locked
    """

    def __init__(self, guards_library: bool = False) -> None:
        self._lock = threading.RLock()
        # The locks that the current thread has acquired: the child of a fork within the `with`
        # block releases the parent's lock, and not the new one.
        self._acquired = threading.local()
        self._guards_library = guards_library
        _locks.add(self)

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._acquired.__dict__.setdefault("locks", []).append(lock)

    def __exit__(self, *exc_info: object) -> None:
        self._acquired.locks.pop().release()


def at_fork(
    *,
    in_child: Callable[[], object],
    before: Callable[[], object] = lambda: None,
    in_parent: Callable[[], object] = lambda: None,
) -> None:
    """Call functions around every fork, on systems that have it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def never_destroy(value: Any) -> None:
    """Keep an object alive until the process has ended.

    Destructors that wait for threads or remove files must not run in a forked process, where
    those threads do not exist and the files belong to the parent. A reference in a module is not
    enough: the interpreter drops it before it exits.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _wait_for_libraries() -> None:
    locks = [lock._lock for lock in list(_locks) if lock._guards_library]
    _awaited.locks = [lock for lock in locks if lock.acquire(timeout=PATIENCE_S)]


def _release_libraries() -> None:
    while _awaited.locks:
        _awaited.locks.pop().release()


def _renew_locks() -> None:
    for lock in list(_locks):
        lock._lock = threading.RLock()


at_fork(before=_wait_for_libraries, in_parent=_release_libraries, in_child=_renew_locks)


Item = TypeVar("Item")


Result = TypeVar("Result")


# Results that wait to be taken, besides those being made.
_AHEAD = 2


def map_threaded(
    work: Callable[[Item], Result], items: Iterable[Item], n_threads: int, alone: bool = False
) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in order.

    Parameters
    ----------
    work : callable
        Called in `n_threads` threads. Its first exception ends the iteration.
    items : iterable
        Taken as they are needed.
    n_threads : int
        At least 1.
    alone : bool, default=False
        Whether torch shall do each thread's work in that thread, where it would start as many
        more for every piece of it, which wait for one another.

    Yields
    ------
    result : object
        At most ``n_threads + 2`` of them are being made, or made and not yet taken. When the
        iteration ends early, items not begun are left and those begun are waited for.
    """
    begin = _work_alone if alone and n_threads > 1 else None
    with ThreadPoolExecutor(n_threads, "sklearn_ape", initializer=begin) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= n_threads + _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _work_alone() -> None:
    import torch
    from threadpoolctl import ThreadpoolController

    torch.get_num_threads()  # torch sets the number itself when a thread first asks for it
    # OpenMP keeps it by thread: others are not touched.
    ThreadpoolController().select(user_api="openmp").limit(limits=1)
