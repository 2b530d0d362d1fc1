"""Pairs of images and captions from a table."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._image_suffixes import IMAGE_SUFFIXES
from ._base import deliver, listed, one_or_ragged
from ._table import (
    Delimited,
    captions_by_row,
    column,
    holds_bytes,
    is_missing,
    read_table,
    refuse_bytes,
    table_of_frame,
    text_column,
)

_DESCR = """\
Table of pairs
--------------
{n} pairs of image and caption from {source}.
"""


def load_pairs(
    source: Any,
    *,
    image: str = "image",
    caption: str = "caption",
    label: str | None = None,
    root: str | os.PathLike[str] | None = None,
    check_files: bool = True,
    return_X_y: bool = False,
) -> Any:
    r"""Load pairs of images and captions from a table.

    Images that are given by path are looked for, not opened.

    Parameters
    ----------
    source : path-like, pandas.DataFrame or polars.DataFrame
        A file ``.csv``, ``.tsv``, ``.jsonl`` (or ``.ndjson``) or ``.parquet``, or a data frame.
        A ``.csv`` may be separated by commas, or else by semicolons. In ``.csv`` and ``.tsv``,
        an apostrophe in front of a caption or label that begins with ``=``, ``+``, ``-`` or
        ``@`` is removed: it keeps spreadsheets from computing the cell.
    image : str, default="image"
        Column of images: paths, bytes of image files, PIL images, arrays, or dicts
        ``{"bytes": ..., "path": ...}`` as Hugging Face datasets store them.
    caption : str, default="caption"
        Column of captions: texts, or lists of texts.
    label : str, default=None
        Column of labels, if there is one.
    root : path-like, default=None
        Folder to which relative paths refer. None takes the folder of the table, and the
        current folder if `source` is a data frame.
    check_files : bool, default=True
        Whether images that are given by path must be there. False leaves it to the encoder,
        which with ``on_error="nan"`` goes on without those that are not.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the fields

        images : list, length n_rows
            Absolute paths where the table has paths, else what it has. An image that several
            rows name is there as often.
        captions : list of str, or list of list of str, length n_rows
            Captions; lists if any row has several.
        labels : ndarray of str, shape (n_rows,)
            Labels, if `label` is given.
        DESCR : str
            Where they were read from.

    (images, captions) : tuple of lists
        If `return_X_y` is True.

    Raises
    ------
    FileNotFoundError
        If the table is not there, or, with `check_files`, an image that it names.
    ValueError
        If a column is missing, a row has no image, caption or label, or there are no rows; if
        an object of a ``.jsonl`` file holds a key twice; if a caption or label is not UTF-8.
    TypeError
        If `source` is no table, or a row holds something that is no image.
    ImportError
        If the table is a parquet file, and pandas or pyarrow is not installed.

    See Also
    --------
    load_image_folder : Images in a folder, captions beside them.

    References
    ----------
    .. [1] https://huggingface.co/docs/datasets/image_dataset

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn_ape.datasets import load_pairs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "cat.jpg").write_bytes(b"")
    ...     table = Path(folder, "pairs.csv")
    ...     _ = table.write_text("image,caption\ncat.jpg,a black cat\n")
    ...     data = load_pairs(table)
    >>> data.captions
    ['a black cat']
    """
    if isinstance(source, (str, os.PathLike)):
        file = Path(source).expanduser().absolute()
        table, where, base = read_table(file), repr(str(file)), file.parent
    elif hasattr(source, "columns") and hasattr(source, "to_dict"):
        table, where, base = table_of_frame(source), "the data frame", Path.cwd()
    else:
        raise TypeError(
            "source must be the path of a table, or a pandas or polars DataFrame, got "
            f"{type(source).__name__}."
        )
    if root is not None:
        base = Path(root).expanduser().absolute()
    cells = column(table, image, where)
    if not cells:
        raise ValueError(f"{where} has 0 rows; expected one row an image and caption.")
    bunch = Bunch(DESCR=_DESCR.format(n=len(cells), source=where))
    bunch.captions = one_or_ragged(captions_by_row(text_column(table, caption, where), where))
    if label is not None:
        bunch.labels = _labels(text_column(table, label, where), label, where)
    _check_not_swapped(cells, bunch.captions, image, caption, where)
    bunch.images = _resolve(cells, base, where)
    if isinstance(table, Delimited):
        # Names of files may contain any bytes. A name without a file is text in another encoding.
        unknown = [
            cell
            for cell, path in zip(cells, bunch.images, strict=True)
            if holds_bytes(path) and not os.path.lexists(path)
        ]
        refuse_bytes(unknown, f"column {image!r}", where)
    if check_files:  # last: it asks for every file
        _check_files(bunch.images, base, where)
    return deliver(bunch, return_X_y)


def _check_not_swapped(
    cells: list[Any], captions: list[Any], image: Any, caption: Any, where: str
) -> None:
    """Raise when the captions are files of images and the images are not."""

    def are_files(values: list[Any]) -> bool:
        return all(
            isinstance(value, str) and os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES
            for value in values
        )

    if (
        are_files(captions)
        and all(isinstance(cell, str) for cell in cells)
        and not any(are_files([cell]) for cell in cells)
    ):
        raise ValueError(
            f"The captions of {where} are names of images, and its images are not: the first "
            f"row has the image {cells[0]!r} and the caption {captions[0]!r}. Are the columns "
            f"swapped? Try image={caption!r}, caption={image!r}."
        )


def _labels(values: list[Any], name: str, where: str) -> np.ndarray:
    bad = [row for row, value in enumerate(values) if is_missing(value)]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(values)} rows of {where} have no label in column {name!r}: "
            f"rows {listed(bad)} (the first is 0). Remove these rows, or label them."
        )
    return np.array([str(value) for value in values])


def _resolve(cells: list[Any], base: Path, where: str) -> list[Any]:
    """Return images unchanged, and paths as absolute paths."""
    cells = [_unpack(cell) for cell in cells]
    bad = [row for row, cell in enumerate(cells) if is_missing(cell)]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(cells)} rows of {where} have no image: rows {listed(bad)} "
            "(the first is 0). Remove these rows."
        )
    images = []
    for row, cell in enumerate(cells):
        if isinstance(cell, (str, os.PathLike)):
            images.append(os.path.join(base, os.path.expanduser(cell)))
        elif isinstance(cell, (bytes, np.ndarray)) or hasattr(cell, "convert"):
            images.append(cell)
        else:
            raise TypeError(
                f"Row {row} of {where} (the first is 0) holds a {type(cell).__name__} for an "
                "image; expected a path, bytes, a PIL image, an array, or a dict with 'bytes' "
                "or 'path'."
            )
    return images


def _check_files(images: list[Any], base: Path, where: str) -> None:
    """Raise FileNotFoundError if a path does not lead to a file."""
    paths = dict.fromkeys(path for path in images if isinstance(path, str))
    absent = [path for path in paths if not os.path.isfile(path)]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(paths)} images that {where} names are not there: "
            f"{listed(absent)}. Relative paths were looked for in {str(base)!r}; pass root=... "
            "if they refer to another folder."
        )


def _unpack(cell: object) -> object:
    """Take the image out of a Hugging Face dict."""
    if isinstance(cell, Mapping):
        content = cell.get("bytes")
        return content if content is not None else cell.get("path")
    return cell
