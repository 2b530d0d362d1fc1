"""Loader of a folder of images, with captions from text files, a table or names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import Bunch

from ..utils.files import IMAGE_SUFFIXES, describe_conversion, describe_similar_file
from ..utils.messages import warn
from ..utils.validation import check_sequence, format_list
from .base import (
    CAPTION_TABLES,
    MIN_SIDECAR_SHARE,
    SIDECARS,
    check_folder,
    find_sidecar,
    flatten_single_captions,
    holds_numbers,
    make_result,
    name_folder,
    read_sidecar,
    split_words,
)
from .table import check_utf8, get_column, get_text_column, parse_captions, read_table

_CAPTION_COLUMNS = ("caption", "text")

# Share of the images in the folder itself up to which subfolders are probably meant as labels.
_MAX_LOOSE_SHARE = 0.1

# Names of subfolders that are parts of a dataset, not classes.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}

# Folders that are not hidden and hold other versions of images: those of macOS in zip files, and
# thumbnails on disk stations of Synology.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}

# Number of text files that are read to find out whether they are captions.
_MAX_CHECKED = 20

_DESCR = """\
Folder of images
----------------
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
    """Load the images of a folder, with captions and labels if there are any.

    Parameters
    ----------
    path : path-like
        Folder with images.
    captions : {"auto", "sidecar", "table", "folder", "filename"} or None, default="auto"
        Source of the captions:

        - "sidecar": a text file next to each image, with the same stem and the extension
          ``.txt`` or ``.caption``, in lower or upper case, or else with this extension after
          the whole name, such as ``photo.jpg.txt``. Each line that is not blank is a caption.
        - "table": ``metadata.csv``, ``metadata.jsonl``, ``metadata.parquet`` or ``captions.csv``
          in the folder, with the columns ``file_name`` or ``image`` (relative to the folder) and
          ``caption`` or ``text`` [1]_. An image with several rows has several captions.
        - "folder": the name of the folder that contains the image, with spaces for underscores.
        - "filename": the words of the file name; "red_apple-01.jpg" gives "red apple".
        - None: no captions.
        - "auto": "sidecar" if at least a tenth of the images have such files, and these do not
          hold only numbers, or else "table" if there is one with captions, otherwise None.
    recursive : bool, default=True
        Whether to include images in subfolders.
    extensions : sequence of str, default=None
        Extensions of image files, in upper or lower case. None means all formats that encoders
        read, such as png, jpg, webp, gif, bmp, tif, tga, jp2 and avif.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list of str, length n_images
            Paths, sorted by name.
        captions : list of str, or list of list of str, or None
            One caption per image; lists if any image has several; None if there are none.
        labels : ndarray of str, shape (n_images,)
            Name of the subfolder of `path` that contains the image. The field exists only if
            all images are in subfolders, and these are not parts of a split, such as "train"
            and "test".
        other_files : dict of {str: int}
            Number of skipped files that are not images, by extension; most frequent first.
        DESCR : str
            Description of the source.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If the folder, or a file in the table, does not exist.
    ValueError
        If the folder has no images, or only some of the images have a caption.
    ImportError
        If the table is a parquet file and pandas or pyarrow is not installed.

    Warns
    -----
    UserWarning
        - If a subfolder cannot be read.
        - If subfolders are not labels, because they are parts of a split or a few images are in
          none.
        - If "auto" leaves out text files, because only a few images have one or because they hold
          only numbers.
        - If "auto" leaves out a table without a column of captions.

    See Also
    --------
    load_pairs : Load images and captions that are listed in a table.

    References
    ----------
    .. [1] https://huggingface.co/docs/datasets/image_dataset

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
    sources = ("auto", *_CAPTION_READERS, None)
    if captions not in sources:
        raise ValueError(f"captions must be one of {sources}, not {captions!r}.")
    folder = check_folder(path, "a folder with images")
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    if extensions is not None:
        check_sequence(extensions, "extensions", "text", "extensions")
        suffixes = tuple("." + extension.lower().lstrip("*.") for extension in extensions)
    names, other_suffixes = _find_images(folder, suffixes, recursive)
    if not names:
        counts = ", ".join(
            f"{count} {suffix!r}" for suffix, count in other_suffixes.most_common(5)
        )
        raise ValueError(
            f"{str(folder)!r} has no images ({counts or 'no files at all'}). Pass a folder of "
            f"files with the extensions {', '.join(suffixes)}"
            f"{'' if recursive else ', or recursive=True to include subfolders'}."
            f"{describe_conversion(other_suffixes)}"
        )
    if captions == "auto":
        captions = _detect_source(folder, names, other_suffixes)
    texts = None if captions is None else _CAPTION_READERS[captions](folder, names)
    bunch = Bunch(
        images=[str(folder / name) for name in names],
        captions=texts,
        other_files=dict(other_suffixes.most_common()),
        DESCR=_DESCR.format(n=len(names), folder=folder, captions=captions),
    )
    labels = _find_labels(folder, names, has_captions=texts is not None)
    if labels is not None:
        bunch.labels = np.array(labels)
    return make_result(bunch, return_X_y)


def _find_labels(folder: Path, names: list[Path], has_captions: bool) -> list[str] | None:
    """Return the subfolders of the images if they are labels, or None, with a possible warning."""
    loose = [name.as_posix() for name in names if len(name.parts) == 1]
    if loose:
        if not has_captions and len(loose) <= _MAX_LOOSE_SHARE * len(names):
            warn(
                f"There are no labels, because {len(loose)} of {len(names)} images are not in a "
                f"subfolder of {str(folder)!r}: {format_list(loose)}. Move them if the names of "
                "the subfolders are labels."
            )
        return None
    subfolders = [name.parts[0] for name in names]
    if _SPLITS.issuperset(subfolders):
        splits = sorted(set(subfolders))
        warn(
            f"There are no labels, because the subfolders of {str(folder)!r} are the parts of a "
            f"split: {format_list(splits)}. Pass one of them, such as "
            f"{str(folder / splits[0])!r}."
        )
        return None
    return subfolders


def _iter_files(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield the files in ``folder`` that are not hidden, following links without cycles."""
    visited = set()
    starts = [os.fspath(folder)]
    # Links to folders are followed last, so that images and labels have the names of the folders
    # themselves, not of links to them.
    while starts:
        for top, folders, files in os.walk(starts.pop(0), onerror=_warn_unreadable):
            real = os.path.realpath(top)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            hidden = {f for f in folders if f.startswith(".") or f in _SYSTEM_FOLDERS}
            folders[:] = sorted(set(folders) - hidden) if recursive else []
            starts += filter(os.path.islink, (os.path.join(top, name) for name in folders))
            yield from (Path(top, file) for file in files if not file.startswith("."))


def _warn_unreadable(error: OSError) -> None:
    warn(
        f"Folder {error.filename!r} cannot be read ({error.strerror}) and is skipped. Check its "
        "permissions."
    )


def _find_images(
    folder: Path, suffixes: tuple[str, ...], recursive: bool
) -> tuple[list[Path], Counter[str]]:
    """Return sorted paths of images relative to ``folder``, and counts of other extensions."""
    names, other_suffixes = [], Counter[str]()
    for file in _iter_files(folder, recursive):
        if file.suffix.lower() in suffixes:
            names.append(file.relative_to(folder))
        else:
            other_suffixes[file.suffix.lower()] += 1
    return sorted(names), other_suffixes


def _find_tables(folder: Path) -> list[Path]:
    return [folder / name for name in CAPTION_TABLES if (folder / name).is_file()]


def _detect_source(folder: Path, names: list[Path], other_suffixes: Counter[str]) -> CaptionSource:
    # Checking every image for a text file is slow, so it is skipped if there are no text files.
    if any(other_suffixes[suffix] for suffix in SIDECARS):
        files = {name: file for name in names if (file := find_sidecar(folder / name))}
        if files and all(map(holds_numbers, list(files.values())[:_MAX_CHECKED])):
            warn(
                f"The text files in {str(folder)!r} hold only numbers, as annotations of boxes "
                "do, and are not used as captions. Pass captions='sidecar' to use them."
            )
        elif len(files) >= MIN_SIDECAR_SHARE * len(names):
            return "sidecar"
        elif files:
            warn(
                f"{len(files)} of {len(names)} images in {str(folder)!r} have a text file "
                f"({format_list(map(Path.as_posix, files))}), so that text files are not used as "
                "captions. Write the missing ones, and pass captions='sidecar', to use them."
            )
    tables = _find_tables(folder)
    if len(tables) == 1:
        columns = list(read_table(tables[0]))
        if not {"label", *_CAPTION_COLUMNS} & set(columns):
            reason = f"its columns are {format_list(columns)}" if columns else "it is empty"
            warn(
                f"{str(tables[0])!r} has no captions and is not used, as {reason}. Name its "
                "columns 'file_name' and 'caption' to use it."
            )
            return None
    return "table" if tables else None


def _read_sidecars(folder: Path, names: list[Path]) -> list[str] | list[list[str]]:
    files = {name: find_sidecar(folder / name) for name in names}
    missing = [name.as_posix() for name, file in files.items() if file is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images in {str(folder)!r} have no text file "
            f"({' or '.join(SIDECARS)}): {format_list(missing)}. Write the missing files, remove "
            "these images, or pass captions='folder', captions='filename' or captions=None."
        )
    captions = []
    for file in filter(None, files.values()):
        captions.append(read_sidecar(file))
        if not captions[-1]:
            raise ValueError(f"{str(file)!r} is empty. Write the caption of the image into it.")
    return flatten_single_captions(captions)


def _read_table(folder: Path, names: list[Path]) -> list[str] | list[list[str]]:
    file = _find_table(folder)
    table, where = read_table(file), repr(str(file))
    column = "image" if "file_name" not in table and "image" in table else "file_name"
    if "label" in table and not set(_CAPTION_COLUMNS) & set(table):
        raise ValueError(
            f"{where} has labels and no captions. Read it with load_pairs({where}, "
            f"image={column!r}, label='label', caption=None). On the command line, pass the table "
            f"in place of the folder, with --image {column} --label label."
        )
    files = get_column(table, column, where)
    texts = parse_captions(get_text_column(table, _CAPTION_COLUMNS, where), where)
    captions: dict[Path, list[str]] = {name: [] for name in names}
    unknown = []
    for name, row_captions in zip(map(str, files), texts, strict=True):
        path = os.path.relpath(name, folder) if os.path.isabs(name) else os.path.normpath(name)
        image_captions = captions.get(Path(path))
        if image_captions is None:
            unknown.append(name)
        else:
            image_captions.extend(row_captions)
    if unknown:
        check_utf8(unknown, f"the column {column!r}", where)
        advice = describe_similar_file(os.path.join(folder, unknown[0])) or (
            f"Write names that are relative to this folder in the column {column!r}, or pass "
            "extensions=... if the images have unusual extensions."
        )
        raise FileNotFoundError(
            f"{where} lists {len(unknown)} files that are not among the images in "
            f"{str(folder)!r}: {format_list(unknown)}. {advice}"
        )
    missing = [name.as_posix() for name, texts in captions.items() if not texts]
    if missing:
        raise ValueError(
            f"{where} has no row for {len(missing)} of {len(names)} images: "
            f"{format_list(missing)}. Add rows, or read only the table with load_pairs."
        )
    return flatten_single_captions(list(captions.values()))


def _find_table(folder: Path) -> Path:
    tables = _find_tables(folder)
    if not tables:
        raise FileNotFoundError(
            f"{str(folder)!r} has no table of captions. Add a file {' or '.join(CAPTION_TABLES)}."
        )
    if len(tables) > 1:
        raise ValueError(
            f"{str(folder)!r} has several tables of captions: "
            f"{format_list(table.name for table in tables)}. Keep one of them, or read one with "
            "load_pairs."
        )
    return tables[0]


def _name_by_folder(folder: Path, names: list[Path]) -> list[str]:
    loose = [name.as_posix() for name in names if len(name.parts) == 1]
    if loose:
        raise ValueError(
            f'captions="folder" requires that all images are in subfolders of {str(folder)!r}, '
            f"but {len(loose)} are not: {format_list(loose)}. Move them, or pass another source "
            "of captions."
        )
    return [name_folder(name.parent.name) for name in names]


def _remove_suffixes(file: Path) -> str:
    """Return a file name without its suffix, and without others as in photo.png.jpg."""
    file = file.with_suffix("")
    while file.suffix.lower() in IMAGE_SUFFIXES:
        file = file.with_suffix("")
    return file.name


def _name_by_file(_: Path, names: list[Path]) -> list[str]:
    captions = [split_words(_remove_suffixes(name)) for name in names]
    empty = [name.as_posix() for name, text in zip(names, captions, strict=True) if not text]
    if empty:
        raise ValueError(
            f'captions="filename" requires names with words, but {len(empty)} of {len(names)} '
            f"have none: {format_list(empty)}. Rename these, or pass another source of captions."
        )
    return captions


_CAPTION_READERS: dict[str, Callable[[Path, list[Path]], list[str] | list[list[str]]]] = {
    "sidecar": _read_sidecars,
    "table": _read_table,
    "folder": _name_by_folder,
    "filename": _name_by_file,
}
