"""Devices of torch, and a context that shields computations from its global settings."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .utils.concurrency import ForkSafeLock, at_fork

__all__ = ["resolve_device"]


@lru_cache(maxsize=1)
def has_fast_bfloat16() -> bool:
    """Return whether the processor has AMX instructions for bfloat16 (on Linux).

    Those of AVX-512 are not enough: on a processor with `avx512_bf16` alone, EfficientNet-Lite0
    encoded 123 images per second in bfloat16 and 164 in float32 (OpenVINO), and a training step
    took 1.7 times as long (torch).
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # another operating system
        return False
    return "amx_bf16" in flags


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the torch device for a ``device`` parameter.

    Parameters
    ----------
    device : {"auto"}, str, torch.device or None
        Name of the device. "auto" and None use a GPU if there is one, else the CPU.

    Returns
    -------
    device : torch.device
        Available device.

    Raises
    ------
    ValueError
        If the device is unknown or not available.

    Examples
    --------
    >>> from sklearn_ape.devices import resolve_device
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device in (None, "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        if resolved.type == "meta":
            raise TypeError("Tensors of the device 'meta' have no values.")
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'auto' or a device of torch such as 'cpu', 'cuda:0' or 'mps', not "
            f"{device!r}."
        ) from error
    gpus = {
        "cuda": (torch.cuda, torch.cuda),
        "mps": (torch.backends.mps, torch.mps),
        "xpu": (torch.xpu, torch.xpu),
    }
    kind = resolved.type
    if kind in gpus:
        backend, module = gpus[kind]
        if not backend.is_available():
            raise ValueError(
                f"device={device!r} is not available: torch finds no {kind.upper()} device. Use "
                "device='auto'."
            )
        n_devices = module.device_count()
        if (resolved.index or 0) >= n_devices:
            raise ValueError(
                f"device={device!r} is not available: the last {kind.upper()} device that torch "
                f"finds is '{kind}:{n_devices - 1}'. Use it, or device='auto'."
            )
    return resolved


_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # raised if it was set for a single backend; leave it unchanged then
        return "highest"


# Settings of torch that all threads of a process share: how to read and write them, their default.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None], Any]] = {
    "dtype": (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    "matmul": (_matmul_precision, torch.set_float32_matmul_precision, "highest"),
}

_lock = ForkSafeLock()
# The caller's values of changed settings, which the last thread that leaves the context restores.
_caller_values: dict[str, Any] = {}
_n_active = 0
_in_thread = threading.local()
_pid = os.getpid()


@contextmanager
def default_state() -> Iterator[None]:
    """Use the default settings of torch and NumPy, and restore the caller's settings at the end.

    Within the context, autocast and inference mode are off, the default device is the CPU,
    gradients are enabled, the default dtype is float32, float32 matrices are multiplied with the
    highest precision, and underflow is not an error.

    The default dtype and the precision of matrix products belong to the process. They are changed
    only if they differ from torch's defaults, and other threads see the change until the last
    context is left.
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
        for name, (read, write, default) in _SETTINGS.items():
            value = read()
            if value != default:
                _caller_values[name] = value
                write(default)
    try:
        yield
    finally:
        with _lock:
            _n_active -= 1
            _in_thread.n_active -= 1
            _restore_settings()


def _restore_settings() -> None:
    while not _n_active and _caller_values:
        name, value = _caller_values.popitem()
        _, write, _ = _SETTINGS[name]
        write(value)


def _reset_after_fork() -> None:
    global _n_active
    _n_active = getattr(_in_thread, "n_active", 0)
    _restore_settings()


at_fork(after_in_child=_reset_after_fork)


def _use_one_thread_after_fork() -> None:
    # torch and faiss would wait forever for their threads, which do not exist in the child.
    global _pid
    if os.getpid() != _pid:
        _pid = os.getpid()
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        if faiss := sys.modules.get("faiss"):
            faiss.omp_set_num_threads(1)
