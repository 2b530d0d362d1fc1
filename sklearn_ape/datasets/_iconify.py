"""Loader of Iconify: hundreds of open icon sets, captioned with the names of the icons."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import delayed
from PIL import Image
from sklearn.utils import Bunch

from ..utils.messages import warn
from ..utils.validation import check_integer, format_list
from ._icon_sets import Icon, IconSet, check_safety, find_sets, read_drawings, read_icons
from .base import (
    get_data_home,
    make_result,
    render_images,
    svg_to_png,
    write_bytes_atomically,
)

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
    verbose: int | None = None,
) -> Any:
    """Load icons and their names from the npm package ``@iconify/json`` or one of its sets.

    The package contains more than 200 icon sets with more than 300,000 icons, each with a name
    such as "shopping-cart". The first call renders the icons to PNG files in the data home
    (a few milliseconds per icon), and later calls only list them. Nothing is downloaded.

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
        Width and height of the images in pixels, at most 8192.
    data_home : path-like, default=None
        Folder in which rendered images are stored; see :func:`get_data_home`.
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
            Paths of PNG files, in the order of the sets in the package. Identical drawings occur
            once, and drawings without any visible part are left out.
        captions : list of str, length n_images
            Names without words for the style: "account" for "account-outline-24".
        sets : ndarray of str, shape (n_images,)
            Prefixes of the sets.
        categories : ndarray of str, shape (n_images,)
            Categories of the sets, such as "Emoji".
        licenses : ndarray of str, shape (n_images,)
            SPDX identifiers of the licences.
        names : ndarray of str, shape (n_images,)
            Names of the icons in the package.
        DESCR : str
            Description of the source [1]_, with author and licence of every set.

    Raises
    ------
    ImportError
        If a package of the ``starter`` extra is not installed.
    FileNotFoundError, NotADirectoryError
        If `path` is not the folder of a package.
    ValueError
        If a file is damaged, no set is selected, no icon has a visible part, or an icon contains
        a script or a reference to a file, is too large or cannot be rendered. The message names
        the file or the icon.

    Warns
    -----
    UserWarning
        If `licenses` is None, and some of `sets` have other licences.

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
    ['1st place medal', '2nd place medal']
    """
    check_integer(size, "size", 1)
    package, available = find_sets(path)
    selected = _select_sets(available, sets, categories, licenses, palette)
    folder = get_data_home(data_home) / f"iconify-{size}"
    icons = _list_icons(selected, variants)
    _render_missing(icons, folder, int(size), n_jobs, verbose)
    rendered = _list_files(icons, folder)
    shown = [icon for icon in icons if f"{icon.stem}.png" in rendered]  # the others are blank
    if not shown:
        raise ValueError(
            f"{os.fspath(path)!r} has no icon with a visible part in the selected sets. Select "
            "other sets, or unpack the package again."
        )
    used = {icon.icon_set.prefix: icon.icon_set for icon in shown}
    bunch = Bunch(
        images=[str(folder / f"{icon.stem}.png") for icon in shown],
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


def _select_sets(
    icon_sets: Sequence[IconSet],
    sets: Iterable[str] | None,
    categories: Iterable[str] | str | None,
    licenses: Iterable[str] | str | None,
    palette: bool | None,
) -> list[IconSet]:
    """Return the sets that the parameters of `load_iconify` select."""
    if palette is not None and not isinstance(palette, bool):
        raise ValueError(f"palette must be True, False or None, not {palette!r}.")
    all_categories = {s.category for s in icon_sets}
    default_categories = all_categories - _BRAND_CATEGORIES if sets is None else all_categories
    prefixes = _choose(sets, "sets", {s.prefix for s in icon_sets})
    chosen_categories = _choose(categories, "categories", all_categories, default_categories)
    chosen_licenses = _choose(
        licenses, "licenses", {s.license for s in icon_sets}, set(OPEN_LICENSES)
    )
    selected = [
        icon_set
        for icon_set in icon_sets
        if icon_set.prefix in prefixes
        and icon_set.category in chosen_categories
        and icon_set.license in chosen_licenses
        and palette in (None, bool(icon_set.info.get("palette")))
    ]
    if not selected:
        available = Counter(f"{s.category}, {s.license}" for s in icon_sets)
        raise ValueError(
            "No set has the given sets, categories, licenses and palette. The package has sets of "
            f"{format_list(available, limit=10)}. Change these parameters; licenses='all' selects "
            "sets with any licence."
        )
    if sets is not None and licenses is None:
        excluded = [s for s in icon_sets if s.prefix in prefixes and s not in selected]
        names = [f"{s.prefix} ({s.license})" for s in excluded if s.license not in OPEN_LICENSES]
        if names:
            warn(
                f"sets contains {format_list(names, str)}, which are not loaded because of their "
                "licences. Pass licenses='all' to load them."
            )
    return selected


def _choose(
    values: Iterable[str] | str | None,
    name: str,
    available: set[str],
    default: set[str] | None = None,
) -> set[str]:
    """Return the values of a parameter, or the default, which is all available values if None."""
    if values is None:
        return available if default is None else default
    if isinstance(values, str):
        if values == "all" and name != "sets":
            return available
        raise ValueError(f"{name} is the str {values!r}. Pass a list, {name}=[{values!r}].")
    chosen = set(values)
    unknown = sorted(chosen - available)
    if unknown:
        raise ValueError(
            f"{name} contains {format_list(unknown)}, which the package does not have. It has "
            f"{format_list(sorted(available), limit=20)}."
        )
    return chosen


def _list_icons(sets: Sequence[IconSet], variants: bool) -> list[Icon]:
    """Return the icons to load, each drawing once."""
    drawings: dict[str, Icon] = {}
    for icon_set in sets:
        icons = read_icons(icon_set)
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


def _render_missing(
    icons: Sequence[Icon], folder: Path, size: int, n_jobs: int | None, verbose: int | None
) -> None:
    """Render the icons that have not been rendered yet."""
    existing = _list_files(icons, folder)
    missing: dict[str, list[Icon]] = {}
    for icon in icons:
        if existing.isdisjoint((f"{icon.stem}.png", f"{icon.stem}.blank")):
            missing.setdefault(icon.icon_set.prefix, []).append(icon)
    if not missing:
        return
    tasks = (
        delayed(_render_icon)(icon, svg, folder, size)
        for absent in missing.values()
        for icon, svg in _iter_drawings(absent)
    )
    bar = {"total": sum(map(len, missing.values())), "verbose": verbose, "unit": "icon"}
    render_images(tasks, folder, n_jobs, "load_iconify", desc="Rendering icons", **bar)


def _iter_drawings(icons: Sequence[Icon]) -> Iterator[tuple[Icon, str]]:
    """Return icons of one set with their drawings, read again because all need much memory."""
    drawings = read_drawings(icons[0].icon_set)
    return ((icon, drawings[icon.name]) for icon in icons)


def _render_icon(icon: Icon, svg: str, folder: Path, size: int) -> None:
    """Write an icon to a .png file, or an empty .blank file if nothing is visible."""
    label = f"{icon.icon_set.prefix}:{icon.name}"
    # Only here, because the check takes longer than everything else that is done to list icons.
    check_safety(label, svg)
    remedy = "Unpack the package again, or remove the icon from its file."
    png = svg_to_png(size, f"Icon {label!r}", remedy, svg_string=svg)
    with Image.open(io.BytesIO(png)) as image:
        is_blank = image.convert("RGB").getcolors(maxcolors=1) is not None
    path = folder / f"{icon.stem}{'.blank' if is_blank else '.png'}"
    path.parent.mkdir(exist_ok=True)
    write_bytes_atomically(path, b"" if is_blank else png)


def _list_files(icons: Sequence[Icon], folder: Path) -> set[str]:
    """Return the paths of the files in the folders of the icons' sets, relative to `folder`."""
    return {
        f"{prefix}/{name}"
        for prefix in {icon.icon_set.prefix for icon in icons}
        if (folder / prefix).is_dir()
        for name in os.listdir(folder / prefix)
    }
