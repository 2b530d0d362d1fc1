"""Uploads: zip archives, images and captions."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ..datasets import load_image_folder
from ..datasets.table import captions_by_row, column, read_table, text_column
from ..encoders.images import read_image
from ..encoders.items import ItemError
from ..utils.files import IMAGE_SUFFIXES
from ._limits import (
    Limits,
    Report,
    UserError,
    check_text,
    in_words,
    quoted,
    some_of,
    without_paths,
)

if TYPE_CHECKING:
    from PIL import Image


def temporary_folder(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder that nobody else can read; it goes after use, at the latest at the end."""
    return tempfile.TemporaryDirectory(prefix=f"sklearn-ape-{purpose}")


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
        raise UserError(
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
    except UserError:
        raise
    except _DAMAGE as error:
        # An offset before the file's beginning; any other such error is the server's own.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UserError(
            "The zip is damaged or cut short. Pack it again and send it once more."
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        raise UserError("The zip is packed in a way that is not known here.") from error
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
        raise UserError(
            "This is not a zip, or it is cut short. Put the images into a folder, compress the "
            "folder to a .zip and send that."
        )
    (n_directory,) = struct.unpack_from("<I", tail, end + 12)
    before = tail[max(0, end - _END_OF_ZIP64_SIZE) : end]
    if _END_OF_ZIP64 in before or n_directory > _DIRECTORY_BYTES_PER_FILE * limits.files:
        raise UserError(_too_many(limits))


def _too_many(limits: Limits) -> str:
    return f"The zip has too many entries: the limit is {limits.files:,} files. Send fewer."


def _wanted(
    entries: list[zipfile.ZipInfo], suffixes: Collection[str], limits: Limits
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the entries to write, with their names; look at all of them."""
    if len(entries) > limits.files:
        raise UserError(_too_many(limits))
    wanted = []
    seen: set[str] = set()
    total = 0
    for entry in entries:
        name = _name(entry)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            what = "a link" if kind == stat.S_IFLNK else "no ordinary file"
            raise UserError(
                f"{quoted(entry.filename)} in the zip is {what}. Pack the files themselves."
            )
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        if entry.is_dir() or hidden or name.suffix.lower() not in suffixes:
            continue
        total += entry.file_size
        _check_content(entry, total, limits)
        # Names that differ in case alone are one file on some systems.
        if name.as_posix().casefold() in seen:
            raise UserError(f"The zip has {quoted(entry.filename)} twice. Rename one of them.")
        seen.add(name.as_posix().casefold())
        wanted.append((entry, name))
    return wanted


def _name(entry: zipfile.ZipInfo) -> PurePosixPath:
    """Return an entry's name as a relative path that stays where it is put."""
    text = entry.filename.replace("\\", "/")
    name = PurePosixPath(text)
    if name.is_absolute() or ".." in name.parts or ":" in text or "\0" in entry.orig_filename:
        raise UserError(
            f"The name {quoted(entry.filename)} in the zip leads out of its folder, or cannot be "
            "a file's name everywhere. Use plain names such as 'photos/cat.jpg'."
        )
    if len(name.parts) > _DEEPEST or any(len(p.encode()) > _LONGEST_NAME for p in name.parts):
        raise UserError(
            f"The name {quoted(entry.filename)} in the zip is too long: at most {_DEEPEST} "
            f"folders deep, and {_LONGEST_NAME} bytes each."
        )
    return name


def _check_content(entry: zipfile.ZipInfo, total: int, limits: Limits) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise UserError("The zip has a password. Pack it again without one.")
    if entry.compress_type not in _METHODS:
        raise UserError(
            f"{quoted(entry.filename)} in the zip is packed in an unusual way. Pack it as an "
            "ordinary zip (deflate)."
        )
    if total > limits.unpacked_bytes:
        raise UserError(
            f"Unpacked, the zip has more than {in_words(limits.unpacked_bytes)}, the limit. Send "
            "fewer or smaller images."
        )
    if entry.file_size > max(_SMALL, limits.ratio * entry.compress_size):
        raise UserError(
            f"{quoted(entry.filename)} in the zip grows more than {limits.ratio} times when it "
            "is unpacked, as in a zip bomb."
        )


def _write(file: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Write one entry; it gives no more bytes than it declared, or fails its checksum."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open(entry) as source, target.open("xb") as sink:
        while block := source.read(_AT_ONCE):
            sink.write(block)


_SIDE = 320


_ENOUGH = 224


def check_image(path: str | os.PathLike[str] | None, limits: Limits) -> str:
    """Return the path of an image that can be decoded; refuse any other file."""
    if path is None:
        raise UserError("There is no image yet: drop one, or click an example.")
    problem = _problem(path, limits)
    if problem:
        raise UserError(f"The image cannot be used: it {problem}")
    return os.fspath(path)


class Readable(NamedTuple):
    """Rows of images that can be decoded, and what is wrong with the others, by name."""

    rows: list[int]
    problems: dict[str, str]


def readable(paths: Sequence[str], folder: str, limits: Limits, report: Report) -> Readable:
    """Look at every image of a set; one broken file must not cost the visitor the others."""
    rows, problems = [], {}
    for row, path in enumerate(paths):
        if row % 16 == 0:
            report(row / len(paths), f"Looking at image {row + 1} of {len(paths)}")
        problem = _problem(path, limits)
        if problem:
            problems[os.path.relpath(path, folder)] = problem
        else:
            rows.append(row)
    return Readable(rows, problems)


def about_problems(problems: dict[str, str]) -> str:
    """Say which images were left out, or nothing."""
    if not problems:
        return ""
    name, problem = next(iter(problems.items()))
    plural = "s were" if len(problems) > 1 else " was"
    first = "" if len(problems) == 1 else "the first, "
    return f"{len(problems)} image{plural} left out: {first}{quoted(name)}, {problem}"


def thumbnail(path: str | os.PathLike[str]) -> Image.Image:
    """Return a small copy to show: the page never hands out files of the server's own folders."""
    image = read_image(path, _SIDE)
    image.thumbnail((_SIDE, _SIDE))
    return image


def _problem(path: str | os.PathLike[str], limits: Limits) -> str | None:
    """Return what is wrong with an image, without its path."""
    from PIL import Image

    if not os.path.getsize(path):
        return "is empty (0 bytes)."
    try:
        # The header first: pixels beyond the limit are not decoded.
        with Image.open(path) as image:
            n_pixels = image.width * image.height
        if n_pixels > limits.pixels:
            return (
                f"has {n_pixels / 1e6:.0f} million pixels; the limit is "
                f"{limits.pixels / 1e6:.0f} million. Shrink it."
            )
    except Exception:  # Pillow's plugins raise anything; read_image says it in words
        pass
    try:
        read_image(path, _ENOUGH)
    except ItemError as error:
        return str(error).replace(os.fspath(path), Path(path).name)
    return None


_TABLES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson"))


CAPTIONED = frozenset((*IMAGE_SUFFIXES, *_TABLES, ".txt", ".caption"))


_MOST_TEXT = 16 * 2**20


_IMAGE_COLUMNS = ("file_name", "image", "file", "filename", "path", "image", "photo")


_CAPTION_COLUMNS = ("caption", "text", "captions", "title", "description", "label")


class Captioned(NamedTuple):
    """Paths of images, a caption or a list of captions for each, and where these came from."""

    images: list[str]
    captions: list[Any]
    source: str


def listed_images(folder: Path, limits: Limits) -> list[str]:
    """Return the images of an unpacked zip."""
    try:
        images = load_image_folder(folder, captions=None).images
    except (ValueError, OSError) as error:
        raise without_paths(error, folder) from error
    _check_number(len(images), limits)
    return images


def captioned(folder: Path, limits: Limits) -> Captioned:
    """Return the images of an unpacked zip with their captions.

    Captions are text files beside the images, a table, or else the names of the files.

    Raises
    ------
    Refusal
        When there are no images, too many, or some have a caption and others have none.
    """
    folder = down(folder)
    _check_texts(folder)
    try:
        data = load_image_folder(folder)
        images, captions, source = data.images, data.captions, "text files or the table"
        if captions is None:
            tables = sorted(f for f in folder.iterdir() if f.suffix.lower() in _TABLES)
            if len(tables) > 1:
                raise UserError(
                    f"The zip has several tables, {some_of(t.name for t in tables)}: keep the "
                    "one with the captions."
                )
            if tables:
                images, captions = _from_table(folder, tables[0], images)
                source = f"the table {tables[0].name}"
            else:
                captions = load_image_folder(folder, captions="filename").captions
                source = "the names of the files"
    except UserError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise without_paths(error, folder) from error
    _check_number(len(images), limits)
    for texts in captions:
        for text in [texts] if isinstance(texts, str) else texts:
            check_text(text, limits, "caption")
    n_captions = sum(1 if isinstance(texts, str) else len(texts) for texts in captions)
    if n_captions > 5 * limits.images:
        raise UserError(
            f"These are {n_captions:,} captions; the limit is {5 * limits.images:,}. Send fewer."
        )
    return Captioned(images, captions, source)


def _check_texts(folder: Path) -> None:
    """Refuse captions and tables that are larger, read, than anyone's captions."""
    texts = (
        f for f in folder.rglob("*") if f.is_file() and f.suffix.lower() not in IMAGE_SUFFIXES
    )
    if sum(file.stat().st_size for file in texts) > _MOST_TEXT:
        raise UserError(
            f"The captions of the zip take more than {in_words(_MOST_TEXT)}, the limit. "
            "Send fewer."
        )


def down(folder: Path) -> Path:
    """Return the folder that was packed, where it is all that the zip has."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _from_table(folder: Path, file: Path, images: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return the images that a table names, among those of the zip and no others."""
    where = file.name
    table = read_table(file)
    names = column(table, _IMAGE_COLUMNS, where)
    captions = captions_by_row(text_column(table, _CAPTION_COLUMNS, where), where)
    known = {os.path.relpath(image, folder).replace(os.sep, "/"): image for image in images}
    wanted = [os.path.normpath(str(name)).replace(os.sep, "/") for name in names]
    absent = [str(name) for name, key in zip(names, wanted, strict=True) if key not in known]
    if absent:
        raise UserError(
            f"{where} names {len(absent)} images that are not in the zip: {some_of(absent)}. "
            "Write their names as in the zip, relative to the table."
        )
    if not wanted:
        raise UserError(f"{where} has no rows: expected one an image and caption.")
    of_image: dict[str, list[str]] = {}
    for key, texts in zip(wanted, captions, strict=True):
        of_image.setdefault(known[key], []).extend(texts)
    return list(of_image), list(of_image.values())


def _check_number(n_images: int, limits: Limits) -> None:
    if n_images > limits.images:
        raise UserError(
            f"These are {n_images:,} images; the limit is {limits.images:,}. Send fewer."
        )
