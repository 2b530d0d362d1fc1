"""Order and limits of `map_threaded`."""

import threading
import time

import pytest

from sklearn_ape.utils.concurrency import map_threaded


def test_order_is_kept():
    """However long each item takes."""
    waits = [0.03, 0.0, 0.02, 0.0, 0.01, 0.0]
    results = map_threaded(lambda wait: time.sleep(wait) or wait, waits, 3)
    assert list(results) == waits


@pytest.mark.parametrize("n_threads", [1, 4])
def test_number_of_pending_results_is_bounded(n_threads):
    """A slow consumer does not let results pile up."""
    begun = []
    results = map_threaded(begun.append, range(100), n_threads)
    for taken in range(1, 20):
        next(results)
        time.sleep(0.002)
        assert len(begun) <= taken + n_threads + 2
    results.close()


def test_first_error_ends_the_work():
    """Items not begun are left; threads have ended."""
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise RuntimeError("three")
        return item

    n_before = threading.active_count()
    results = map_threaded(work, range(1000), 2)
    with pytest.raises(RuntimeError, match="three"):
        list(results)
    assert len(begun) < 12
    assert threading.active_count() == n_before


def test_an_interrupt_waits_for_what_runs():
    """Ctrl-C between two results ends the threads, too."""
    results = map_threaded(lambda item: time.sleep(0.01) or item, range(1000), 2)
    next(results)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert time.monotonic() - start < 5


def test_alone_limits_torch_to_the_thread():
    """Threads that start threads for every small piece of work wait for one another."""
    import torch

    here = torch.get_num_threads()
    alone = list(map_threaded(lambda _: torch.get_num_threads(), range(4), 2, alone=True))
    assert alone == [1] * 4
    assert list(map_threaded(lambda _: torch.get_num_threads(), range(2), 2)) == [here] * 2
    assert torch.get_num_threads() == here
