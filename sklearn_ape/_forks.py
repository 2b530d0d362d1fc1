"""Locks and resources in forked processes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

_locks: WeakSet[ForkSafeLock] = WeakSet()


class ForkSafeLock:
    """Reentrant lock that is free in a child process, whatever held it in the parent.

    `os.fork` copies the state of every lock, but only the thread that forks: a lock that another
    thread held would never be released in the child.

    Examples
    --------
    >>> from sklearn_ape._forks import ForkSafeLock
    >>> lock = ForkSafeLock()
    >>> with lock:
    ...     print("locked")
    locked
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # The locks that the current thread has acquired: the child of a fork within the `with`
        # block releases the parent's lock, and not the new one.
        self._acquired = threading.local()
        _locks.add(self)

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._acquired.__dict__.setdefault("locks", []).append(lock)

    def __exit__(self, *exc_info: object) -> None:
        self._acquired.locks.pop().release()


def after_fork(function: Callable[[], None]) -> Callable[[], None]:
    """Register a function that every forked child process calls first; use it as a decorator."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


def never_destroy(value: Any) -> None:
    """Keep an object alive until the process has ended.

    Destructors that wait for threads or remove files must not run in a forked process, where
    those threads do not exist and the files belong to the parent. A reference in a module is not
    enough: the interpreter drops it before it exits.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


@after_fork
def _renew_locks() -> None:
    for lock in list(_locks):
        lock._lock = threading.RLock()
