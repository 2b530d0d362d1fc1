"""Progress bars on standard error."""

from __future__ import annotations

import sys
from multiprocessing import current_process
from typing import Any

from tqdm import tqdm

# Seconds of work without a bar if `verbose` is None.
_DEFAULT_DELAY_S = 2.0


def shows_progress(verbose: int | None) -> bool:
    """Return whether to show progress bars for a value of the parameter ``verbose``.

    None means yes in a terminal and in a notebook, but not where standard error is written to a
    file, nor in worker processes, whose bars would overwrite each other.
    """
    if verbose is not None:
        return bool(verbose)
    if current_process().name != "MainProcess":
        return False
    # The standard error of a notebook is not a terminal, but shows bars.
    return "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())


def make_progress_bar(
    total: int | None, verbose: int | None, delay: float = 0.5, **options: Any
) -> tqdm:
    """Make a progress bar, which appears only if the work takes more than `delay` seconds.

    If `verbose` is None, the bar appears after two seconds and is removed at the end, so that a
    terminal does not fill with the bars of many calls. The options are those of tqdm.
    """
    by_default = verbose is None
    return tqdm(
        total=total,
        disable=not shows_progress(verbose),
        delay=_DEFAULT_DELAY_S if by_default else delay,
        leave=not by_default,
        **options,
    )
