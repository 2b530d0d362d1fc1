"""Unpack a stranger's zip: the wanted files alone, within bounds, and never outside a folder."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ._limits import Limits, in_words
from ._refusal import Refusal, quoted

_END = b"PK\x05\x06"
_END_SIZE = 22
_END_OF_ZIP64 = b"PK\x06\x07"
_END_OF_ZIP64_SIZE = 20
_LONGEST_COMMENT = 0xFFFF
_DIRECTORY_BYTES_PER_FILE = 512
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LONGEST_NAME = 200
_DEEPEST = 8
# Below it a file may shrink as it likes: a page of captions is often one line many times.
_SMALL = 2**20
_AT_ONCE = 2**16
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ArithmeticError,
    ValueError,
    OSError,
)


class Unpacked(NamedTuple):
    """What was written, and how many files were left out as they are of another kind."""

    files: list[Path]
    n_left_out: int


def unpack(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    suffixes: Collection[str],
    limits: Limits,
) -> Unpacked:
    """Write the files of a zip that have one of the suffixes below an empty folder.

    Parameters
    ----------
    archive : path-like
        The zip.
    folder : path-like
        Where to write; exists and is empty.
    suffixes : collection of str
        Lower-case suffixes of the files that are wanted; others, hidden ones and zips within the
        zip are left out, unread.
    limits : Limits
        Bounds on its size, entries and growth.

    Returns
    -------
    unpacked : Unpacked
        The files written.

    Raises
    ------
    Refusal
        When it is not a zip, is damaged, encrypted, too large or grows too much, or an entry is
        a link or leads out of the folder. Nothing is written before all entries were looked at.
    """
    size = os.path.getsize(archive)
    if size > limits.upload_bytes:
        raise Refusal(
            f"The zip has {in_words(size)}; the limit is {in_words(limits.upload_bytes)}. Send "
            "fewer or smaller images: 640 pixels are plenty."
        )
    _check_directory(archive, limits)
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            wanted = _wanted(entries, suffixes, limits)
            for entry, name in wanted:
                _write(file, entry, Path(folder, *name.parts))
    except Refusal:
        raise
    except _DAMAGE as error:
        # An offset before the file's beginning; any other such error is the server's own.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise Refusal(
            "The zip is damaged or cut short. Pack it again and send it once more."
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        raise Refusal("The zip is packed in a way that is not known here.") from error
    n_files = sum(not entry.is_dir() for entry in entries)
    return Unpacked([Path(folder, *name.parts) for _, name in wanted], n_files - len(wanted))


def _check_directory(archive: str | os.PathLike[str], limits: Limits) -> None:
    """Refuse a directory of entries that would fill the memory; zipfile reads it whole."""
    with open(archive, "rb") as file:
        file.seek(0, os.SEEK_END)
        n_bytes = file.tell()
        file.seek(max(0, n_bytes - _LONGEST_COMMENT - _END_SIZE - _END_OF_ZIP64_SIZE))
        tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_SIZE:
        raise Refusal(
            "This is not a zip, or it is cut short. Put the images into a folder, compress the "
            "folder to a .zip and send that."
        )
    (n_directory,) = struct.unpack_from("<I", tail, end + 12)
    before = tail[max(0, end - _END_OF_ZIP64_SIZE) : end]
    if _END_OF_ZIP64 in before or n_directory > _DIRECTORY_BYTES_PER_FILE * limits.files:
        raise Refusal(_too_many(limits))


def _too_many(limits: Limits) -> str:
    return f"The zip has too many entries: the limit is {limits.files:,} files. Send fewer."


def _wanted(
    entries: list[zipfile.ZipInfo], suffixes: Collection[str], limits: Limits
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the entries to write, with their names; look at all of them."""
    if len(entries) > limits.files:
        raise Refusal(_too_many(limits))
    wanted = []
    seen: set[str] = set()
    total = 0
    for entry in entries:
        name = _name(entry)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            what = "a link" if kind == stat.S_IFLNK else "no ordinary file"
            raise Refusal(
                f"{quoted(entry.filename)} in the zip is {what}. Pack the files themselves."
            )
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        if entry.is_dir() or hidden or name.suffix.lower() not in suffixes:
            continue
        total += entry.file_size
        _check_content(entry, total, limits)
        # Names that differ in case alone are one file on some systems.
        if name.as_posix().casefold() in seen:
            raise Refusal(f"The zip has {quoted(entry.filename)} twice. Rename one of them.")
        seen.add(name.as_posix().casefold())
        wanted.append((entry, name))
    return wanted


def _name(entry: zipfile.ZipInfo) -> PurePosixPath:
    """Return an entry's name as a relative path that stays where it is put."""
    text = entry.filename.replace("\\", "/")
    name = PurePosixPath(text)
    if name.is_absolute() or ".." in name.parts or ":" in text or "\0" in entry.orig_filename:
        raise Refusal(
            f"The name {quoted(entry.filename)} in the zip leads out of its folder, or cannot be "
            "a file's name everywhere. Use plain names such as 'photos/cat.jpg'."
        )
    if len(name.parts) > _DEEPEST or any(len(p.encode()) > _LONGEST_NAME for p in name.parts):
        raise Refusal(
            f"The name {quoted(entry.filename)} in the zip is too long: at most {_DEEPEST} "
            f"folders deep, and {_LONGEST_NAME} bytes each."
        )
    return name


def _check_content(entry: zipfile.ZipInfo, total: int, limits: Limits) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise Refusal("The zip has a password. Pack it again without one.")
    if entry.compress_type not in _METHODS:
        raise Refusal(
            f"{quoted(entry.filename)} in the zip is packed in an unusual way. Pack it as an "
            "ordinary zip (deflate)."
        )
    if total > limits.unpacked_bytes:
        raise Refusal(
            f"Unpacked, the zip has more than {in_words(limits.unpacked_bytes)}, the limit. Send "
            "fewer or smaller images."
        )
    if entry.file_size > max(_SMALL, limits.ratio * entry.compress_size):
        raise Refusal(
            f"{quoted(entry.filename)} in the zip grows more than {limits.ratio} times when it "
            "is unpacked, as in a zip bomb."
        )


def _write(file: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Write one entry; it gives no more bytes than it declared, or fails its checksum."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open(entry) as source, target.open("xb") as sink:
        while block := source.read(_AT_ONCE):
            sink.write(block)
