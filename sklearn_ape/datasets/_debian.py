"""Loaders of image collections packaged by Debian: Tux Paint stamps and Open Clip Art."""

import html
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError, iterparse

import numpy as np
from sklearn.utils import Bunch

from .base import check_folder, make_result, read_text, split_words


def _find_packaged_folder(
    path: str | os.PathLike[str] | None, *, default: str, apt: str, name: str, expected: str
) -> Path:
    """Return ``path`` or, if it is None, the folder where Debian installs a collection."""
    if path is not None:
        return check_folder(path, expected)
    folder = Path(default)
    if not folder.is_dir():
        raise ImportError(
            f"{name} is not installed: folder {default!r} does not exist. On Debian and Ubuntu, "
            f"install it with: apt install {apt}. Elsewhere, pass path=..., {expected}."
        )
    return folder


_STAMPS_FOLDER = "/usr/share/tuxpaint/stamps"

_STAMPS_DESCR = """\
Tux Paint stamps
----------------
{n} images, many of them photographs, with captions in language {language!r}.

:Source: https://tuxpaint.org, as packaged by Debian in `tuxpaint-stamps-default`; read from
    {folder}
:Authors: Bill Kendrick and the contributors to Tux Paint, 2002-2022; the package's `copyright`
    file and the collection's own documentation name them.
:Licence: GPL-2.
:categories: first folder of the path; `subjects` are complete folders.
"""


def load_tuxpaint_stamps(
    *, path: str | os.PathLike[str] | None = None, language: str = "en", return_X_y: bool = False
) -> Any:
    r"""Load the Tux Paint stamps and their captions.

    Parameters
    ----------
    path : path-like, default=None
        Folder of stamps, which are PNG files with a text file of the same stem next to them. None
        means the folder where Debian installs them.
    language : str, default="en"
        Language code of the captions in Tux Paint, such as "de", "pt_BR" or "zh_CN". Images
        without a caption in this language are skipped.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list of str, length n_images
            Paths of PNG files, sorted. Mirrored stamps, which have no text file, are skipped.
        captions : list of str, length n_images
            Captions of one line. Several images may have the same caption ("A rocket.").
        categories, subjects : ndarray of str, shape (n_images,)
            First folder of the path, such as "animals", and complete folder ("animals/birds").
        DESCR : str
            Description of the source [1]_, with licence and attribution.

    Raises
    ------
    ImportError
        If `path` is None and the Debian package is not installed.
    FileNotFoundError, NotADirectoryError, ValueError
        If `path` does not have this layout, or no image has a caption in `language`.

    See Also
    --------
    load_openclipart : Load more drawings with noisier captions.

    References
    ----------
    .. [1] https://tuxpaint.org/stamps/

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn_ape.datasets import load_tuxpaint_stamps
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stamp = Path(folder, "animals", "birds", "owl.png")
    ...     stamp.parent.mkdir(parents=True)
    ...     _ = stamp.write_bytes(b"")
    ...     _ = stamp.with_suffix(".txt").write_text("An owl.\nde.utf8=Eine Eule.")
    ...     load_tuxpaint_stamps(path=folder, language="de").captions
    ['Eine Eule.']
    """
    folder = _find_packaged_folder(
        path,
        default=_STAMPS_FOLDER,
        apt="tuxpaint-stamps-default",
        name="The collection of Tux Paint stamps",
        expected="a folder with folders of PNG files and a .txt file next to each",
    )
    images, captions, subjects = [], [], []
    languages: set[str] = set()
    for image in sorted(folder.rglob("*.png")):
        text = image.with_suffix(".txt")
        if not text.is_file():
            continue
        translations = _read_translations(text)
        languages.update(translations)
        if language in translations:
            images.append(str(image))
            captions.append(translations[language])
            subjects.append(image.parent.relative_to(folder).as_posix())
    if not languages:
        raise ValueError(
            f"{str(folder)!r} has no PNG file with a caption in a .txt file of the same stem. "
            "Pass a folder with the layout of the Tux Paint stamps: animals/birds/owl.png and "
            "animals/birds/owl.txt."
        )
    if not images:
        raise ValueError(
            f"language={language!r} is not a language of any caption. Pass one of "
            f"{', '.join(sorted(languages))}."
        )
    bunch = Bunch(
        images=images,
        captions=captions,
        categories=np.array([subject.split("/")[0] for subject in subjects]),
        subjects=np.array(subjects),
        DESCR=_STAMPS_DESCR.format(n=len(images), language=language, folder=folder),
    )
    return make_result(bunch, return_X_y)


def _read_translations(file: Path) -> dict[str, str]:
    """Return captions by language: the first line is English, and later lines ``de.utf8=...``."""
    lines = read_text(file).split("\n")
    captions = {"en": lines[0]}
    for line in lines[1:]:
        key, _, caption = line.partition("=")
        if key.endswith(".utf8"):
            captions[key.removesuffix(".utf8").strip()] = caption
    return {key: " ".join(text.split()) for key, text in captions.items() if text.strip()}


_CLIP_ART_FOLDER = "/usr/share/openclipart"
_CLIP_ART_LAYOUT = (
    "a folder with the folders png and svg, as in the packages openclipart-png and openclipart-svg"
)
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_MAX_KEYWORDS = 6
# A title that at least this many distinct drawings share is the title of a collection.
_MIN_COLLECTION = 10
# Keywords that do not describe the image: defects of the upload form, and a folder's name.
_MEANINGLESS = re.compile(r"hash|0x[0-9a-f]+|unsorted")
_PILLOW_LIMIT = 89_478_485  # above this number of pixels, Pillow warns of a decompression bomb

_CLIP_ART_DESCR = """\
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
            Description of the source [1]_, with licence and attribution.

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
    folder = _find_packaged_folder(
        path,
        default=_CLIP_ART_FOLDER,
        apt="openclipart-png openclipart-svg",
        name="Open Clip Art",
        expected=_CLIP_ART_LAYOUT,
    )
    png_folder, svg_folder = folder / "png", folder / "svg"
    for subfolder in (png_folder, svg_folder):
        if not subfolder.is_dir():
            raise FileNotFoundError(
                f"{str(folder)!r} has no folder {subfolder.name!r}. Pass {_CLIP_ART_LAYOUT}."
            )
    files, limit = sorted(png_folder.rglob("*.png")), ""
    if max_pixels is not None:
        files = [file for file in files if _count_pixels(file) <= max_pixels]
        limit = f" of at most {max_pixels} pixels"
    if not files:
        raise ValueError(f"{str(png_folder)!r} has no PNG files{limit}. Pass {_CLIP_ART_LAYOUT}.")
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
        DESCR=_CLIP_ART_DESCR.format(n=len(files), folder=folder, max_keywords=_MAX_KEYWORDS),
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
    work = _find_work(file)
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
    # Without a readable file, the caption is made from the file name.
    with suppress(ParseError, OSError, ValueError), file.open("rb") as stream:
        for _, element in iterparse(stream):
            if element.tag.endswith("}Work"):
                return element
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
