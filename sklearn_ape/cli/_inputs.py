"""What commands are given: images, names of classes, pairs."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from ..utils.files import IMAGE_SUFFIXES
from ._console import say

__all__ = ["label_names", "list_images", "load_data", "read_lines"]


def list_images(arguments: Iterable[str], quiet: bool = False) -> list[str]:
    """Return the paths of the images that arguments stand for, each once, in order.

    Parameters
    ----------
    arguments : iterable of str
        Files, folders, patterns, or "-" for a list of files and folders on standard input.
    quiet : bool, default=False
        Do not say what is passed over.

    Returns
    -------
    paths : list of str
        What is in a folder or follows from a pattern is sorted.

    Raises
    ------
    FileNotFoundError
        When an argument is neither there nor a pattern that fits something.
    ValueError
        When no images are left.
    """
    others: Counter[str] = Counter()
    paths = dict.fromkeys(_images(arguments, others))
    _say_passed_over(others, quiet)
    if not paths:
        raise ValueError("There are no images among what was given.")
    return list(paths)


def _say_passed_over(others: Counter[str], quiet: bool) -> None:
    if others:
        kinds = ", ".join(f"{n:,} {suffix!r}" for suffix, n in others.most_common(5))
        say(f"Passed over what is no image: {others.total():,} files ({kinds}).", quiet)


def _images(arguments: Iterable[str], others: Counter[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            for line in _lines_of_stdin():
                # Of a long list, one that is gone must not lose the others.
                yield from _expanded(line, others) if os.path.lexists(line) else (line,)
        elif os.path.lexists(argument):
            yield from _expanded(argument, others)
        else:
            found = sorted(glob.glob(os.path.expanduser(argument), recursive=True))
            if not found:
                raise FileNotFoundError(_absent(argument))
            for path in found:
                yield from _expanded(path, others)


def _absent(argument: str) -> str:
    if "://" in argument:
        return f"{argument!r} is an address, not a file: download the image first."
    if glob.has_magic(argument):
        return f"No file fits the pattern {argument!r}."
    return f"There is no file or folder {argument!r}."


def _expanded(path: str, others: Counter[str]) -> Iterable[str]:
    if not os.path.isdir(path):
        if _may_be_image(path):
            return (path,)
        others[os.path.splitext(path)[1].lower()] += 1
        return ()
    from ..datasets import load_image_folder

    data = load_image_folder(path, captions=None)
    others.update(data.other_files)
    # Loaders give absolute paths; results are easier to read with what was asked for.
    root = Path(path).expanduser().absolute()
    return [os.path.join(path, os.path.relpath(image, root)) for image in data.images]


def _may_be_image(path: str) -> bool:
    """Tell captions that lie among images from images, damaged ones included."""
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES or not os.path.isfile(path):
        return True
    from PIL import Image

    try:
        Image.open(path).close()
    except Exception:  # Pillow's plugins raise anything
        return False
    return True


def _lines_of_stdin() -> list[str]:
    content = sys.stdin.buffer.read()
    # As find -print0 writes them, names may hold line feeds.
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(name) for name in names if name.strip()]


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file that are not blank."""
    try:
        text = file.expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 text: {error}.") from error
    # At line ends alone: str.splitlines also splits at form feeds and U+2028.
    return [line.strip() for line in text.split("\n") if line.strip()]


def label_names(labels: str | None, labels_file: Path | None) -> Any:
    """Return names of classes, a list or a mapping to synonyms; None if none were given.

    Parameters
    ----------
    labels : str or None
        Names with commas or line ends between them.
    labels_file : Path or None
        A file with one name per line, or a JSON file.

    Returns
    -------
    names : list, dict or None
        Labels for `ZeroShotClassifier`.

    Raises
    ------
    ValueError
        When they repeat, are empty or only one; the message names them.
    """
    if labels is not None and labels_file is not None:
        raise typer.BadParameter("give --labels or --labels-file, not both.")
    if labels is None and labels_file is None:
        return None
    names: Any
    if labels is not None:
        names = _names_on_command_line(labels)
    else:
        assert labels_file is not None
        names = _names_in(labels_file)
    from ..prompts import resolve_names

    if len(resolve_names(names)) == 1:
        raise ValueError(
            f"{next(iter(names))!r} is the only label, so that every image would be given it: "
            "name at least two, for instance --labels 'cat,something else'."
        )
    return names


def _names_on_command_line(labels: str) -> list[str]:
    """Return names between commas or line ends."""
    try:
        lines = list(csv.reader(io.StringIO(labels, newline=""), skipinitialspace=True))
    except csv.Error as error:
        raise typer.BadParameter(
            f"cannot be read ({error}). Put names with commas or quotes between double quotes, or "
            "into a file for --labels-file.",
            param_hint="--labels",
        ) from error
    return [name.strip() for line in lines for name in line if name.strip()]


def _names_in(file: Path) -> Any:
    if file.suffix.lower() != ".json":
        return read_lines(file)
    from ..datasets.table import RepeatedKeyError, unique_keys

    try:
        text = file.expanduser().read_text(encoding="utf-8-sig")
        names = json.loads(text, object_pairs_hook=unique_keys)
    except RepeatedKeyError as error:
        raise ValueError(f"{str(file)!r} {error}") from error
    except RecursionError:
        raise ValueError(
            f"{str(file)!r} is nested too deep. Write a list or an object of names."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}.") from error
    if not isinstance(names, list | dict):
        raise ValueError(
            f'{str(file)!r} must hold a list of names, ["cat", "dog"], or names with synonyms, '
            '{"vehicle": ["car", "bus"]}.'
        )
    return names


def load_data(
    data: Path,
    *,
    image: str = "image",
    caption: str = "caption",
    label: str | None = None,
    captions: str = "auto",
    strict: bool = False,
    quiet: bool = False,
) -> Any:
    """Load a folder or a table of pairs as a Bunch of images, captions and, if any, labels."""
    from ..datasets import load_image_folder, load_pairs

    path = data.expanduser()
    if path.is_file():
        try:
            return load_pairs(path, image=image, caption=caption, label=label, check_files=strict)
        except TypeError as error:  # cells that hold no images
            raise ValueError(str(error)) from error
    if not path.exists():
        raise FileNotFoundError(f"There is no folder or table {str(data)!r}.")
    bunch = load_image_folder(path, captions=captions)  # type: ignore[arg-type]
    if bunch.captions is None:  # else the other files are captions
        _say_passed_over(Counter(bunch.other_files), quiet)
    return bunch
