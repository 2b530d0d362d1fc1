"""Locks and resources in forked processes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any
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
    >>> from sklearn_ape._forks import ForkSafeLock
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
