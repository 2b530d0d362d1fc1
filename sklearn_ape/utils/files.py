"""Atomic writes, the default data directory, file stamps and image suffixes."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DATA_HOME_VARIABLE = "SKLEARN_APE_DATA"


def default_data_home() -> Path:
    """Return the folder that the environment names, or the user's cache folder for the package."""
    chosen = os.environ.get(DATA_HOME_VARIABLE)
    if not chosen:
        from platformdirs import user_cache_path

        chosen = str(user_cache_path("sklearn_ape"))
    return Path(chosen).expanduser().absolute()


_SUFFIX = ".unfinished"


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
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
    >>> from sklearn_ape.utils.files import unfinished
    >>> with tempfile.TemporaryDirectory() as name:
    ...     target = Path(name, "a.txt")
    ...     with unfinished(target) as folder:
    ...         _ = (folder / "a.txt").write_text("whole")
    ...         _ = (folder / "a.txt").replace(target)
    ...     [path.name for path in Path(name).iterdir()]
    ['a.txt']
    """
    remove_unfinished_directories(target)
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


def remove_unfinished_directories(target: Path) -> None:
    """Remove what killed processes left of `atomic_directory` folders for a target."""
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


IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""Lower-case and sorted. Pillow as built for its wheels reads all of these formats."""


# A file changed twice within the clock's resolution keeps its time stamps, so what was read of
# a young file is not remembered. The coarsest resolution is 2 s.
_SETTLED_S = 3.0


# Nor do stamps tell anything once the clock was set back by more than this.
_BACK_S = 0.9


_ahead = float("-inf")


_n_times_back = 0


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that differ once a file was changed, even when its times were set back."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_size, *times, status.st_ino, status.st_dev, _times_set_back())


def is_settled(status: os.stat_result) -> bool:
    """Say whether the next change of a file will show in its stamp."""
    return time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S


def _times_set_back() -> int:
    """Count how often this process has seen that the clock was set back.

    A file that is changed at the hour of its last change, which the clock shows again, keeps its
    stamp. So all that was remembered before counts for nothing.
    """
    global _ahead, _n_times_back
    ahead = time.time() - time.monotonic()
    if ahead < _ahead - _BACK_S:
        _n_times_back += 1
        _ahead = ahead
    _ahead = max(_ahead, ahead)
    return _n_times_back
