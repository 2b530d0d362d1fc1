"""What the loaders share: the data home, errors that help, and the shape of the result."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from ..utils.files import default_data_home


def get_data_home(data_home: str | os.PathLike[str] | None = None) -> Path:
    """Folder in which the loaders keep what they had to make.

    The folder is not created here: a loader creates it when it first writes.

    Parameters
    ----------
    data_home : path-like, default=None
        The folder. None takes the environment variable ``SKLEARN_APE_DATA`` and, where that is
        not set, the user's cache folder.

    Returns
    -------
    pathlib.Path
        The folder, absolute and with ``~`` expanded.

    Examples
    --------
    >>> from sklearn_ape.datasets import get_data_home
    >>> get_data_home("some/folder").parts[-2:]
    ('some', 'folder')
    """
    return Path(data_home).expanduser().absolute() if data_home else default_data_home()


def require(module: str, *, package: str, extra: str, purpose: str) -> Any:
    """Import ``module``, or say which command installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "sklearn-ape[{extra}]"'
        ) from error


def existing_folder(path: str | os.PathLike[str], expected: str) -> Path:
    """Return ``path`` as an absolute folder, or say what was expected there."""
    folder = Path(path).expanduser().absolute()
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}; expected {expected}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected {expected}.")
    return folder


def packaged_folder(
    path: str | os.PathLike[str] | None, *, default: str, apt: str, name: str, expected: str
) -> Path:
    """Return ``path``, or where Debian installs ``name``; say how to get it if it is absent."""
    if path is not None:
        return existing_folder(path, expected)
    folder = Path(default)
    if not folder.is_dir():
        raise ImportError(
            f"{name} is not installed: there is no folder {default!r}. On Debian and Ubuntu, "
            f"install it with: apt install {apt}. Elsewhere, pass path=..., {expected}."
        )
    return folder


def listed(items: Iterable[object], limit: int = 5) -> str:
    """Name the first few items, and how many there are if that is more.

    >>> listed(["a", "b", "c"], limit=2)
    "'a', 'b', ... (3 in all)"
    """
    items = list(items)
    text = ", ".join(repr(item) for item in items[:limit])
    return f"{text}, ... ({len(items)} in all)" if len(items) > limit else text


def words_of(name: str) -> str:
    """Turn a name that a program or a file gave into words, without numbering at its end.

    >>> words_of("red_apple-01"), words_of("BlueMan#102"), words_of("smiley111"), words_of("M16")
    ('red apple', 'Blue Man', 'smiley', 'M16')
    """
    text = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z])", " ", name)
    text = re.sub(r"[\s_\-]+", " ", text).strip()
    # A number of its own, or at the end of a word: not that of an M16.
    return re.sub(r"((^|\s+|#|(?<=[A-Za-z]{3}))v?\d+(\.\d+)*)+$", "", text).strip(" .#")


def one_or_ragged(captions: Sequence[Sequence[str]]) -> list[str] | list[list[str]]:
    """Flat list where every image has one caption, else one list an image."""
    if all(len(of_one) == 1 for of_one in captions):
        return [of_one[0] for of_one in captions]
    return [list(of_one) for of_one in captions]


def deliver(bunch: Bunch, return_X_y: bool) -> Any:
    """Return the Bunch, or its images and captions alone."""
    if not return_X_y:
        return bunch
    if bunch.captions is None:
        raise ValueError(
            "return_X_y=True returns (images, captions), but these images have no captions. "
            'Pass captions="folder" or captions="filename" to make them from names, or leave '
            "return_X_y out and use the labels."
        )
    return bunch.images, bunch.captions
