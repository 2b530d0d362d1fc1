"""Atomic writes, file locks, digests and stamps, the default data directory, image suffixes."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DATA_HOME_VARIABLE = "SKLEARN_APE_DATA"

IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""Lower-case and sorted. The wheels of Pillow read all of these formats."""

_UNSUPPORTED_FORMATS = {
    **dict.fromkeys((".heic", ".heif"), "HEIC"),
    ".jxl": "JPEG XL",
    ".svg": "SVG",
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), "raw"),
}
"""Formats of images that Pillow does not read as photographs or drawings."""

_ARCHIVE_SUFFIXES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip")

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors for a disk, a quota or a file that is full."""


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path whose initial ~ is replaced by the home folder, if the user exists."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises an error for unknown users


def get_default_data_home() -> Path:
    """Return the folder of the environment variable, or the user's cache folder of the package."""
    folder = os.environ.get(DATA_HOME_VARIABLE)
    if not folder:
        from platformdirs import user_cache_path

        # For a user without a home, platformdirs raises an error or, in earlier versions, returns
        # a path below "~". In the folder that is used instead, no file can be created.
        with suppress(RuntimeError):
            folder = str(user_cache_path("sklearn_ape"))
        if not folder or folder.startswith("~"):
            folder = os.path.join(os.devnull, "sklearn_ape")
    return expand_user(folder).absolute()


def describe_conversion(suffixes: Collection[str]) -> str:
    """Return the advice to convert images or unpack archives, or an empty text."""
    if not set(suffixes).isdisjoint(_ARCHIVE_SUFFIXES):
        return " Unpack archives first."
    names = sorted({_UNSUPPORTED_FORMATS[s] for s in suffixes if s in _UNSUPPORTED_FORMATS})
    listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f" Convert {listed} images to JPEG." if names else ""


def describe_missing_image(path: str) -> str:
    """Return what is wrong with the path of an image that does not exist, without the path."""
    if not path.strip():
        return "is an empty text, not a path. Leave the row out."
    if "://" in path or path.startswith("data:"):
        return "is a URL, not a file. Download the image and pass its path."
    is_like_caption = not os.path.dirname(path) or (" " in path and not os.path.isabs(path))
    if is_like_caption and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
        return (
            "is not a file, but looks like a caption. Pass images as X and captions as y; paths "
            "are relative to the current folder."
        )
    advice = describe_similar_file(path) or "Check the path."
    absolute = "" if os.path.isabs(path) else f" (looked for {os.path.abspath(path)[:500]!r})"
    return f"does not exist{absolute}. {advice}"


def describe_similar_file(path: str) -> str:
    """Return a hint if a missing file exists under an almost equal name, else an empty text.

    Extensions differ in case, accents may be decomposed, as in archives of macOS, and a table that
    was written on Windows has backslashes.
    """
    if "\\" in path and os.path.isfile(path.replace("\\", "/")) and not os.path.isfile(path):
        return "The file exists if the backslashes of Windows are replaced by '/'. Replace them."
    absolute_path, similar_path = os.path.abspath(path), ""
    for part in Path(absolute_path).parts:
        stem, suffix = os.path.splitext(part)
        names = [part, stem + suffix.lower(), stem + suffix.upper()]
        names += [unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in names]
        paths = [os.path.join(similar_path, name) for name in names]
        similar_path = next(filter(os.path.lexists, paths), "")
        if not similar_path:
            return ""
    is_equal = similar_path == absolute_path  # a broken link, or a file that is not an image
    if is_equal or not os.path.isfile(similar_path):
        return ""
    is_in_folder = os.path.dirname(similar_path) == os.path.dirname(absolute_path)
    name = os.path.basename(similar_path) if is_in_folder else similar_path
    return (
        f"A file {name!r} exists, whose name differs in case or in the form of its Unicode "
        "characters (unicodedata.normalize). Correct the path."
    )


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise OSError unless a file can be created in a folder."""
    # Checking permissions is not enough: a disk may be full, or mounted read-only.
    with tempfile.TemporaryFile(dir=folder):
        pass


def lock_file(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; return False where this is not supported.

    Raises BlockingIOError if another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks
        return False
    return True


def digest_file(path: str | os.PathLike[str]) -> bytes:
    """Return the sha256 of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk. Do nothing on systems that cannot flush folders."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not is_folder:
            raise


_TEMPORARY_SUFFIX = ".unfinished"


@contextmanager
def write_folder_atomically(target: Path) -> Iterator[Path]:
    """Create a temporary folder next to a target, on the same disk, and remove it at the end.

    Write files into the folder and rename them when they are complete. Folders that killed
    processes left behind for the same target, or for one whose first 50 characters are the same,
    are removed. Folders of running processes are locked and not removed.

    >>> with tempfile.TemporaryDirectory() as name:
    ...     target = Path(name, "a.txt")
    ...     with write_folder_atomically(target) as folder:
    ...         _ = (folder / "a.txt").write_text("complete")
    ...         _ = (folder / "a.txt").replace(target)
    ...     [path.name for path in Path(name).iterdir()]
    ['a.txt']
    """
    remove_unfinished_directories(target)
    folder, descriptor = _create_locked(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def write_file_atomically(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces the target unless an error occurs."""
    with write_folder_atomically(target) as folder:
        temporary = folder / target.name
        yield temporary
        sync(temporary)  # the data must be on the disk before the old file is replaced
        os.replace(temporary, target)
        sync(target.parent)


def remove_unfinished_directories(target: Path) -> None:
    """Remove the folders of `write_folder_atomically` that killed processes left for a target."""
    with suppress(OSError):
        for name in os.listdir(target.parent):
            if name.startswith(_make_prefix(target)) and name.endswith(_TEMPORARY_SUFFIX):
                _remove_unless_locked(target.with_name(name))


def _make_prefix(target: Path) -> str:
    # File systems allow 255 bytes, and a character has up to four.
    return f".{target.name[:50]}."


def _create_locked(target: Path) -> tuple[Path, int | None]:
    while True:
        name = f"{_make_prefix(target)}{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
        folder = target.with_name(name)
        folder.mkdir()
        # Another process may remove the folder before it is locked, because it looks abandoned.
        # Try again in this case.
        with suppress(BlockingIOError, FileNotFoundError):
            descriptor = _lock_folder(folder)
            if folder.exists():
                return folder, descriptor
            if descriptor is not None:
                os.close(descriptor)


def _remove_unless_locked(folder: Path) -> None:
    with suppress(BlockingIOError):
        descriptor = _lock_folder(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _lock_folder(folder: Path) -> int | None:
    """Return a descriptor that holds the lock on a folder; None where this is not supported."""
    if fcntl is None:  # Windows cannot open folders either
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if lock_file(descriptor):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


# A file that is changed twice within the resolution of the file system's clock keeps its time
# stamps, so the digest of a recently changed file is not cached. The coarsest resolution is 2 s.
_MIN_STAMP_AGE_S = 3.0
# Time stamps are not comparable after the clock was set back by more than this many seconds.
_MIN_CLOCK_RESET_S = 0.9
_max_clock_offset = float("-inf")
_n_clock_resets = 0


def read_stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that change when a file changes, even if its modification time is reset."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_size, *times, status.st_ino, status.st_dev, _count_clock_resets())


def has_reliable_stamp(status: os.stat_result) -> bool:
    """Return whether the next change of a file will change its stamp."""
    return time.time() - max(status.st_mtime, status.st_ctime) > _MIN_STAMP_AGE_S


def _count_clock_resets() -> int:
    """Return how often this process has observed that the clock was set back.

    A file that is changed when the clock shows the time of its last change again keeps its time
    stamps, so stamps from before a reset must not equal those after it.
    """
    global _max_clock_offset, _n_clock_resets
    offset = time.time() - time.monotonic()
    if offset < _max_clock_offset - _MIN_CLOCK_RESET_S:
        _n_clock_resets += 1
        _max_clock_offset = offset
    _max_clock_offset = max(_max_clock_offset, offset)
    return _n_clock_resets
