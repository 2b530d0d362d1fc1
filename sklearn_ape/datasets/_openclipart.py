"""Loader of Open Clip Art: public-domain drawings with titles and keywords."""

import html
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError, iterparse

import numpy as np
from sklearn.utils import Bunch

from .base import find_packaged_folder, make_result, split_words

_FOLDER = "/usr/share/openclipart"
_LAYOUT = "a folder with the folders png and svg, as in the packages of Open Clip Art"
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_MAX_KEYWORDS = 6
# A title that at least this many distinct drawings share is the title of a collection.
_MIN_COLLECTION = 10
# Keywords that do not describe the image: defects of the upload form, and a folder's name.
_MEANINGLESS = re.compile(r"hash|0x[0-9a-f]+|unsorted")
_PILLOW_LIMIT = 89_478_485  # above this number of pixels, Pillow warns of a decompression bomb

_DESCR = """\
Open Clip Art
-------------
{n} drawings with titles, keywords and descriptions by their authors.

:Source: Open Clip Art Library 0.18, http://www.openclipart.org, as packaged by Debian in
    `openclipart-png` and `openclipart-svg`; read from {folder}
:Authors: see `authors`.
:Licence: public domain dedication, with a few exceptions listed in `licenses`.
:Captions: cleaned title, followed by up to {max_keywords} keywords. The words of the file name
    replace a title that is missing or shared by a collection. The captions are noisy, some are
    not in English, and there are many near-duplicates: curate them before use.
:groups: number of each distinct file. Drawings in several folders have the same number; pass it
    to `GroupKFold` to keep them in the same part.
"""


class _Record(NamedTuple):
    title: str = ""
    keywords: tuple[str, ...] = ()
    description: str = ""
    author: str = ""
    license: str = ""


def load_openclipart(
    *,
    path: str | os.PathLike[str] | None = None,
    replace_collection_titles: bool = True,
    max_pixels: int | None = _PILLOW_LIMIT,
    return_X_y: bool = False,
) -> Any:
    """Load the Open Clip Art drawings with their titles and keywords.

    Parameters
    ----------
    path : path-like, default=None
        Folder that contains the folders ``png`` and ``svg`` with the same structure. Metadata
        are read from the SVG files. None means the folder where Debian installs them.
    replace_collection_titles : bool, default=True
        Whether the words of the file name replace a title that ten or more distinct drawings
        share, such as "Various Cliparts", because it does not describe the image.
    max_pixels : int or None, default=89478485
        Maximum number of pixels of an image; larger images are skipped. The default skips the
        images that Pillow regards as decompression bombs. None includes all images.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list of str, length n_images
            Paths of PNG files, sorted.
        captions : list of str, length n_images
            Cleaned title, or else the words of the file name, and up to six keywords.
        titles, descriptions, authors, licenses : lists of str, length n_images
            Metadata of the SVG files, or "" if they have none.
        keywords : list of list of str, length n_images
            All keywords.
        categories : ndarray of str, shape (n_images,)
            First folder of the path, such as "animals".
        groups : ndarray of int, shape (n_images,)
            Number of the distinct file, which is the same for a drawing in two folders.
        DESCR : str
            Description of the source, with licence and attribution.

    Raises
    ------
    ImportError
        If `path` is None and the Debian packages are not installed.
    FileNotFoundError, NotADirectoryError, ValueError
        If `path` does not have this layout, or has no images.

    See Also
    --------
    load_tuxpaint_stamps : Load fewer images with better captions.

    References
    ----------
    .. [1] https://openclipart.org

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn_ape.datasets import load_openclipart
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for kind in ("png", "svg"):
    ...         Path(folder, kind, "food").mkdir(parents=True)
    ...     _ = Path(folder, "png", "food", "red_apple_01.png").write_bytes(b"")
    ...     data = load_openclipart(path=folder)
    >>> data.captions, data.categories.tolist()
    (['red apple'], ['food'])
    """
    folder = find_packaged_folder(
        path,
        default=_FOLDER,
        apt="openclipart-png openclipart-svg",
        name="Open Clip Art",
        expected=_LAYOUT,
    )
    png_folder, svg_folder = folder / "png", folder / "svg"
    for subfolder in (png_folder, svg_folder):
        if not subfolder.is_dir():
            if path is None:
                raise ImportError(
                    f"Folder {str(subfolder)!r} of Open Clip Art does not exist. Install it with: "
                    f"apt install openclipart-{subfolder.name}"
                )
            raise FileNotFoundError(
                f"{str(folder)!r} has no folder {subfolder.name!r}. Pass {_LAYOUT}."
            )
    files, limit = sorted(png_folder.rglob("*.png")), ""
    if max_pixels is not None:
        files = [file for file in files if _count_pixels(file) <= max_pixels]
        limit = f" of at most {max_pixels} pixels"
    if not files:
        raise ValueError(f"{str(png_folder)!r} has no PNG files{limit}. Pass {_LAYOUT}.")
    names = [file.relative_to(png_folder) for file in files]
    records = [_read_record((svg_folder / name).with_suffix(".svg")) for name in names]
    _, groups = np.unique([os.path.realpath(file) for file in files], return_inverse=True)
    collection_titles = (
        _find_shared_titles(records, groups) if replace_collection_titles else frozenset()
    )
    bunch = Bunch(
        images=[str(file) for file in files],
        captions=[
            _make_caption(record, name.stem, collection_titles)
            for record, name in zip(records, names, strict=True)
        ],
        titles=[record.title for record in records],
        keywords=[list(record.keywords) for record in records],
        descriptions=[record.description for record in records],
        authors=[record.author for record in records],
        licenses=[record.license for record in records],
        categories=np.array([name.parts[0] if len(name.parts) > 1 else "" for name in names]),
        groups=groups,
        DESCR=_DESCR.format(n=len(files), folder=folder, max_keywords=_MAX_KEYWORDS),
    )
    return make_result(bunch, return_X_y)


def _count_pixels(file: Path) -> int:
    """Return the number of pixels in a PNG header, or 0 if there is none."""
    with file.open("rb") as stream:
        header = stream.read(24)
    if len(header) < 24:
        return 0
    width, height = struct.unpack(">II", header[16:])
    return width * height


def _read_record(file: Path) -> _Record:
    """Return the metadata of a drawing, which are empty if they cannot be read."""
    work = _find_work(file) if file.is_file() else None
    if work is None:
        return _Record()
    license_element = work.find("{*}license")
    return _Record(
        title=_get_text(work.find(f"{_DC}title")),
        keywords=tuple(filter(None, map(_get_text, work.iterfind(f"{_DC}subject//{_RDF}li")))),
        description=_get_text(work.find(f"{_DC}description")),
        author=_get_text(work.find(f"{_DC}creator//{_DC}title")),
        license="" if license_element is None else license_element.get(f"{_RDF}resource", ""),
    )


def _get_text(element: Element | None) -> str:
    """Return the text of an element on one line, or ""; some texts are escaped twice."""
    if element is None or not element.text:
        return ""
    return " ".join(html.unescape(element.text).split())


def _find_work(file: Path) -> Element | None:
    """Return the element with the metadata, reading the file only up to its end."""
    try:
        with file.open("rb") as stream:
            for _, element in iterparse(stream):
                if element.tag.endswith("}Work"):
                    return element
    except (ParseError, OSError, ValueError):
        return None  # a malformed file; the caption is made from the file name
    return None


def _find_shared_titles(records: Sequence[_Record], groups: np.ndarray) -> frozenset[str]:
    """Return titles of collections; a drawing in two folders counts once."""
    pairs = {(record.title, group) for record, group in zip(records, groups, strict=True)}
    counts = Counter(title for title, _ in pairs)
    return frozenset(title for title, count in counts.items() if count >= _MIN_COLLECTION)


def _make_caption(record: _Record, stem: str, collection_titles: frozenset[str]) -> str:
    """Join the cleaned title, or else the words of the file name, and the first keywords."""
    title = "" if record.title in collection_titles else _clean_title(record.title)
    title = title or _split_name(stem, record.author)
    words = {title.casefold(): title}
    for keyword in record.keywords:
        word = keyword.replace("_", " ")
        if not _MEANINGLESS.fullmatch(keyword):
            words.setdefault(word.casefold(), word)
    return ", ".join(list(words.values())[: 1 + _MAX_KEYWORDS])


def _split_name(stem: str, author: str) -> str:
    """Split a file name into words, and remove the possibly truncated author from its end.

    >>> _split_name("hairy_armadillo_architetto_fra_01", "Architetto Francesco Rollandin")
    'hairy armadillo'
    """
    words = split_words(stem) or stem
    for end in range(len(author), 3, -1):
        before = words.casefold().removesuffix(" " + author[:end].casefold().rstrip())
        if len(before) < len(words):
            return split_words(words[: len(before)]) or words
    return words


def _clean_title(title: str) -> str:
    """Remove parts of a title that do not describe the drawing.

    >>> _clean_title("Clipart by Nicu Buculei - jigsaw_red_10"), _clean_title("large_braces.svg")
    ('jigsaw red', 'large braces')
    """
    title = re.sub(r"^Clipart by .+? - |\(\w{3} \w{3} \d+ [\d:]+ \d{4}\)|\.svg$", "", title)
    return split_words(title.strip())
