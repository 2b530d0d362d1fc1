"""Work on many items in threads, in order and a bounded number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Results that wait to be taken, besides those being made.
_AHEAD = 2


def in_threads(
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
