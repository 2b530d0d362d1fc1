"""Random numbers of one's own from torch's global generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .._forks import ForkSafeLock

_lock = ForkSafeLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch's global generator start at a seed, and put it back where it was.

    One thread of a process at a time: weights and dropped units are drawn from that generator
    alone, so two trainings side by side would draw each other's numbers.

    Parameters
    ----------
    seed : int
        Of the numbers drawn inside.
    device : torch.device
        Whose generator is used besides that of the CPU.
    """
    devices = [device] if device.type == "cuda" else []
    with _lock, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
