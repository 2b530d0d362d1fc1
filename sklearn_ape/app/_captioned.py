"""Captioned images in a folder that was a visitor's zip."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from .._image_suffixes import IMAGE_SUFFIXES
from ..datasets import load_image_folder
from ..datasets._table import captions_by_row, column, read_table, text_column
from ._classify import check_text
from ._limits import Limits, in_words
from ._refusal import Refusal, some_of, without_paths

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
                raise Refusal(
                    f"The zip has several tables, {some_of(t.name for t in tables)}: keep the "
                    "one with the captions."
                )
            if tables:
                images, captions = _from_table(folder, tables[0], images)
                source = f"the table {tables[0].name}"
            else:
                captions = load_image_folder(folder, captions="filename").captions
                source = "the names of the files"
    except Refusal:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise without_paths(error, folder) from error
    _check_number(len(images), limits)
    for texts in captions:
        for text in [texts] if isinstance(texts, str) else texts:
            check_text(text, limits, "caption")
    n_captions = sum(1 if isinstance(texts, str) else len(texts) for texts in captions)
    if n_captions > 5 * limits.images:
        raise Refusal(
            f"These are {n_captions:,} captions; the limit is {5 * limits.images:,}. Send fewer."
        )
    return Captioned(images, captions, source)


def _check_texts(folder: Path) -> None:
    """Refuse captions and tables that are larger, read, than anyone's captions."""
    texts = (
        f for f in folder.rglob("*") if f.is_file() and f.suffix.lower() not in IMAGE_SUFFIXES
    )
    if sum(file.stat().st_size for file in texts) > _MOST_TEXT:
        raise Refusal(
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
        raise Refusal(
            f"{where} names {len(absent)} images that are not in the zip: {some_of(absent)}. "
            "Write their names as in the zip, relative to the table."
        )
    if not wanted:
        raise Refusal(f"{where} has no rows: expected one an image and caption.")
    of_image: dict[str, list[str]] = {}
    for key, texts in zip(wanted, captions, strict=True):
        of_image.setdefault(known[key], []).extend(texts)
    return list(of_image), list(of_image.values())


def _check_number(n_images: int, limits: Limits) -> None:
    if n_images > limits.images:
        raise Refusal(
            f"These are {n_images:,} images; the limit is {limits.images:,}. Send fewer."
        )
