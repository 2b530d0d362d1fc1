"""Folders for uploads; validation and unpacking of zip files, images and captions."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from ..aligners.pairs import flatten_captions
from ..datasets import load_image_folder
from ..datasets.base import (
    MIN_SIDECAR_SHARE,
    find_sidecar,
    holds_numbers,
    read_sidecar,
    split_words,
)
from ..datasets.table import get_column, get_text_column, is_blank, parse_captions, read_table
from ..encoders.images import check_proportions, read_image
from ..encoders.items import ItemError
from ..utils.files import IMAGE_SUFFIXES
from ..utils.validation import format_list
from ._limits import Limits, Progress, UserError, check_text, format_size, hide_folder, quote

# Records of the zip format.
_END_SIGNATURE = b"PK\x05\x06"
_END_SIZE = 22
_ZIP64_SIGNATURE = b"PK\x06\x07"
_ZIP64_SIZE = 20
_MAX_COMMENT_SIZE = 0xFFFF  # a zip stores the length of its comment in two bytes
_ENCRYPTED_FLAG = 0x1
_COMPRESSION_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# A directory entry takes 46 bytes, the file name and extra fields.
_MAX_DIRECTORY_BYTES_PER_FILE = 512
# Within the limits of all file systems: 255 bytes per name, about 4,096 per path.
_MAX_NAME_BYTES = 200
_MAX_DEPTH = 8
# Small files are exempt from the ratio: a table with equal captions compresses very well.
_MIN_BYTES_FOR_RATIO = 2**20

# Errors of zipfile for damaged files, whose structure it does not check completely.
_DAMAGE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, ArithmeticError, ValueError, OSError),
)


def create_temporary_folder(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder that only this user can read, deleted with the returned object."""
    return tempfile.TemporaryDirectory(prefix=f"sklearn-ape-{purpose}")


class PageFolders:
    """Private folders for the uploads of the pages that run in this process.

    Gradio reads the environment variable of its upload folder at every request, so all pages must
    share one folder. Each page stores its files in a subfolder, which is deleted when the page is
    closed. The shared folder is deleted with the last subfolder.
    """

    _VARIABLE = "GRADIO_TEMP_DIR"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: set[str] = set()
        self._shared: tempfile.TemporaryDirectory[str] | None = None
        self._previous: str | None = None

    def create(self) -> str:
        """Return a new folder for a page, in the shared folder."""
        with self._lock:
            if self._shared is None:
                self._shared = create_temporary_folder("page-")
                self._previous = os.environ.get(self._VARIABLE)
                os.environ[self._VARIABLE] = self._shared.name
            folder = tempfile.mkdtemp(dir=self._shared.name)
            self._folders.add(folder)
            return folder

    def remove(self, folder: str) -> None:
        """Delete the folder of a page and, if it is the last one, the shared folder."""
        with self._lock:
            self._folders.discard(folder)
            # Files of a request that is still running are deleted with the shared folder.
            shutil.rmtree(folder, ignore_errors=True)
            if self._shared is None or self._folders:
                return
            if self._previous is None:
                os.environ.pop(self._VARIABLE, None)
            else:
                os.environ[self._VARIABLE] = self._previous
            shared, self._shared = self._shared, None
            shared.cleanup()


# It is global, so that the folder of a page exists as long as the page runs, even if the caller of
# `serve` discards the returned object.
page_folders = PageFolders()


def measure_folder(folder: str) -> int:
    """Return the total size of all files in a folder."""
    n_bytes = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # files may be deleted during the walk
                n_bytes += os.path.getsize(os.path.join(top, name))
    return n_bytes


def unpack(
    archive: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    suffixes: Collection[str],
    limits: Limits,
) -> None:
    """Unpack the files of a zip file that have one of the suffixes, to an empty folder.

    All entries are checked before the first file is written. Files with other suffixes, hidden
    files and nested zip files are skipped without being read.
    """
    if archive is None:
        raise UserError("There is no zip yet. Drop a zip file.")
    size = os.path.getsize(archive)
    if size > limits.upload_bytes:
        raise UserError(
            f"The zip has {format_size(size)}; the limit is {format_size(limits.upload_bytes)}. "
            "Upload fewer or smaller images: 640 pixels are enough."
        )
    _check_directory_size(archive, limits)
    try:
        with zipfile.ZipFile(archive) as file:
            for entry, name in _select_entries(file.infolist(), suffixes, limits):
                target = Path(folder, *name.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                # zipfile reads at most the declared size and verifies the checksum.
                with file.open(entry) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink)
    except _DAMAGE_ERRORS as error:
        # EINVAL is a seek before the beginning of the file, which damage causes. Any other
        # OSError, such as a full disk, is an error of the server.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UserError("The zip is damaged or incomplete. Pack and upload it again.") from error
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(
            "The zip uses a compression that is not supported. Pack it as an ordinary zip."
        ) from error


def _check_directory_size(archive: str | os.PathLike[str], limits: Limits) -> None:
    """Reject a zip directory that would fill the memory, since zipfile reads it as a whole."""
    tail_size = _MAX_COMMENT_SIZE + _END_SIZE + _ZIP64_SIZE
    with open(archive, "rb") as file:
        file.seek(max(0, os.path.getsize(archive) - tail_size))
        tail = file.read()
    end = tail.rfind(_END_SIGNATURE)
    if end < 0 or len(tail) - end < _END_SIZE:
        raise UserError(
            "This file is not a zip, or it is incomplete. Upload a .zip file, such as a "
            "compressed folder of images."
        )
    (n_directory_bytes,) = struct.unpack_from("<I", tail, end + 12)
    before_end = tail[max(0, end - _ZIP64_SIZE) : end]
    is_large = n_directory_bytes > _MAX_DIRECTORY_BYTES_PER_FILE * limits.files
    # ZIP64 is for more entries or larger files than any limit allows.
    if is_large or _ZIP64_SIGNATURE in before_end:
        raise _make_entries_error(limits)


def _make_entries_error(limits: Limits) -> UserError:
    return UserError(
        f"The zip has too many entries: the limit is {limits.files:,} files. Upload fewer files."
    )


def _select_entries(
    entries: list[zipfile.ZipInfo], suffixes: Collection[str], limits: Limits
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the entries to unpack and their relative paths, after checking all entries."""
    if len(entries) > limits.files:
        raise _make_entries_error(limits)
    selected = []
    names: set[str] = set()
    n_bytes = 0
    for entry in entries:
        name = _make_relative_path(entry)
        file_type = stat.S_IFMT(entry.external_attr >> 16)
        if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "a link" if file_type == stat.S_IFLNK else "not an ordinary file"
            raise UserError(
                f"{quote(entry.filename)} in the zip is {kind}. Pack the files themselves."
            )
        is_hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        if entry.is_dir() or is_hidden or name.suffix.lower() not in suffixes:
            continue
        n_bytes += entry.file_size
        _check_entry(entry, n_bytes, limits)
        # Names that differ only in case are the same file on some file systems.
        if name.as_posix().casefold() in names:
            raise UserError(
                f"The zip contains {quote(entry.filename)} twice. Rename one of the files."
            )
        names.add(name.as_posix().casefold())
        selected.append((entry, name))
    return selected


def _make_relative_path(entry: zipfile.ZipInfo) -> PurePosixPath:
    """Return the path of an entry; raise `UserError` if it is not within the zip's folder."""
    text = entry.filename.replace("\\", "/")
    name = PurePosixPath(text)
    # A colon marks drives and alternative streams on Windows. zipfile cuts names at "\0".
    if name.is_absolute() or ".." in name.parts or ":" in text or "\0" in entry.orig_filename:
        raise UserError(
            f"The name {quote(entry.filename)} in the zip leads out of its folder or is not valid "
            "on all systems. Use plain names such as 'photos/cat.jpg'."
        )
    longest = max((len(part.encode()) for part in name.parts), default=0)
    if len(name.parts) > _MAX_DEPTH or longest > _MAX_NAME_BYTES:
        raise UserError(
            f"The name {quote(entry.filename)} in the zip is too long. Use at most {_MAX_DEPTH} "
            f"levels of folders with names of at most {_MAX_NAME_BYTES} bytes."
        )
    return name


def _check_entry(entry: zipfile.ZipInfo, n_bytes: int, limits: Limits) -> None:
    if entry.flag_bits & _ENCRYPTED_FLAG:
        raise UserError("The zip has a password. Pack it again without one.")
    if entry.compress_type not in _COMPRESSION_METHODS:
        raise UserError(
            f"{quote(entry.filename)} in the zip has an unusual compression. Pack it as an "
            "ordinary zip (deflate)."
        )
    if n_bytes > limits.unpacked_bytes:
        raise UserError(
            f"Unpacked, the zip has more than {format_size(limits.unpacked_bytes)}, the limit. "
            "Upload fewer or smaller images."
        )
    if entry.file_size > max(_MIN_BYTES_FOR_RATIO, limits.ratio * entry.compress_size):
        raise UserError(
            f"{quote(entry.filename)} in the zip becomes more than {limits.ratio} times larger "
            "when it is unpacked, like a zip bomb. Upload the files without this one."
        )


# Side of thumbnails, in pixels. Uploads are decoded at the smaller size, which is faster.
_THUMBNAIL_SIDE = 320
_CHECK_SIDE = 224


def check_image(path: str | os.PathLike[str] | None, limits: Limits) -> str:
    """Return the path of an image; raise `UserError` if it is missing or cannot be decoded."""
    if path is None:
        raise UserError("There is no image yet. Drop one, or click an example.")
    if problem := _find_problem(path, limits):
        raise UserError(f"The image cannot be used: it {problem}")
    return os.fspath(path)


def check_images(
    paths: Sequence[str], folder: str, limits: Limits, progress: Progress
) -> tuple[list[int], dict[str, str]]:
    """Return the rows of images that can be decoded, and the problems of the others by name."""
    rows, problems = [], {}
    for row, path in enumerate(paths):
        if row % 16 == 0:
            progress(row / len(paths), f"Checking image {row + 1} of {len(paths)}")
        if problem := _find_problem(path, limits):
            problems[os.path.relpath(path, folder)] = problem
        else:
            rows.append(row)
    if not rows:
        raise UserError(f"No image of the zip can be read. {describe_problems(problems)}")
    return rows, problems


def describe_problems(problems: dict[str, str]) -> str:
    """Return a sentence about the skipped images; an empty text if there are none."""
    if not problems:
        return ""
    name, problem = next(iter(problems.items()))
    plural = "s were" if len(problems) > 1 else " was"
    first = quote(name) if len(problems) == 1 else f"the first, {quote(name)},"
    return f"{len(problems)} image{plural} skipped: {first} {problem}"


def make_thumbnail(path: str | os.PathLike[str]) -> Image.Image:
    """Return a small copy of an image: the page never serves files of the server itself."""
    image = read_image(path, _THUMBNAIL_SIDE)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return image


def _find_problem(path: str | os.PathLike[str], limits: Limits) -> str | None:
    """Return a description of the problem of an image, without its folder, or None."""
    if not os.path.getsize(path):
        return "is empty (0 bytes). Choose another file."
    try:
        # From the header only, so that images with too many pixels are not decoded.
        with Image.open(path) as image:
            n_pixels = image.width * image.height
        if n_pixels > limits.pixels:
            return (
                f"has {n_pixels / 1e6:.0f} million pixels; the limit is "
                f"{limits.pixels / 1e6:.0f} million. Reduce its size."
            )
    except Image.DecompressionBombError:
        return f"has far more than {limits.pixels / 1e6:.0f} million pixels. Reduce its size."
    except Exception:  # plugins of Pillow raise any exception; read_image describes the problem
        pass
    try:
        check_proportions(read_image(path, _CHECK_SIDE))
    except ItemError as error:
        return str(error).replace(os.fspath(path), Path(path).name)
    return None


_TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson"))
CAPTIONED_SUFFIXES = frozenset((*IMAGE_SUFFIXES, *_TABLE_SUFFIXES, ".txt", ".caption"))

# About 8 KiB per image at the limit of 2,000 images.
_MAX_TEXT_BYTES = 16 * 2**20

# Tables that are preferred to others, and how a message describes files with captions.
_TABLES = ("captions.csv", "metadata.csv", "metadata.jsonl")
_CAPTION_FILES = "a text file per image or a table (.csv, .tsv or .jsonl) to the zip"

# Accepted column names, in order of preference.
_IMAGE_COLUMNS = ("file_name", "image", "file", "filename", "path", "picture", "photo")
_CAPTION_COLUMNS = ("caption", "text", "captions", "title", "description", "label")


class CaptionedImages(NamedTuple):
    """Paths of images, one caption or a list of captions per image, and the captions' source."""

    images: list[str]
    captions: list[Any]
    source: str

    def select(self, rows: Collection[int]) -> CaptionedImages:
        """Return the images of some rows with their captions."""
        images = [self.images[row] for row in rows]
        captions = [self.captions[row] for row in rows]
        return self._replace(images=images, captions=captions)


def list_images(folder: Path, limits: Limits) -> list[str]:
    """Return the paths of the images of an unpacked zip file."""
    try:
        images = load_image_folder(folder, captions=None).images
    except ValueError as error:
        raise UserError("The zip has no images. Pack .jpg, .png or .webp files.") from error
    except OSError as error:
        raise hide_folder(error, folder) from error
    if len(images) > limits.images:
        raise UserError(
            f"The zip contains {len(images):,} images; the limit is {limits.images:,}. Upload "
            "fewer images."
        )
    return images


def load_captioned_images(folder: Path, limits: Limits) -> CaptionedImages:
    """Return the images of an unpacked zip file with their captions.

    Captions are read from text files next to the images, from a table, or otherwise from the
    file names.
    """
    folder = skip_single_folder(folder)
    _check_text_size(folder)
    images = list_images(folder, limits)
    try:
        loaded = _find_captions(folder, images)
    except (ValueError, OSError, RecursionError) as error:
        raise hide_folder(error, folder) from error
    texts, _ = flatten_captions(loaded.captions)
    for text in texts:
        check_text(text, limits, "caption")
    if len(loaded.images) > len(set(texts)) == 1:
        raise UserError(
            f"All images have the caption {quote(texts[0])}. Write captions that describe the "
            "differences between the images."
        )
    if len(texts) > 5 * limits.images:
        raise UserError(
            f"The zip contains {len(texts):,} captions; the limit is {5 * limits.images:,}. "
            "Upload fewer captions."
        )
    return loaded


def _find_captions(folder: Path, images: list[str]) -> CaptionedImages:
    files = {image: find_sidecar(Path(image)) for image in images}
    texts = list(filter(None, files.values()))
    # A few text files are notes, and those with numbers only are annotations of boxes.
    is_note = len(texts) < MIN_SIDECAR_SHARE * len(images)
    if not is_note and not all(map(holds_numbers, texts)):
        captions = [[] if file is None else read_sidecar(file) for file in files.values()]
        without = [image for image, lines in zip(images, captions, strict=True) if not lines]
        if without:
            raise UserError(
                f"{len(without)} of {len(images)} images have no text file with a caption, or it "
                f"is empty: {_format_names(without, folder)}. Write the caption of 'cat.jpg' into "
                "'cat.txt', or remove these images."
            )
        return CaptionedImages(images, captions, "the text files")
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in _TABLE_SUFFIXES)
    tables = [file for file in tables if file.name in _TABLES] or tables
    if len(tables) > 1:
        raise UserError(
            f"The zip contains several tables: {_format_names(tables, folder)}. Keep only the "
            "table with the captions."
        )
    if tables:
        return _read_table(tables[0], images)
    without = [image for image in images if not split_words(Path(image).stem)]
    if without:
        raise UserError(
            "The zip has no text files or table with captions, and the names of "
            f"{len(without)} of {len(images)} images contain no words: "
            f"{_format_names(without, folder)}. Rename the images, or add {_CAPTION_FILES}."
        )
    names = load_image_folder(folder, captions="filename").captions
    if len(names) > len(set(names)) == 1:  # such as IMG_0001.jpg, IMG_0002.jpg
        raise UserError(
            "The zip has no text files or table with captions, and the names of all images are "
            f"{quote(names[0])} without their numbers. Rename the images, or add {_CAPTION_FILES}."
        )
    return CaptionedImages(images, names, "the file names")


def _format_names(paths: Iterable[str | Path], folder: Path) -> str:
    return format_list((os.path.relpath(path, folder) for path in paths), quote)


def _check_text_size(folder: Path) -> None:
    """Reject text files and tables that are larger, in total, than captions can be."""
    files = (file for file in folder.rglob("*") if file.is_file())
    texts = (file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
    if sum(file.stat().st_size for file in texts) > _MAX_TEXT_BYTES:
        raise UserError(
            f"The captions of the zip take more than {format_size(_MAX_TEXT_BYTES)}, the limit. "
            "Upload fewer captions."
        )


def skip_single_folder(folder: Path) -> Path:
    """Return the only folder in a folder, as in the zip of a whole folder; else the folder."""
    children = list(folder.iterdir())
    return children[0] if len(children) == 1 and children[0].is_dir() else folder


def _read_table(file: Path, images: list[str]) -> CaptionedImages:
    """Return the images that a table names, all of which must be in the zip file."""
    table = read_table(file)
    names = [str(name) for name in get_column(table, _IMAGE_COLUMNS, file.name)] if table else []
    if not names:
        raise UserError(f"{file.name} has no rows. Write one row per image and caption.")
    path_by_name = {_format_path(os.path.relpath(path, file.parent)): path for path in images}
    missing = [name for name in names if _format_path(name) not in path_by_name]
    if missing:
        raise UserError(
            f"{file.name} names {len(missing)} images that are not in the zip: "
            f"{format_list(missing, quote)}. Write the names as in the zip, such as "
            f"{quote(next(iter(path_by_name)))}."
        )
    cells = get_text_column(table, _CAPTION_COLUMNS, file.name)
    blank = [name for name, cell in zip(names, cells, strict=True) if is_blank(cell)]
    if blank:
        raise UserError(
            f"{file.name} has no caption in {len(blank)} of {len(names)} rows, those of "
            f"{format_list(blank, quote)}. Write the captions, or remove the rows."
        )
    captions: dict[str, list[str]] = {}
    for name, texts in zip(names, parse_captions(cells, file.name), strict=True):
        captions.setdefault(path_by_name[_format_path(name)], []).extend(texts)
    source = f"the table {file.name}"
    if len(captions) < len(images):
        source += f", which names {len(captions)} of the {len(images)} images"
    return CaptionedImages(list(captions), list(captions.values()), source)


def _format_path(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")
