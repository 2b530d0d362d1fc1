"""Distributed training on several ranks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from ..utils.linalg import choose_evenly_spaced, fingerprint
from .data import PairDataset, rank_rows


class Ranks:
    """The ranks of distributed training, as seen from one of them.

    Attributes
    ----------
    rank, size : int
        Rank of this process, and number of ranks.

    Notes
    -----
    Every rank must call the same methods in the same order. If one of them has ended, the others
    raise RuntimeError: immediately if its connection is closed, or after the timeout of the
    process group (`torch.distributed.init_process_group`'s ``timeout``; by default 30 minutes
    with gloo and 10 with NCCL) if it does not answer.
    """

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self._is_interrupted = False

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first rank, a small object."""
        values = [value]
        with self._explain_timeout():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def any(self, value: bool) -> bool:
        """Return whether a value is true on any rank."""
        return any(self.all_gather(bool(value)))

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, small objects, in the order of the ranks."""
        values: list[Any] = [None] * self.size
        with self._explain_timeout():
            distributed.all_gather_object(values, value)
        return values

    def check_equal(self, digest: str) -> None:
        """Raise an error if the data or parameters of the ranks differ.

        Raises
        ------
        ValueError
            If they differ. Every rank raises it.
        """
        digests = self.all_gather(digest)
        ranks = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if ranks:
            raise ValueError(
                f"Ranks {', '.join(map(str, ranks))} got different data or parameters than rank "
                "0. In distributed training every rank must call fit with the same X, y and "
                "parameters; batches are divided between ranks automatically. A memory map "
                "(numpy.load(..., mmap_mode='r')) keeps X and y in memory once."
            )

    def broadcast_weights(self, module: nn.Module) -> None:
        """Copy the parameters and buffers of a module from the first rank to the others."""
        with self._explain_timeout(), torch.no_grad():
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def rows(self, n_pairs: int) -> slice:
        """Return the rows of a batch that this rank processes."""
        return rank_rows(n_pairs, self.rank, self.size)

    def gather(self, rows: torch.Tensor, n_pairs: int) -> torch.Tensor:
        """Return the rows of all ranks, with gradients to each of them.

        Parameters
        ----------
        rows : torch.Tensor of shape (n_rows, n_components)
            Rows of this rank, ``rows(n_pairs)`` of the batch.
        n_pairs : int
            Number of rows of all ranks.

        Returns
        -------
        all_rows : torch.Tensor of shape (n_pairs, n_components)
            Rows of the batch, which are the same on every rank.
        """
        return _GatherRows.apply(rows, self, n_pairs)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors of one type by their sums over all ranks."""
        tensors = list(tensors)
        # One message for all tensors is faster than one message per tensor.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._explain_timeout():
            distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_gradients(
        self, loss: torch.Tensor, parameters: Iterable[nn.Parameter]
    ) -> torch.Tensor:
        """Sum gradients and losses over all ranks, as if one rank had processed the whole batch.

        Parameters
        ----------
        loss : torch.Tensor
            Part of the loss that this rank computed.
        parameters : iterable of torch.nn.Parameter
            Parameters whose gradients are replaced by the sums.

        Returns
        -------
        loss : torch.Tensor
            Loss of the whole batch.

        Raises
        ------
        KeyboardInterrupt
            On every rank, if any of them was interrupted.
        """
        loss = loss.detach().clone()
        interrupts = loss.new_tensor(float(self._is_interrupted))
        self.sum_([loss, interrupts, *(p.grad for p in parameters if p.grad is not None)])
        if interrupts:
            raise KeyboardInterrupt
        return loss

    @contextmanager
    def defer_interrupts(self) -> Iterator[None]:
        """Let Ctrl-C take effect at the end of a step, at which all ranks can stop."""
        self._is_interrupted = False
        # Only the main thread may set signal handlers.
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def set_flag(*_: Any) -> None:
            self._is_interrupted = True

        handler = signal.signal(signal.SIGINT, set_flag)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)

    @contextmanager
    def _explain_timeout(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"Rank {self.rank} of {self.size} got no answer from the other ranks: one of them "
                "has ended, or took longer than the timeout of the process group. See the error "
                "message of that rank, and restart all of them."
            ) from error


class _GatherRows(torch.autograd.Function):
    """Gather the rows of all ranks; the backward pass sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ranks: Ranks, n_pairs: int) -> torch.Tensor:
        ctx.ranks, ctx.n_pairs = ranks, n_pairs
        slices = [rank_rows(n_pairs, rank, ranks.size) for rank in range(ranks.size)]
        counts = [part.stop - part.start for part in slices]
        # all_gather needs tensors of one shape, and the part of the first rank is the longest.
        padded = rows.new_zeros(counts[0], rows.shape[1])
        padded[: len(rows)] = rows
        rows_by_rank = [torch.empty_like(padded) for _ in counts]
        with ranks._explain_timeout():
            distributed.all_gather(rows_by_rank, padded)
        return torch.cat([part[:n] for part, n in zip(rows_by_rank, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = gradient.contiguous().clone()
        with ctx.ranks._explain_timeout():
            distributed.all_reduce(gradient)
        return gradient[ctx.ranks.rows(ctx.n_pairs)], None, None


def current_ranks() -> Ranks | None:
    """Return the ranks of the default process group, or None for a single process.

    Returns
    -------
    ranks : Ranks or None
        Ranks after ``accelerate.Accelerator()`` in a script that ``accelerate launch`` started,
        or after `torch.distributed.init_process_group`. Otherwise None.

    Examples
    --------
    >>> from sklearn_ape.training import current_ranks
    >>> current_ranks() is None  # one process
    True
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return Ranks() if distributed.get_world_size() > 1 else None


def is_first_rank(ranks: Ranks | None) -> bool:
    """Return whether this process is the first rank, which shows progress and writes files."""
    return ranks is None or ranks.rank == 0


def broadcast(ranks: Ranks | None, value: Any) -> Any:
    """Return the value of the first rank, or the value itself in a single process."""
    return value if ranks is None else ranks.broadcast(value)


def join_ranks(
    parameters: Mapping[str, Any], data: PairDataset, seed: int
) -> tuple[Ranks | None, int]:
    """Return the ranks that train together, if any, and the seed that all of them use.

    The ranks are None if torch.distributed is not set up, or for a single process. All ranks raise
    ValueError if their parameters or pairs differ, or if the head cannot be trained on several
    ranks. Of the features, at most 1,000 evenly spaced rows are compared.
    """
    ranks = current_ranks()
    if ranks is None:
        return None, seed
    rows = (side[choose_evenly_spaced(len(side))] for side in (data.image, data.text))
    sizes = np.array([len(data.image), len(data.text), data.n_prototypes])
    items = [] if data.items is None else [data.items]
    ranks.check_equal(
        f"{sorted(parameters.items())} {fingerprint(data.pairs, sizes, *items, *rows)}"
    )
    if parameters.get("head") == "batchnorm_mlp":
        raise ValueError(
            "head='batchnorm_mlp' normalizes over the rows of a batch, which are divided between "
            "ranks. Train it in one process, or pass head='mlp'."
        )
    return ranks, ranks.broadcast(seed)
