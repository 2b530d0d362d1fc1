"""Devices of torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

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
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'auto' or a device of torch such as 'cpu', 'cuda:0' or 'mps', not "
            f"{device!r}."
        ) from error
    for kind, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if resolved.type == kind and not backend.is_available():
            raise ValueError(
                f"device={device!r} is not available: torch finds no {kind.upper()} device. Use "
                "device='auto'."
            )
    return resolved
