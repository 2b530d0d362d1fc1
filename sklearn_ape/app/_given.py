"""The images that the page searches in, before they are embedded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import get_data_home, load_image_folder, load_openmoji
from ..datasets._base import words_of
from ..features import FeatureCache
from ._images import thumbnail

_THINGS = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
_SHOWN_FIRST = ("tiger", "pizza", "bicycle", "rocket", "umbrella", "guitar")


@dataclass(frozen=True)
class Images:
    """Images to search in, before they are embedded.

    Parameters
    ----------
    images, names : list of str
        Paths, and what is written below each.
    cache : FeatureCache or path-like
        Keeps their features.
    title : str
        What they are.
    folder : tempfile.TemporaryDirectory or None, default=None
        Where they lie, if it goes with them.
    """

    images: list[str]
    names: list[str]
    cache: Any
    title: str
    folder: Any = None


def given_images(images: Any) -> Images:
    """Return the collection that the person who starts the page named."""
    cache: FeatureCache | Path = get_data_home() / "features"
    if images is None:
        return openmoji_sample(cache)
    if isinstance(images, str | os.PathLike):
        data = load_image_folder(images)
        names = names_of_files(data.images) if data.captions is None else data.captions
        title = f"{len(data.images)} images of {Path(images).name!r}"
        return Images(data.images, [_first(name) for name in names], cache, title)
    if not isinstance(images, Sequence) or not len(images):
        raise ValueError(
            "images must be a folder, a sequence of paths of images, or None for OpenMoji, not "
            f"{images!r}."
        )
    paths = [os.fspath(image) for image in images]
    return Images(paths, names_of_files(paths), cache, f"{len(paths)} images")


def examples_of(images: Images, most: int = 6) -> list[Any]:
    """Return small copies of a few images, those that a newcomer would try first."""
    names = [name for name in _SHOWN_FIRST if name in images.names]
    rows = [images.names.index(name) for name in names]
    others = range(0, len(images.images), len(images.images) // most or 1)
    shown = []
    for row in dict.fromkeys([*rows, *others]):
        with contextlib.suppress(Exception):  # one that cannot be read is no example
            shown.append(thumbnail(images.images[row]))
        if len(shown) == most:
            break
    return shown


def openmoji_sample(cache: Any) -> Images:
    """Return the drawings of things, few enough to be embedded while one waits."""
    data = load_openmoji()
    things = np.flatnonzero(np.isin(data.categories, _THINGS)).tolist()
    images, names = ([column[row] for row in things] for column in (data.images, data.captions))
    return Images(images, names, cache, f"{len(images)} drawings of OpenMoji (CC BY-SA 4.0)")


def names_of_files(images: Sequence[str]) -> list[str]:
    """Return what is written below images that have no captions."""
    return [words_of(Path(image).stem) or Path(image).stem for image in images]


def _first(name: Any) -> str:
    return name if isinstance(name, str) else name[0]
