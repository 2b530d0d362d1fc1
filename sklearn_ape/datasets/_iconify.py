"""Loader of Iconify: hundreds of open icon sets, captioned with the names of the icons."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from PIL import Image
from sklearn.utils import Bunch

from ..utils.validation import check_integer
from ._openmoji import write_atomically
from .base import check_folder, get_data_home, import_optional, list_first, make_result

OPEN_LICENSES = (
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "OFL-1.1",
    "Unlicense",
)
"""Licences that allow any use with attribution, some of them only under the same licence."""

# Categories whose names are brands, which say nothing about what an icon shows.
_BRAND_CATEGORIES = frozenset({"Logos", "Programming"})

# Words that only name the style of a drawing.
_STYLE_WORDS = frozenset(
    {"alt", "baseline", "bold", "broken", "duo", "duotone", "fill", "filled", "outline"}
    | {"outlined", "regular", "remix", "rounded", "sharp", "solid", "thin", "tone", "twotone"}
)

# Words that name a style in some sets and a thing in others, such as "light" in "traffic light".
# They count as a style where they are at the same end of a considerable share of a set's names.
_POSSIBLE_STYLE_WORDS = frozenset(
    {"bx", "bxl", "bxs", "circle", "color", "dark", "f", "flat", "ios", "light", "line", "linear"}
    | {"logo", "md", "negative", "o", "pop", "print", "round", "square"}
)
_MIN_STYLE_SHARE = 0.05
_MIN_STYLE_COUNT = 10

_SKIN_TONE = re.compile(r"-((medium-)?(light|dark)|medium)-skin-tone")
_SIZE = re.compile(r"\d+(px|x\d+)?")

# Names become file names, so that no other characters are allowed.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

# Elements and attributes that run code or read files, as far as a renderer supports them.
_UNSAFE = re.compile(
    r"<\s*(script|foreignobject|image|feimage|iframe|!doctype|!entity)"
    r"|\son[a-z]+\s*=|javascript:|@import"
    r"|href\s*=\s*[\"'](?!\s*(#|&quot;#))|url\(\s*(?![\s\"']*(&quot;)?#)",
    re.IGNORECASE,
)

_MAX_SIDE = 100_000
_MAX_LENGTH = 2_000_000

_DESCR = """\
Iconify
-------
{n} icons of {n_sets} sets, {size} by {size} pixels on white, captioned with their names.

:Images: https://iconify.design, npm package `{package}`. Drawings of one color are dark grey.
:Captions: names of the icons, without words for the style of the drawing.
:categories: categories of the sets.
:Licences: as follows. Most require attribution of the authors.

{attribution}
"""


class IconSet(NamedTuple):
    """An icon set: its file, and its description in the package."""

    prefix: str
    file: Path
    info: Mapping[str, Any]

    @property
    def license(self) -> str:
        """SPDX identifier of the licence."""
        return self.info["license"]["spdx"]

    @property
    def category(self) -> str:
        """Category of the set, "Uncategorized" if the package does not name one."""
        return self.info.get("category") or "Uncategorized"

    def attribution(self) -> str:
        """Return the name, author and licence of the set in one line."""
        author = self.info.get("author") or {}
        url = f" ({author['url']})" if author.get("url") else ""
        return (
            f"- {self.info.get('name', self.prefix)} (`{self.prefix}`) by "
            f"{author.get('name', 'unknown authors')}{url}, {self.license}"
        )


class Icon(NamedTuple):
    """Set, name and caption of an icon, and the digest of its drawing."""

    icon_set: IconSet
    name: str
    caption: str
    digest: str

    @property
    def stem(self) -> str:
        """Path of the rendered file below the data home, without extension."""
        # The digest prevents that an image of another version of the set is used.
        return f"{self.icon_set.prefix}/{self.name[:80]}-{self.digest}"


def load_iconify(
    path: str | os.PathLike[str],
    *,
    sets: Iterable[str] | None = None,
    categories: Iterable[str] | str | None = None,
    licenses: Iterable[str] | str | None = None,
    palette: bool | None = None,
    variants: bool = False,
    size: int = 224,
    data_home: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    return_X_y: bool = False,
    verbose: int = 0,
) -> Any:
    """Load icons and their names from the npm package ``@iconify/json`` or one of its sets.

    The package contains more than 200 icon sets with more than 300,000 icons, each with a name
    such as "shopping-cart". The first call renders the icons to PNG files in the data home
    (about 5 ms per icon and process), and later calls only list them. Nothing is downloaded.

    Parameters
    ----------
    path : path-like
        Folder of the unpacked package ``@iconify/json``, or of one set such as
        ``@iconify-json/mdi``. ``npm pack @iconify/json`` downloads an archive, which
        ``tar xf`` unpacks into a folder ``package``.
    sets : iterable of str or None, default=None
        Prefixes of the sets to load, such as ``["mdi", "noto"]``. None means all sets that the
        other parameters select.
    categories : iterable of str, "all" or None, default=None
        Categories of the sets to load, such as ``["Emoji"]``. None means all categories but
        "Logos" and "Programming", which are named by brands, unless `sets` is given.
    licenses : iterable of str, "all" or None, default=None
        SPDX identifiers of the licences of the sets to load. None means `OPEN_LICENSES`:
        permissive and share-alike licences, without those that forbid commercial use and the GPL.
    palette : bool or None, default=None
        True loads only sets of colored icons, False only sets of one color, None both.
    variants : bool, default=False
        Whether to load all styles and skin tones of an icon, which have the same caption. If
        False, one icon is loaded for each caption of a set.
    size : int, default=224
        Width and height of the images in pixels.
    data_home : path-like, default=None
        Folder in which rendered images are stored; see :func:`get_data_home`.
    n_jobs : int or None, default=None
        Number of processes that render. None means 1 unless in a joblib context, -1 means all
        processors.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.
    verbose : int, default=0
        1 shows a progress bar while images are rendered, 0 does not.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list of str, length n_images
            Paths of PNG files, in the order of the sets in the package. Identical drawings occur
            once, and drawings without any visible part are left out.
        captions : list of str, length n_images
            Names without words for the style: "account" for "account-circle-outline-24".
        sets : ndarray of str, shape (n_images,)
            Prefixes of the sets.
        categories : ndarray of str, shape (n_images,)
            Categories of the sets, such as "Emoji".
        licenses : ndarray of str, shape (n_images,)
            SPDX identifiers of the licences.
        names : ndarray of str, shape (n_images,)
            Names of the icons in the package.
        DESCR : str
            Description of the source, with author and licence of every set.

    Raises
    ------
    ImportError
        If a package of the ``starter`` extra is not installed.
    FileNotFoundError, NotADirectoryError
        If `path` is not the folder of a package.
    ValueError
        If a file is damaged, no set is selected, or an icon contains a script or a reference to
        a file, is too large or cannot be rendered. The message names the file or the icon.

    See Also
    --------
    load_openmoji : Load drawings of emoji from a Python package.
    load_image_folder : Load your own images.

    Notes
    -----
    Sets often contain the same concepts. To test on concepts and drawings that were not seen in
    training, hold out whole sets: pass ``sets`` as `groups` to
    `sklearn.model_selection.GroupShuffleSplit`.

    References
    ----------
    .. [1] https://iconify.design

    Examples
    --------
    >>> from sklearn_ape.datasets import load_iconify
    >>> data = load_iconify("package", categories=["Emoji"], n_jobs=-1)  # doctest: +SKIP
    >>> data.captions[:2]  # doctest: +SKIP
    ['grinning face', 'grinning face with big eyes']
    """
    check_integer(size, "size", 1)
    package, found = _find_sets(path)
    selected = _select_sets(found, sets, categories, licenses, palette)
    folder = get_data_home(data_home) / f"iconify-{size}"
    icons = _list_icons(selected, variants)
    _render_missing(icons, folder, int(size), n_jobs, verbose)
    images = _list_images(icons, folder)
    shown = [icon for icon, image in zip(icons, images, strict=True) if image is not None]
    used = {icon.icon_set.prefix: icon.icon_set for icon in shown}
    bunch = Bunch(
        images=[image for image in images if image is not None],
        captions=[icon.caption for icon in shown],
        sets=np.array([icon.icon_set.prefix for icon in shown]),
        categories=np.array([icon.icon_set.category for icon in shown]),
        licenses=np.array([icon.icon_set.license for icon in shown]),
        names=np.array([icon.name for icon in shown]),
        DESCR=_DESCR.format(
            n=len(shown),
            n_sets=len(used),
            size=size,
            package=package,
            attribution="\n".join(icon_set.attribution() for icon_set in used.values()),
        ),
    )
    return make_result(bunch, return_X_y)


def _find_sets(path: str | os.PathLike[str]) -> tuple[str, list[IconSet]]:
    """Return the name of the package in a folder, and its sets."""
    expected = (
        "the folder of the unpacked npm package @iconify/json (npm pack @iconify/json, then tar "
        "xf) or of one set such as @iconify-json/mdi"
    )
    folder = check_folder(path, expected)
    for root in (folder, folder / "package"):
        if (root / "collections.json").is_file():
            infos = _read_json(root / "collections.json")
            files = {prefix: root / "json" / f"{prefix}.json" for prefix in infos}
            sets = [
                _check_set(prefix, file, infos[prefix])
                for prefix, file in files.items()
                if file.is_file()
            ]
            if not sets:
                raise ValueError(f"{str(root)!r} has no icon sets. Unpack the package again.")
            return "@iconify/json", sets
        if (root / "icons.json").is_file() and (root / "info.json").is_file():
            info = _read_json(root / "info.json")
            prefix = info.get("prefix")
            return f"@iconify-json/{prefix}", [_check_set(prefix, root / "icons.json", info)]
    raise FileNotFoundError(
        f"{str(folder)!r} has neither 'collections.json' nor 'icons.json' and 'info.json'. Pass "
        f"{expected}."
    )


def _check_set(prefix: Any, file: Path, info: Any) -> IconSet:
    if not isinstance(prefix, str) or not _NAME.fullmatch(prefix):
        raise ValueError(
            f"{str(file)!r} has the prefix {prefix!r}. A prefix consists of lower-case letters, "
            "digits and hyphens. Unpack the package again."
        )
    license_ = info.get("license") if isinstance(info, dict) else None
    if not isinstance(license_, dict) or not isinstance(license_.get("spdx"), str):
        raise ValueError(
            f"Set {prefix!r} has no SPDX identifier of its licence in the package. Unpack the "
            "package again, or a later version."
        )
    return IconSet(prefix, file, info)


def _select_sets(
    found: Sequence[IconSet],
    sets: Iterable[str] | None,
    categories: Iterable[str] | str | None,
    licenses: Iterable[str] | str | None,
    palette: bool | None,
) -> list[IconSet]:
    """Return the sets that the parameters of `load_iconify` select."""
    if palette is not None and not isinstance(palette, bool):
        raise ValueError(f"palette must be True, False or None, not {palette!r}.")
    prefixes = (
        _check_choices(sets, "sets", {s.prefix for s in found}) if sets is not None else None
    )
    if categories is None:
        excluded = _BRAND_CATEGORIES if prefixes is None else frozenset()
        chosen_categories = {s.category for s in found} - excluded
    else:
        chosen_categories = _check_choices(categories, "categories", {s.category for s in found})
    if licenses is None:
        chosen_licenses = set(OPEN_LICENSES)
    else:
        chosen_licenses = _check_choices(licenses, "licenses", {s.license for s in found})
    selected = [
        icon_set
        for icon_set in found
        if (prefixes is None or icon_set.prefix in prefixes)
        and icon_set.category in chosen_categories
        and icon_set.license in chosen_licenses
        and palette in (None, bool(icon_set.info.get("palette")))
    ]
    if not selected:
        available = Counter(f"{s.category}, {s.license}" for s in found)
        raise ValueError(
            "No set has the given sets, categories, licenses and palette. The package has sets of "
            f"{list_first(available, 10)}."
        )
    return selected


def _check_choices(values: Iterable[str] | str, name: str, available: set[str]) -> set[str]:
    if isinstance(values, str):
        if values == "all" and name != "sets":
            return available
        raise ValueError(f"{name} is the str {values!r}. Pass a list, {name}=[{values!r}].")
    chosen = set(values)
    unknown = sorted(chosen - available)
    if unknown:
        raise ValueError(
            f"{name} contains {list_first(unknown)}, which the package does not have. It has "
            f"{list_first(sorted(available), 20)}."
        )
    return chosen


def _list_icons(sets: Sequence[IconSet], variants: bool) -> list[Icon]:
    """Return the icons to load, each drawing once."""
    drawings: dict[str, Icon] = {}
    for icon_set in sets:
        icons = _read_icons(icon_set)
        for icon in icons if variants else _drop_variants(icons):
            drawings.setdefault(icon.digest, icon)
    return list(drawings.values())


def _drop_variants(icons: Iterable[Icon]) -> Iterable[Icon]:
    """Return one icon for each caption: the one with the shortest name, which is the plain one."""
    chosen: dict[str, Icon] = {}
    for icon in icons:
        plainest = chosen.setdefault(icon.caption, icon)
        if len(icon.name) < len(plainest.name):
            chosen[icon.caption] = icon
    return chosen.values()


def _read_icons(icon_set: IconSet) -> list[Icon]:
    """Return the icons of a set, in the order of the file."""
    drawings = _read_drawings(icon_set)
    first, last = _find_style_words(drawings)
    return [
        Icon(icon_set, name, _clean_name(name, first, last), _digest(svg))
        for name, svg in drawings.items()
    ]


def _read_drawings(icon_set: IconSet) -> dict[str, str]:
    """Return the SVG text of every icon of a set by its name."""
    content = _read_json(icon_set.file)
    icons = content.get("icons")
    if not isinstance(icons, dict):
        raise ValueError(f"{str(icon_set.file)!r} has no 'icons'. Unpack the package again.")
    drawings = {}
    for name, icon in icons.items():
        if not (isinstance(icon, dict) and icon.get("hidden")):
            drawings[name] = _make_svg(f"{icon_set.prefix}:{name}", icon, content)
    return drawings


def _make_svg(label: str, icon: Any, defaults: Mapping[str, Any]) -> str:
    """Return the SVG text of an icon, centered on a square."""
    if not _NAME.fullmatch(label.partition(":")[2]):
        raise ValueError(
            f"Icon {label!r} has an invalid name. A name consists of lower-case letters, digits "
            "and hyphens."
        )
    body = icon.get("body") if isinstance(icon, dict) else None
    if not isinstance(body, str):
        raise ValueError(f"Icon {label!r} has no 'body'. Unpack the package again.")
    box = [
        icon.get(key, defaults.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    is_number = all(isinstance(n, int | float) and math.isfinite(n) for n in box)
    if not is_number or max(map(abs, box)) > _MAX_SIDE or min(box[2:]) < 0:
        raise ValueError(
            f"Icon {label!r} has left, top, width and height {box}. They must be numbers up to "
            f"{_MAX_SIDE}, and width and height at least 0."
        )
    if 0 in box[2:]:
        body, box = "", [0, 0, 1, 1]  # by the SVG standard, nothing is drawn
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 224 224"><svg x="12" y="12" width="200" height="200" '
        f'viewBox="{" ".join(map(str, box))}" color="#333">{body}</svg></svg>'
    )


def _check_safety(label: str, svg: str) -> None:
    if len(svg) > _MAX_LENGTH:
        raise ValueError(
            f"Icon {label!r} has {len(svg)} characters. At most {_MAX_LENGTH} are allowed."
        )
    unsafe = _UNSAFE.search(svg)
    if unsafe:
        raise ValueError(
            f"Icon {label!r} contains {unsafe.group().strip()!r}. Scripts and references to files "
            "are not allowed. Remove the icon from its file, or select other sets."
        )


def _find_style_words(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the words that name a style at the beginning and at the end of the names of a set."""
    words = [name.split("-") for name in names]
    styles = []
    for position in (0, -1):
        counts = Counter(parts[position] for parts in words if len(parts) > 1)
        least = max(_MIN_STYLE_COUNT, _MIN_STYLE_SHARE * len(words))
        frequent = {word for word, count in counts.items() if count >= least}
        styles.append(set(_STYLE_WORDS) | (_POSSIBLE_STYLE_WORDS & frequent))
    return styles[0], styles[1]


def _clean_name(name: str, first: set[str], last: set[str]) -> str:
    """Return the words of a name without style words and sizes at its ends.

    >>> _clean_name("account-circle-outline-24", set(), {"outline"})
    'account circle'
    """
    words = _SKIN_TONE.sub("", name).replace("two-tone", "twotone").split("-")
    while len(words) > 1 and (words[-1] in last or _SIZE.fullmatch(words[-1])):
        words.pop()
    while len(words) > 1 and words[0] in first:
        words.pop(0)
    return " ".join(words)


def _render_missing(
    icons: Sequence[Icon], folder: Path, size: int, n_jobs: int | None, verbose: int
) -> None:
    """Render the icons that have not been rendered yet."""
    images = _list_images(icons, folder, missing="")
    missing: dict[str, list[Icon]] = {}
    for icon, image in zip(icons, images, strict=True):
        if image == "":
            missing.setdefault(icon.icon_set.prefix, []).append(icon)
    if not missing:
        return
    import_optional("resvg_py", package="resvg-py", extra="starter", purpose="load_iconify")
    from tqdm import tqdm

    try:
        for prefix in missing:
            (folder / prefix).mkdir(parents=True, exist_ok=True)
        rendered = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
            delayed(_render_icon)(f"{prefix}:{icon.name}", svg, folder / icon.stem, size)
            for prefix, absent in missing.items()
            for icon, svg in _with_drawings(absent)
        )
        n_missing = sum(map(len, missing.values()))
        for _ in tqdm(
            rendered, total=n_missing, desc="Rendering icons", unit="icon", disable=not verbose
        ):
            pass
    except OSError as error:
        raise OSError(
            f"{str(folder)!r} cannot be written ({error}). Pass another data_home, or set the "
            "environment variable SKLEARN_APE_DATA."
        ) from error


def _with_drawings(icons: Sequence[Icon]) -> Iterator[tuple[Icon, str]]:
    """Return icons of one set with their drawings, read again because all need much memory."""
    drawings = _read_drawings(icons[0].icon_set)
    return ((icon, drawings[icon.name]) for icon in icons)


def _render_icon(label: str, svg: str, path: Path, size: int) -> None:
    """Write an icon to ``path.png``, or an empty file ``path.blank`` if nothing is visible."""
    import resvg_py

    # Only here, because the check takes longer than everything else that is done to list icons.
    _check_safety(label, svg)
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=size,
            height=size,
            background="#ffffff",
            skip_system_fonts=True,  # images must not depend on the installed fonts
        )
    except ValueError as error:
        raise ValueError(
            f"Icon {label!r} cannot be rendered: {error}. Unpack the package again, or remove the "
            "icon from its file."
        ) from error
    with Image.open(io.BytesIO(png)) as image:
        is_blank = image.convert("RGB").getcolors(maxcolors=1) is not None
    suffix = ".blank" if is_blank else ".png"
    write_atomically(path.with_name(path.name + suffix), b"" if is_blank else png)


def _list_images(
    icons: Sequence[Icon], folder: Path, missing: str | None = None
) -> list[str | None]:
    """Return the path of the image of every icon, None if it is blank, or `missing`."""
    prefixes = {icon.icon_set.prefix for icon in icons}
    existing = {
        f"{prefix}/{name}"
        for prefix in prefixes
        if (folder / prefix).is_dir()
        for name in os.listdir(folder / prefix)
    }
    return [
        str(folder / f"{icon.stem}.png")
        if f"{icon.stem}.png" in existing
        else None
        if f"{icon.stem}.blank" in existing
        else missing
        for icon in icons
    ]


def _digest(svg: str) -> str:
    return sha256(svg.encode()).hexdigest()[:16]


def _read_json(file: Path) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(file)!r} is not valid JSON: {error}. Unpack the package again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} contains no JSON object. Unpack the package again.")
    return content
