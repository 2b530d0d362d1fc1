"""Images that visitors send: looked at before anything is done with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..encoders._errors import ItemError
from ..encoders._images import read_image
from ._limits import Limits
from ._progress import Report
from ._refusal import Refusal, quoted

if TYPE_CHECKING:
    from PIL import Image

_SIDE = 320
_ENOUGH = 224


def check_image(path: str | os.PathLike[str] | None, limits: Limits) -> str:
    """Return the path of an image that can be decoded; refuse any other file."""
    if path is None:
        raise Refusal("There is no image yet: drop one, or click an example.")
    problem = _problem(path, limits)
    if problem:
        raise Refusal(f"The image cannot be used: it {problem}")
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
