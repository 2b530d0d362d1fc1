"""Tables of images and captions."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from ..utils.escape import unescape_formula
from ..utils.files import IMAGE_SUFFIXES
from .base import deliver, listed, one_or_ragged, require

_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


Table = Mapping[str, Any]  # columns by name: lists, or series of a data frame


class Delimited(dict[str, list[str]]):
    """Columns of a csv or tsv file, which may hold bytes that are not text (surrogates)."""


def read_table(file: Path) -> Table:
    """Read the columns of a file of pairs, every text as it stands."""
    kind = file.suffix.lower()
    if kind not in _FORMATS:
        raise ValueError(
            f"Cannot tell the format of {str(file)!r}: its name should end in one of "
            f"{', '.join(_FORMATS)}."
        )
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}.")
    try:
        if kind == ".parquet":
            return _read_parquet(file)
        if kind in (".csv", ".tsv"):
            return _read_csv(file, _delimiter(file) if kind == ".csv" else "\t")
        return _read_json_lines(file)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(file)!r} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as "
            "UTF-8; a spreadsheet program calls that 'CSV UTF-8'."
        ) from error
    except RecursionError:
        raise ValueError(
            f"Cannot read {str(file)!r} as {kind[1:]}: it is nested too deep."
        ) from None
    except PermissionError:
        raise
    except (ValueError, OSError, csv.Error) as error:  # pyarrow calls damage an OSError
        reason = " ".join(str(error).split())
        raise ValueError(f"Cannot read {str(file)!r} as {kind[1:]}: {reason}") from error


def _delimiter(file: Path) -> str:
    """Return what separates the fields: a semicolon where spreadsheets write decimal commas."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        names = stream.readline()
    found = {delimiter: names.count(delimiter) for delimiter in (",", ";", "\t")}
    return "," if found[","] else max(found, key=lambda delimiter: found[delimiter])


def _read_csv(file: Path, delimiter: str) -> Table:
    # Not pandas: it takes "NA" for nothing, and a comma too many for one more column.
    # Names of files may hold bytes that are not text; `text_column` refuses them.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(reader, [])
        refuse_bytes(header, "the first line", "it")
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise ValueError(f"columns of the same name: {listed(repeated)}.")
        columns: list[list[str]] = [[] for _ in header]
        for row in filter(None, reader):
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} has {len(row)} fields, the first line "
                    f"{len(header)}. Put quotes around texts that hold a {delimiter!r}."
                )
            for values, value in zip(columns, row, strict=True):
                values.append(value)
    return Delimited(zip(header, columns, strict=True))


def _read_json_lines(file: Path) -> Table:
    rows = []
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line, object_pairs_hook=unique_keys))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}.") from error
            except RepeatedKeyError as error:
                raise ValueError(f"line {number} {error}") from error
            if not isinstance(rows[-1], dict):
                raise ValueError(f'line {number} is not an object such as {{"caption": "..."}}.')
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


class RepeatedKeyError(ValueError):
    """A JSON object holds a key twice, so that one of the values would be lost."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict: an ``object_pairs_hook`` of `json.loads`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = dict.fromkeys(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(
            f"has the key {listed(repeated)} more than once. Keep one value of each key."
        )
    return found


def _read_parquet(file: Path) -> Table:
    purpose = f"Reading {file.name!r}"
    pandas = require("pandas", package="pandas", extra="tables", purpose=purpose)
    require("pyarrow", package="pyarrow", extra="tables", purpose=purpose)
    return table_of_frame(pandas.read_parquet(file))


def table_of_frame(frame: Any) -> Table:
    """Columns of a pandas or polars data frame."""
    names = list(frame.columns)
    if len(set(names)) < len(names):
        raise ValueError(f"The data frame has columns of the same name: {listed(names, 10)}.")
    return {str(name): frame[name] for name in names}


def column(table: Table, names: str | Sequence[str], where: str) -> list[Any]:
    """Values of the first of the named columns that the table has."""
    wanted = _listed(names)
    for name in wanted:
        if name in table:
            values = table[name]
            return values if isinstance(values, list) else values.to_list()
    near = difflib.get_close_matches(wanted[0], list(table), n=1)
    raise ValueError(
        f"{where} has no column {' or '.join(map(repr, wanted))}. Its columns: "
        f"{', '.join(map(repr, table)) or 'none'}."
        + (f" Did you mean {near[0]!r}?" if near else "")
    )


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def text_column(table: Table, names: str | Sequence[str], where: str) -> list[Any]:
    """Values of a column of captions or labels, as they were before they went into a file."""
    cells = column(table, names, where)
    if not isinstance(table, Delimited):
        return cells
    refuse_bytes(cells, f"column {next(n for n in _listed(names) if n in table)!r}", where)
    return [unescape_formula(cell) for cell in cells]


def refuse_bytes(cells: Iterable[str], part: str, where: str) -> None:
    """Raise if a cell holds bytes that are not UTF-8."""
    for cell in filter(holds_bytes, cells):
        raise ValueError(
            f"{where} is not UTF-8 text: {part} holds {cell[:80]!r}. Save it as UTF-8; a "
            "spreadsheet program calls that 'CSV UTF-8'."
        )


def holds_bytes(text: str) -> bool:
    """Say whether a text that was read from a file holds bytes that are not UTF-8."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, NaT, pandas' NA, no bytes or no text.

    >>> is_missing(None), is_missing(float("nan")), is_missing(" "), is_missing("NA")
    (True, True, True, False)
    """
    if isinstance(value, bytes):
        return not value
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        return value != value
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def captions_by_row(cells: Sequence[object], where: str) -> list[list[str]]:
    """Captions in each cell, which holds a text or a list of texts."""
    captions = [_captions(cell) for cell in cells]
    bad = [row for row, texts in enumerate(captions) if not texts]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(cells)} rows of {where} have no caption: rows {listed(bad)} "
            f"(the first is 0); row {bad[0]} holds {cells[bad[0]]!r}. A caption is a text that "
            "is not empty, or a list of such texts. Remove these rows, or write captions."
        )
    return captions


def _captions(cell: object) -> list[str]:
    """Captions in a cell; none if any of them is empty or not a text."""
    texts = cell if isinstance(cell, (list, tuple, np.ndarray)) else [cell]
    good = [" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()]
    return good if len(good) == len(texts) else []


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
