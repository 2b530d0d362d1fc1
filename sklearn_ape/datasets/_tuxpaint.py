"""Loader of Tux Paint stamps: photographs and drawings with captions in many languages."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .base import find_packaged_folder, make_result, read_text

_FOLDER = "/usr/share/tuxpaint/stamps"

_DESCR = """\
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
            Description of the source, with licence and attribution.

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
    folder = find_packaged_folder(
        path,
        default=_FOLDER,
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
        DESCR=_DESCR.format(n=len(images), language=language, folder=folder),
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
