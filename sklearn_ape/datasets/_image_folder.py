"""Images in a folder, with captions from text files, a table, or names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import Bunch

from ..utils.files import IMAGE_SUFFIXES
from ..utils.validation import check_sequence
from ..utils.warnings import warn
from .base import deliver, existing_folder, listed, one_or_ragged, words_of
from .table import captions_by_row, column, read_table, refuse_bytes, text_column

_SIDECARS = (".txt", ".caption")


_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "captions.csv")


_CAPTION_COLUMNS = ("caption", "text")


_DESCR = """\
Folder of images
------------------
{n} images in {folder}, captions: {captions}.
"""


CaptionSource = Literal["auto", "sidecar", "table", "folder", "filename"] | None


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    captions: CaptionSource = "auto",
    recursive: bool = True,
    extensions: Sequence[str] | None = None,
    return_X_y: bool = False,
) -> Any:
    """Load the images of a folder, with captions and labels where it has them.

    Images are listed, not opened.

    Parameters
    ----------
    path : path-like
        The folder.
    captions : {"auto", "sidecar", "table", "folder", "filename"} or None, default="auto"
        Where captions come from:

        - "sidecar": a text file beside each image with the same stem and the extension
          ``.txt``, or else ``.caption``. Each line that is not blank is a caption.
        - "table": ``metadata.csv``, ``metadata.jsonl``, ``metadata.parquet`` or ``captions.csv``
          in the folder, with the columns ``file_name`` (relative to the folder) and ``caption``
          or ``text``. Several rows of one image are several captions.
        - "folder": the name of the folder that the image lies in, with spaces for underscores.
        - "filename": the words of the file name: "red_apple-01.jpg" is "red apple".
        - None: no captions.
        - "auto": the first of "sidecar" and "table" that is there, else none.
    recursive : bool, default=True
        Whether to look into sub-folders.
    extensions : sequence of str, default=None
        Extensions of files that are images, in any case. None takes those of the formats that
        encoders read: png, jpg, webp, gif, bmp, tif, tga, jp2, avif and the like.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the fields

        images : list of str, length n_images
            Paths, in the order of their names.
        captions : list of str, or list of list of str, or None
            One caption per image; lists if any image has several; None if there are none.
        labels : ndarray of str, shape (n_images,)
            Name of the sub-folder of `path` that holds the image. Only there if all images
            lie in sub-folders.
        other_files : dict of {str: int}
            How many files that are no images were passed over, by extension; the most first.
        DESCR : str
            Where it was read from.

    (images, captions) : tuple of lists
        If `return_X_y` is True.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder, or a file that a table names is not there.
    ValueError
        If there are no images in it, or some have a caption and others have none.
    ImportError
        If the table is a parquet file, and pandas or pyarrow is not installed.

    Warns
    -----
    UserWarning
        If a sub-folder cannot be read.

    See Also
    --------
    load_pairs : Images and captions listed in a table anywhere.

    References
    ----------
    .. [1] The table is that of ImageFolder,
       https://huggingface.co/docs/datasets/image_dataset

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn_ape.datasets import load_image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cats/black_cat-01.jpg", "dogs/old_dog.jpg"):
    ...         Path(folder, name).parent.mkdir()
    ...         _ = Path(folder, name).write_bytes(b"")
    ...     data = load_image_folder(folder, captions="filename")
    >>> data.captions, data.labels.tolist()
    (['black cat', 'old dog'], ['cats', 'dogs'])
    """
    sources = ("auto", "sidecar", "table", "folder", "filename", None)
    if captions not in sources:
        raise ValueError(f"captions must be one of {sources}, got {captions!r}.")
    folder = existing_folder(path, "a folder with images")
    wanted = _as_suffixes(extensions)
    names, others = _find(folder, wanted, recursive)
    if not names:
        found = ", ".join(f"{count} {suffix!r}" for suffix, count in others.most_common(5))
        raise ValueError(
            f"There are no images in {str(folder)!r}: looked for {', '.join(wanted)}"
            f"{'' if recursive else ' (not in sub-folders: recursive=False)'}; "
            f"found {'files with ' + found if found else 'no files at all'}."
        )
    if captions == "auto":
        captions = _detect(folder, names, others)
    texts: list[str] | list[list[str]] | None = None
    if captions == "sidecar":
        texts = one_or_ragged(_from_sidecars(folder, names))
    elif captions == "table":
        texts = one_or_ragged(_from_table(folder, names))
    elif captions == "folder":
        texts = _from_folders(folder, names)
    elif captions == "filename":
        texts = _from_file_names(names)
    bunch = Bunch(
        images=[str(folder / name) for name in names],
        captions=texts,
        other_files=dict(others.most_common()),
        DESCR=_DESCR.format(n=len(names), folder=folder, captions=captions),
    )
    if all(len(name.parts) > 1 for name in names):
        bunch.labels = np.array([name.parts[0] for name in names])
    return deliver(bunch, return_X_y)


def _as_suffixes(extensions: Sequence[str] | None) -> tuple[str, ...]:
    if extensions is None:
        return IMAGE_SUFFIXES
    check_sequence(extensions, "extensions", "text", "extensions")
    return tuple("." + extension.lower().lstrip("*.") for extension in extensions)


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files below ``folder`` but for hidden ones; links are followed, never in a circle."""
    seen = set()
    for top, folders, files in os.walk(folder, followlinks=True, onerror=_passed_over):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        yield from (Path(top, file) for file in files if not file.startswith("."))


def _passed_over(error: OSError) -> None:
    warn(
        f"The folder {error.filename!r} cannot be read ({error.strerror}) and is passed over.",
    )


def _find(
    folder: Path, wanted: tuple[str, ...], recursive: bool
) -> tuple[list[Path], Counter[str]]:
    """Images relative to ``folder`` in order, and how often each other extension is there."""
    names, others = [], Counter[str]()
    for file in _files(folder, recursive):
        if file.suffix.lower() in wanted:
            names.append(file.relative_to(folder))
        else:
            others[file.suffix.lower()] += 1
    return sorted(names), others


def _sidecar(image: Path) -> Path | None:
    files = (image.with_suffix(suffix) for suffix in _SIDECARS)
    return next((file for file in files if file.is_file()), None)


def _tables(folder: Path) -> list[Path]:
    return [folder / name for name in _TABLES if (folder / name).is_file()]


def _detect(folder: Path, names: list[Path], others: Counter[str]) -> CaptionSource:
    texts = any(others[suffix] for suffix in _SIDECARS)  # spares a million look-ups
    if texts and any(_sidecar(folder / name) for name in names):
        return "sidecar"
    return "table" if _tables(folder) else None


def _from_sidecars(folder: Path, names: list[Path]) -> list[list[str]]:
    files = {name: _sidecar(folder / name) for name in names}
    without = [name.as_posix() for name, file in files.items() if file is None]
    if without:
        raise ValueError(
            f"{len(without)} of {len(names)} images in {str(folder)!r} have no text file "
            f"({' or '.join(_SIDECARS)}) beside them: {listed(without)}. Write the missing "
            "files, move these images away, or choose another source of captions."
        )
    captions = []
    for file in filter(None, files.values()):
        try:
            # At line ends alone: str.splitlines also splits at form feeds and U+2028.
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(file)!r} is not UTF-8 text: {error}.") from error
        captions.append([" ".join(line.split()) for line in lines if line.strip()])
        if not captions[-1]:
            raise ValueError(f"{str(file)!r} is empty. Write the image's caption into it.")
    return captions


def _from_table(folder: Path, names: list[Path]) -> list[list[str]]:
    tables = _tables(folder)
    if not tables:
        raise FileNotFoundError(
            f"There is no table of captions in {str(folder)!r}: looked for {', '.join(_TABLES)}."
        )
    if len(tables) > 1:
        raise ValueError(
            f"There are several tables of captions in {str(folder)!r}: "
            f"{listed(t.name for t in tables)}. Keep one, or read one with load_pairs."
        )
    table = read_table(tables[0])
    where = repr(str(tables[0]))
    files = column(table, "file_name", where)
    texts = captions_by_row(text_column(table, _CAPTION_COLUMNS, where), where)
    captions: dict[Path, list[str]] = {name: [] for name in names}
    unknown = []
    for file, of_row in zip(files, texts, strict=True):
        found = captions.get(Path(os.path.normpath(str(file))))
        if found is None:
            unknown.append(str(file))
        else:
            found.extend(of_row)
    if unknown:
        refuse_bytes(unknown, "the column 'file_name'", where)
        raise FileNotFoundError(
            f"{where} names {len(unknown)} files that are not among the images found in "
            f"{str(folder)!r}: {listed(unknown)}. Check the column 'file_name', and pass "
            "extensions=... if these are images of an unusual kind."
        )
    without = [name.as_posix() for name, found in captions.items() if not found]
    if without:
        raise ValueError(
            f"{where} has no row for {len(without)} of {len(names)} images: "
            f"{listed(without)}. Add them, or read the table alone with load_pairs."
        )
    return list(captions.values())


def _from_folders(folder: Path, names: list[Path]) -> list[str]:
    loose = [name.as_posix() for name in names if len(name.parts) == 1]
    if loose:
        raise ValueError(
            f'captions="folder" needs every image in a sub-folder of {str(folder)!r}, but '
            f"{len(loose)} lie outside: {listed(loose)}."
        )
    return [name.parent.name.replace("_", " ").strip() for name in names]


def _from_file_names(names: list[Path]) -> list[str]:
    captions = [words_of(name.stem) for name in names]
    empty = [name.as_posix() for name, text in zip(names, captions, strict=True) if not text]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(names)} file names have no words: {listed(empty)}. "
            "Choose another source of captions."
        )
    return captions
