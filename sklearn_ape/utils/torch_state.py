"""Computation that does not depend on the caller's global settings of torch and NumPy."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from .concurrency import ForkSafeLock, at_fork

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _Setting(NamedTuple):
    """A setting of torch that all threads of the process share."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    default: Any


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set for one backend alone, and is not changed
        return "highest"


_SETTINGS = {
    "dtype": _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    "matmul": _Setting(_matmul_precision, torch.set_float32_matmul_precision, "highest"),
}


_lock = ForkSafeLock()


# What the caller had set, and how many computations, in all threads, wait to put it back.
_callers: dict[str, Any] = {}


_n_active = 0


_in_thread = threading.local()


_importer = os.getpid()


@contextmanager
def default_state() -> Iterator[None]:
    """Compute as in a process where torch and NumPy are set as they are after import.

    While in the context, autocast, inference mode and the default device of the caller are off,
    gradients are on, the default dtype is float32, products of float32 matrices are exact, and an
    underflow is not an error. Afterwards the caller's settings are back.

    Notes
    -----
    Default dtype and precision of products belong to the whole process. They are changed only
    when they differ from torch's own defaults; other threads see the change until the last
    computation has ended.

    In a forked process torch is limited to one thread at the first use of this context: its
    thread pool does not exist there, and torch would wait forever for its second thread.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.utils.torch_state import default_state
    >>> with torch.inference_mode(), default_state():
    ...     torch.is_inference_mode_enabled()
    False
    """
    _use_one_thread_after_fork()
    with ExitStack() as stack:
        stack.enter_context(_default_settings())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(under="ignore"))
        yield


@contextmanager
def _default_settings() -> Iterator[None]:
    global _n_active
    with _lock:
        _n_active += 1
        _in_thread.n_active = getattr(_in_thread, "n_active", 0) + 1
        for name, setting in _SETTINGS.items():
            value = setting.read()
            if value != setting.default:
                _callers[name] = value
                setting.write(setting.default)
    try:
        yield
    finally:
        with _lock:
            _n_active -= 1
            _in_thread.n_active -= 1
            _put_back()


def _put_back() -> None:
    while not _n_active and _callers:
        name, value = _callers.popitem()
        _SETTINGS[name].write(value)


def _forget_other_threads() -> None:
    global _n_active
    _n_active = getattr(_in_thread, "n_active", 0)
    _put_back()


at_fork(in_child=_forget_other_threads)


def _use_one_thread_after_fork() -> None:
    global _importer
    if os.getpid() != _importer:
        _importer = os.getpid()
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
