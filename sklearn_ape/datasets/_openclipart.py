"""Open Clip Art: thousands of public-domain drawings with titles and keywords."""

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

from .base import deliver, packaged_folder, words_of

_FOLDER = "/usr/share/openclipart"
_LAYOUT = "a folder with the folders png and svg, as the packages of Open Clip Art have it"
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_MAX_KEYWORDS = 6
_COLLECTION = 10  # distinct drawings that share a title from which on it is a collection's
_NO_SUBJECT = re.compile(r"hash|0x[0-9a-f]+|unsorted")  # faults of the upload form, a folder
_PILLOW_LIMIT = 89_478_485  # pixels above which Pillow warns of a decompression bomb

_DESCR = """\
Open Clip Art
-------------
{n} drawings with title, keywords and description as their authors gave them.

:Source: Open Clip Art Library 0.18, http://www.openclipart.org, as packaged by Debian in
    `openclipart-png` and `openclipart-svg`; read from {folder}
:Authors: see `authors`.
:Licence: public domain dedication, but for the few that `licenses` shows otherwise.
:Captions: cleaned title, or the words of the file name where the title is none or that of a whole
    collection; then up to {max_keywords} keywords. A noisy set with many near-duplicates, some in
    other languages than English: it is meant to be curated.
:groups: a number for each distinct file. Drawings filed in several folders share it: give it to
    `GroupKFold`, so that none is in both the training and the test part.
"""


class _Record(NamedTuple):
    """What one drawing says of itself."""

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
        A folder with ``png`` and ``svg``, folders of the same structure; the metadata are read
        from the SVG files. None takes the place where Debian installs them.
    replace_collection_titles : bool, default=True
        Whether a title that ten or more distinct drawings share, such as "Various Cliparts" or
        "Lemon SVG theme", gives way in the caption to the words of the file name. It says
        nothing of what is on the image.
    max_pixels : int or None, default=89478485
        Leave out images with more pixels than this. By default those are left out which
        Pillow takes for decompression bombs (16 of 8,121, of up to 620 million pixels). None
        leaves out none.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the fields

        images : list of str, length n_images
            Paths of PNG files, in the order of their paths.
        captions : list of str, length n_images
            Cleaned title and up to six keywords, with commas between. Where there is no title of
            its own, or no readable SVG file, the words of the file name take its place.
        titles, descriptions, authors, licenses : lists of str, length n_images
            As the SVG files have them, "" where they have none.
        keywords : list of list of str, length n_images
            All keywords.
        categories : ndarray of str, shape (n_images,)
            Top folder: "animals", "food", ...
        groups : ndarray of int, shape (n_images,)
            Number of the distinct file: a drawing filed in two folders is there twice.
        DESCR : str
            Source, licence and attribution.

    (images, captions) : tuple of lists
        If `return_X_y` is True.

    Raises
    ------
    ImportError
        If `path` is None and the Debian packages are not installed.
    FileNotFoundError, NotADirectoryError, ValueError
        If `path` is not such a folder, or has no images.

    See Also
    --------
    load_tuxpaint_stamps : Fewer images, with better captions.

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
    folder = packaged_folder(
        path,
        default=_FOLDER,
        apt="openclipart-png openclipart-svg",
        name="Open Clip Art",
        expected=_LAYOUT,
    )
    images, drawings = folder / "png", folder / "svg"
    for part in (images, drawings):
        if not part.is_dir():
            if path is None:
                raise ImportError(
                    f"Open Clip Art is installed in part: there is no folder {str(part)!r}. "
                    f"Install it with: apt install openclipart-{part.name}"
                )
            raise FileNotFoundError(
                f"{str(folder)!r} has no folder {part.name!r}; expected {_LAYOUT}."
            )
    files = [
        file
        for file in sorted(images.rglob("*.png"))
        if max_pixels is None or _pixels(file) <= max_pixels
    ]
    if not files:
        raise ValueError(
            f"There are no PNG files under {str(images)!r}"
            + (f" of at most {max_pixels} pixels." if max_pixels is not None else ".")
        )
    names = [file.relative_to(images) for file in files]
    records = [_read_record((drawings / name).with_suffix(".svg")) for name in names]
    _, groups = np.unique([os.path.realpath(file) for file in files], return_inverse=True)
    collections = _shared_titles(records, groups) if replace_collection_titles else frozenset()
    bunch = Bunch(
        images=[str(file) for file in files],
        captions=[
            _caption(record, name.stem, collections)
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
    return deliver(bunch, return_X_y)


def _pixels(file: Path) -> int:
    """Read the number of pixels from a PNG header; 0 if there is none, for others to judge."""
    with file.open("rb") as stream:
        header = stream.read(24)
    if len(header) < 24:
        return 0
    width, height = struct.unpack(">II", header[16:])
    return width * height


def _read_record(file: Path) -> _Record:
    """Metadata of a drawing; an empty record if there are none that can be read."""
    work = _find_work(file) if file.is_file() else None
    if work is None:
        return _Record()
    license_element = work.find("{*}license")
    return _Record(
        title=_text(work.find(f"{_DC}title")),
        keywords=tuple(filter(None, map(_text, work.iterfind(f"{_DC}subject//{_RDF}li")))),
        description=_text(work.find(f"{_DC}description")),
        author=_text(work.find(f"{_DC}creator//{_DC}title")),
        license="" if license_element is None else license_element.get(f"{_RDF}resource", ""),
    )


def _text(element: Element | None) -> str:
    """Text of an element on one line, "" if there is none; some are escaped twice."""
    if element is None or not element.text:
        return ""
    return " ".join(html.unescape(element.text).split())


def _find_work(file: Path) -> Element | None:
    """Find the element that describes the drawing, reading no further than its end."""
    try:
        with file.open("rb") as stream:
            for _, element in iterparse(stream):
                if element.tag.endswith("}Work"):
                    return element
    except (ParseError, OSError, ValueError):
        return None  # malformed or cut off: the file name remains
    return None


def _shared_titles(records: Sequence[_Record], groups: np.ndarray) -> frozenset[str]:
    """Titles of whole collections; a drawing that is filed twice counts once."""
    pairs = {(record.title, group) for record, group in zip(records, groups, strict=True)}
    counts = Counter(title for title, _ in pairs)
    return frozenset(title for title, count in counts.items() if count >= _COLLECTION)


def _caption(record: _Record, stem: str, collections: frozenset[str]) -> str:
    """Join the cleaned title, or else the words of the file name, and the first keywords."""
    title = "" if record.title in collections else _clean_title(record.title)
    title = title or _name_words(stem, record.author)
    words = {title.casefold(): title}
    for keyword in record.keywords:
        word = keyword.replace("_", " ")
        if not _NO_SUBJECT.fullmatch(keyword):
            words.setdefault(word.casefold(), word)
    return ", ".join(list(words.values())[: 1 + _MAX_KEYWORDS])


def _name_words(stem: str, author: str) -> str:
    """Turn a file name into words, without the author's name, whole or cut off, at its end.

    >>> _name_words("hairy_armadillo_architetto_fra_01", "Architetto Francesco Rollandin")
    'hairy armadillo'
    """
    words = words_of(stem) or stem
    for end in range(len(author), 3, -1):
        before = words.casefold().removesuffix(" " + author[:end].casefold().rstrip())
        if len(before) < len(words):
            return words_of(words[: len(before)]) or words
    return words


def _clean_title(title: str) -> str:
    """Take the signs of a collection and of a file from a title.

    >>> _clean_title("Clipart by Nicu Buculei - jigsaw_red_10"), _clean_title("large_braces.svg")
    ('jigsaw red', 'large braces')
    """
    title = re.sub(r"^Clipart by .+? - |\(\w{3} \w{3} \d+ [\d:]+ \d{4}\)|\.svg$", "", title)
    return words_of(title.strip())
