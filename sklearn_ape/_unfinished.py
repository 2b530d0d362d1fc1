"""Folders for what is not yet whole; those of processes that were killed are cleared away."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".unfinished"


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Give a new folder beside a target, on the same disk, in which to prepare it.

    What is in it is moved from there when it is whole; the rest goes with the folder. Folders
    for the same target that killed processes left behind are removed, those of living ones are
    not: they are locked.

    Parameters
    ----------
    target : path-like
        File or folder that is to be.

    Yields
    ------
    folder : Path
        Empty.

    Raises
    ------
    OSError
        When it cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn_ape._unfinished import unfinished
    >>> with tempfile.TemporaryDirectory() as name:
    ...     target = Path(name, "a.txt")
    ...     with unfinished(target) as folder:
    ...         _ = (folder / "a.txt").write_text("whole")
    ...         _ = (folder / "a.txt").replace(target)
    ...     [path.name for path in Path(name).iterdir()]
    ['a.txt']
    """
    clear_unfinished(target)
    folder, lock = _made(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _made(target: Path) -> tuple[Path, int | None]:
    while True:
        folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_SUFFIX}")
        folder.mkdir()
        # Before it is locked, another process may take it for one that was left behind.
        with suppress(BlockingIOError, FileNotFoundError):
            lock = _locked(folder)
            if folder.exists():
                return folder, lock
            if lock is not None:
                os.close(lock)


def clear_unfinished(target: Path) -> None:
    """Remove what killed processes left of `unfinished` folders for a target."""
    with suppress(OSError):
        for name in os.listdir(target.parent):
            if name.startswith(f".{target.name}.") and name.endswith(_SUFFIX):
                _clear_away(target.with_name(name))


def _clear_away(folder: Path) -> None:
    with suppress(BlockingIOError):
        lock = _locked(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder until this process ends; None where that cannot be done."""
    try:
        import fcntl
    except ImportError:  # not a system that has it
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None  # not a file system that has it
    return handle
