"""Distributed training on several ranks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from ..utils.linalg import evenly_spaced, fingerprint
from .data import Pairs, part_of


class Ranks:
    """The processes that train together, seen from one of them.

    Attributes
    ----------
    rank, size : int
        Which process this is, and of how many.

    Notes
    -----
    Every process must ask the same in the same order. Where one is gone, the others raise
    RuntimeError: at once when its connection closes, or after the timeout of the process group
    (`torch.distributed.init_process_group`'s ``timeout``; 30 minutes with gloo and 10 with NCCL
    unless set) when it is there and does not answer.
    """

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self._interrupted = False

    def of_first(self, value: Any) -> Any:
        """Return the value of the first process, a small object."""
        held = [value]
        with self._answered():
            distributed.broadcast_object_list(held, src=0)
        return held[0]

    def any(self, value: bool) -> bool:
        """Say whether a value is true in any process."""
        return any(self.of_all(bool(value)))

    def of_all(self, value: Any) -> list[Any]:
        """Return the values of all processes, small objects, in their order."""
        held: list[Any] = [None] * self.size
        with self._answered():
            distributed.all_gather_object(held, value)
        return held

    def check_alike(self, digest: str) -> None:
        """Refuse to train on what differs from process to process.

        Raises
        ------
        ValueError
            In every process.
        """
        held = self.of_all(digest)
        others = [rank for rank, one in enumerate(held) if one != held[0]]
        if others:
            raise ValueError(
                f"Processes {', '.join(map(str, others))} were given other pairs or parameters "
                "than process 0. To train together, each of them fits the same aligner on all of "
                "the same X and y, and takes its share of every batch by itself; a memory map "
                "(numpy.load(..., mmap_mode='r')) keeps X and y in memory once."
            )

    def same_weights(self, module: nn.Module) -> None:
        """Give a module the parameters and buffers that it has in the first process."""
        with self._answered(), torch.no_grad():
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def rows(self, n_pairs: int) -> slice:
        """Return this process's rows of a batch of all."""
        return part_of(n_pairs, self.rank, self.size)

    def gather(self, rows: torch.Tensor, n_pairs: int) -> torch.Tensor:
        """Return the rows of all processes, with gradients to each.

        Parameters
        ----------
        rows : torch.Tensor of shape (n_rows, n_components)
            Those of this process, which are ``rows(n_pairs)`` of all.
        n_pairs : int
            Rows of all processes.

        Returns
        -------
        all_rows : torch.Tensor of shape (n_pairs, n_components)
            The same in every process.
        """
        return _Gathered.apply(rows, self, n_pairs)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors of one type by their sums over all processes."""
        tensors = list(tensors)
        # One message instead of one a tensor.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._answered():
            distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def joined(self, loss: torch.Tensor, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """Sum gradients and losses over all processes, as if one had seen the whole batch.

        Parameters
        ----------
        loss : torch.Tensor
            This process's share.
        parameters : iterable of torch.nn.Parameter
            Their gradients are replaced.

        Returns
        -------
        loss : torch.Tensor
            Of the whole batch.

        Raises
        ------
        KeyboardInterrupt
            In every process, when any was interrupted.
        """
        loss = loss.detach().clone()
        stops = loss.new_tensor(float(self._interrupted))
        self.sum_([loss, stops, *(p.grad for p in parameters if p.grad is not None)])
        if stops:
            raise KeyboardInterrupt
        return loss

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """While in the context, let Ctrl-C wait for the end of a step, where all can stop."""
        self._interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: Any) -> None:
            self._interrupted = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} of {self.size} that train together got no answer from the "
                "others: one has ended, or took longer than the timeout of the process group. "
                "Its own message says why; start all of them again."
            ) from error


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ranks: Ranks, n_pairs: int) -> torch.Tensor:
        ctx.ranks, ctx.n_pairs = ranks, n_pairs
        parts = [part_of(n_pairs, rank, ranks.size) for rank in range(ranks.size)]
        counts = [part.stop - part.start for part in parts]
        # Messages of one size: the first share is the longest.
        sent = rows.new_zeros(counts[0], rows.shape[1])
        sent[: len(rows)] = rows
        received = [torch.empty_like(sent) for _ in counts]
        with ranks._answered():
            distributed.all_gather(received, sent)
        return torch.cat([part[:n] for part, n in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = gradient.contiguous().clone()
        with ctx.ranks._answered():
            distributed.all_reduce(gradient)
        return gradient[ctx.ranks.rows(ctx.n_pairs)], None, None


def current_ranks() -> Ranks | None:
    """Return the processes of the default process group, or None where there is one alone.

    Returns
    -------
    ranks : Ranks or None
        Not None after ``accelerate.Accelerator()`` in a script that ``accelerate launch``
        started, or after `torch.distributed.init_process_group`.

    Examples
    --------
    >>> from sklearn_ape.training import current_ranks
    >>> current_ranks() is None  # one process
    True
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return Ranks() if distributed.get_world_size() > 1 else None


# What may differ, or has no text that says what it is.
SINGLE_PROCESS_PARAMETERS = {
    "image_encoder",
    "text_encoder",
    "head_pairs",
    "device",
    "random_state",
    "verbose",
    "callbacks",
    "checkpoint",
}


def join_ranks(aligner: Any, data: Pairs, seed: int) -> tuple[Ranks | None, int]:
    """Return the processes to train heads with, if any, and the seed that all of them take.

    Parameters
    ----------
    aligner : APEAligner
        Its parameters are compared with those in the other processes.
    data : Pairs
        As are these; of the features, 1,000 rows at equal distances.
    seed : int
        What this process would take alone.

    Returns
    -------
    ranks : Ranks or None
        None where torch.distributed is not set up, or for one process.
    seed : int
        That of the first process.

    Raises
    ------
    ValueError
        In every process: when pairs or parameters differ, or several cannot train such a head.
    """
    ranks = current_ranks()
    if ranks is None:
        return None, seed
    parameters = aligner.get_params(deep=False)
    told = {
        name: parameters[name] for name in sorted(parameters.keys() - SINGLE_PROCESS_PARAMETERS)
    }
    some = (side[evenly_spaced(len(side))] for side in (data.image, data.text))
    sizes = np.array([len(data.image), len(data.text), data.n_prototypes])
    items = [] if data.items is None else [data.items]
    ranks.check_alike(f"{told} {fingerprint(data.pairs, sizes, *items, *some)}")
    if aligner.head == "batchnorm_mlp":
        raise ValueError(
            "head='batchnorm_mlp' normalises over the rows of a batch, of which every process has "
            "its own: train it in one process, or take head='mlp'."
        )
    return ranks, ranks.of_first(seed)
