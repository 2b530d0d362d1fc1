"""Tables of images and captions, and their loader."""

from __future__ import annotations

import ast
import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from ..utils.files import describe_conversion, describe_similar_file, expand_user
from ..utils.messages import import_optional, is_invisible, unescape_formula
from ..utils.validation import as_label_array, find_repeated, format_list, is_missing, parse_json
from .base import flatten_single_captions, make_result

_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

Table = Mapping[str, Any]
"""Columns by name: lists, or columns of pandas, polars or pyarrow."""


class Delimited(dict[str, list[str]]):
    """Columns of a csv or tsv file, whose bytes that are not UTF-8 are surrogates."""


class _Records(Mapping[str, list[Any]]):
    """Columns of JSON objects.

    A column is made when it is read. If every object had other keys, all columns together would
    need memory that is quadratic in the number of objects.
    """

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records
        self.names = dict.fromkeys(name for record in records for name in record)

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self.names:
            raise KeyError(name)
        return [record.get(name) for record in self.records]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_table(file: Path) -> Table:
    """Return the columns of a file, without converting texts."""
    kind = file.suffix.lower()
    if kind not in _FORMATS:
        hint = ""
        if kind in (".xlsx", ".xls"):
            hint = " Save it in Excel as 'CSV UTF-8', or pass pandas.read_excel(...)."
        if kind == ".json":
            hint = " Save it as .jsonl, with one object per line, or pass pandas.read_json(...)."
        hint = hint or describe_conversion([kind])
        raise ValueError(
            f"{str(file)!r} has an unknown format. Pass a file whose name ends in "
            f"{', '.join(_FORMATS)}.{hint}"
        )
    if not file.is_file():
        raise FileNotFoundError(f"File {str(file)!r} does not exist. Check the path.")
    try:
        if kind == ".parquet":
            return _read_parquet(file)
        if kind in (".csv", ".tsv"):
            return _read_csv(file, _detect_delimiter(file) if kind == ".csv" else "\t")
        return _read_json_lines(file)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(file)!r} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as "
            "UTF-8, which spreadsheet programs call 'CSV UTF-8'."
        ) from error
    except PermissionError:
        raise
    except (ValueError, OSError, csv.Error) as error:  # pyarrow raises OSError for damaged files
        reason = " ".join(str(error).split())
        raise ValueError(f"{str(file)!r} cannot be read as {kind[1:]}: {reason}") from error


def _detect_delimiter(file: Path) -> str:
    """Return the delimiter. Spreadsheets use semicolons in languages with decimal commas."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        names = next(filter(str.strip, stream), "")
    # Delimiters within quotes do not count. Of equal numbers, the first is returned.
    return max(
        ",;\t", key=lambda delimiter: len(next(csv.reader([names], delimiter=delimiter), []))
    )


def _read_csv(file: Path, delimiter: str) -> Table:
    # Not pandas, which reads "NA" as a missing value and an extra comma as an extra column.
    # File names may contain bytes that are not UTF-8. `get_text_column` rejects such texts.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        rows = filter(None, _iter_rows(reader))  # without blank lines
        header = next((row for row in rows if row[0] != "sep="), [])  # "sep=;" is for Excel
        check_utf8(header, "the first line", "it")
        columns: list[list[str]] = [[] for _ in header]
        for row in rows:
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} has {len(row)} fields, the first line "
                    f"{len(header)}. Put quotes around texts that contain {delimiter!r}."
                )
            for values, value in zip(columns, row, strict=True):
                values.append(value)
    pairs = list(zip(header, columns, strict=True))  # some are unused columns of a spreadsheet
    _check_distinct([name for name, cells in pairs if name or any(cells)], "the first line")
    return Delimited(pairs)


def _iter_rows(reader: Any) -> Iterator[list[str]]:
    """Yield the rows of a csv reader, whose errors name the line and the remedy."""
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num}: {error}. Put a text that contains quotes between quotes, "
            'and double the quotes within it, as in "a ""big"" cat".'
        ) from error


def _read_json_lines(file: Path) -> Table:
    rows = []
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            remedy = 'Write an object such as {"file_name": "cat.jpg", "caption": "a cat"}.'
            rows.append(parse_json(line, f"line {number}", remedy))
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} is not an object. {remedy}")
    return _Records(rows)


def _read_parquet(file: Path) -> Table:
    purpose = f"Reading {file.name!r}"
    pandas = import_optional("pandas", extra="tables", purpose=purpose)
    import_optional("pyarrow", extra="tables", purpose=purpose)
    return _split_columns(pandas.read_parquet(file), "it")


def _split_columns(frame: Any, where: str) -> Table:
    """Return the columns of a pandas, polars or pyarrow table, and named indexes of pandas."""
    if hasattr(frame, "reset_index"):
        # Not names that repeat, for which pandas raises an error.
        excluded = (None, *find_repeated(frame.index.names), *frame.columns)
        frame = frame.reset_index([name for name in frame.index.names if name not in excluded])
    # Not `column_names` of any table: it may be a column of a data frame.
    names = list(frame.columns if hasattr(frame, "to_dict") else frame.column_names)
    _check_distinct(list(map(str, names)), where)
    return {str(name): frame[name] for name in names}


def _check_distinct(names: list[Any], where: str) -> None:
    if repeated := find_repeated(names):
        raise ValueError(f"{where} has repeated columns: {format_list(repeated)}. Rename them.")


def get_column(
    table: Table, names: str | Sequence[str], where: str, parameter: str | None = None
) -> list[Any]:
    """Return the first of the named columns that the table has; `parameter` names the column."""
    candidates = _as_tuple(names)
    for name in candidates:
        if name in table:
            values = table[name]
            if isinstance(values, list):
                return values
            return values.to_pylist() if hasattr(values, "to_pylist") else values.to_list()
    if not table:
        raise ValueError(f"{where} is empty. Pass a table with columns of images and captions.")
    hint = "Rename one of its columns."
    if parameter is not None:
        hint = f"Pass the name of a column as {parameter}, or --{parameter} in a command."
        if parameter == "caption":
            hint += " Labels need no captions: pass their column as label, or --label."
    raise ValueError(
        f"{where} has no column {' or '.join(map(repr, candidates))}. Its columns are "
        f"{format_list(table, limit=20)}. {hint}"
    )


def _as_tuple(names: Any) -> tuple[str, ...]:
    return tuple(names) if isinstance(names, list | tuple) else (str(names),)


def get_text_column(
    table: Table, names: str | Sequence[str], where: str, parameter: str | None = None
) -> list[Any]:
    """Return a column of captions or labels, without the escapes of formulas in a file."""
    cells = get_column(table, names, where, parameter)
    if not isinstance(table, Delimited):
        return cells
    check_utf8(cells, f"column {next(n for n in _as_tuple(names) if n in table)!r}", where)
    return [unescape_formula(cell) for cell in cells]


def check_utf8(cells: Iterable[str], part: str, where: str) -> None:
    """Raise ValueError if a cell contains bytes that are not UTF-8."""
    for cell in filter(contains_bytes, cells):
        raise ValueError(
            f"{where} is not UTF-8 text: {part} contains {cell[:80]!r}. Save it as UTF-8, which "
            "spreadsheet programs call 'CSV UTF-8'."
        )


def contains_bytes(text: str) -> bool:
    """Return whether a text from a file contains bytes that are not UTF-8."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def is_blank(value: object) -> bool:
    """Return whether a cell is a missing value, empty bytes or a text without visible characters.

    >>> is_blank(None), is_blank(float("nan")), is_blank(" "), is_blank("NA")
    (True, True, True, False)
    """
    if isinstance(value, bytes):
        return not value
    return is_invisible(value) if isinstance(value, str) else is_missing(value)


def parse_captions(cells: Sequence[object], where: str) -> list[list[str]]:
    """Return the captions in each cell, which is a text or a list of texts."""
    if cells and all(map(_is_written_list, cells)):
        raise ValueError(
            f"{where} has captions that are lists written as text; row 0 is {cells[0]!r}. Write "
            "one row per caption, or convert the column with ast.literal_eval in Python."
        )
    captions = [_parse_cell(cell) for cell in cells]
    invalid = [row for row, texts in enumerate(captions) if not texts]
    if invalid:
        raise ValueError(
            f"{where} has no caption in {len(invalid)} of {len(cells)} rows: rows "
            f"{format_list(invalid)} (the first is 0); row {invalid[0]} is {cells[invalid[0]]!r}. "
            "Write a text or a list of texts, none of them empty, or remove the rows."
        )
    return captions


def _is_written_list(cell: object) -> bool:
    """Return whether a text is a list of texts in Python or JSON, as pandas writes it to csv."""
    if not isinstance(cell, str) or not cell.startswith("["):
        return False
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)


def _parse_cell(cell: object) -> list[str]:
    """Return the captions in a cell; an empty list if any of them is blank or not a text."""
    texts: Any = cell if isinstance(cell, (list, tuple, np.ndarray)) else [cell]
    are_valid = all(isinstance(text, str) and not is_blank(text) for text in texts)
    return [" ".join(text.split()) for text in texts] if are_valid else []


_DESCR = """\
Table of pairs
--------------
{n} pairs of image and caption from {source}.
"""


def load_pairs(
    source: Any,
    *,
    image: str = "image",
    caption: str | None = "caption",
    label: str | None = None,
    root: str | os.PathLike[str] | None = None,
    check_files: bool = True,
    return_X_y: bool = False,
) -> Any:
    r"""Load pairs of images and captions from a table.

    Parameters
    ----------
    source : path-like, pandas.DataFrame, polars.DataFrame or pyarrow.Table
        Table in memory, or path of a file with the extension ``.csv``, ``.tsv``, ``.jsonl``,
        ``.ndjson`` or ``.parquet``. The delimiter of ``.csv`` is a comma or a semicolon. In
        ``.csv`` and ``.tsv``, an apostrophe before a caption or label that starts with ``=``,
        ``+``, ``-`` or ``@`` is removed; it prevents spreadsheets from computing the cell.
    image : str, default="image"
        Column, or named index of pandas, of images: paths, bytes of image files, PIL images,
        arrays, or dicts ``{"bytes": ..., "path": ...}`` as in Hugging Face datasets [1]_.
    caption : str or None, default="caption"
        Column of captions, which are texts or lists of texts. None means no captions. The
        column of the default may be missing if `label` is set.
    label : str or None, default=None
        Column of labels. None means no labels.
    root : path-like, default=None
        Folder of relative paths. None means the folder of the table, or the current folder if
        `source` is a table in memory.
    check_files : bool, default=True
        Whether to raise an error if an image file does not exist. If False, the encoder raises
        an error, or skips the image with ``on_error="nan"``.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list, length n_rows
            Images of the table, with paths made absolute. An image of several rows is repeated.
        captions : list of str, or list of list of str, length n_rows, or None
            Captions, or lists of captions if any row has several; None if there are none.
        labels : ndarray of str, shape (n_rows,)
            Labels, in which floats such as 1.0 are written as integers. The field exists only if
            `label` is not None.
        DESCR : str
            Description of the source.

    Raises
    ------
    FileNotFoundError
        If the table does not exist, or, with `check_files`, an image file does not exist.
    ValueError
        If a column is missing, a row has no image, caption or label, or there are no rows; if a
        key of a ``.jsonl`` object repeats; or if a caption or label is not UTF-8.
    TypeError
        If `source` is not a table, or a row has an image of an unsupported type.
    ImportError
        If the table is a parquet file and pandas or pyarrow is not installed.

    See Also
    --------
    load_image_folder : Load images of a folder, with captions in text files.

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
    for name, column in {"image": image, "caption": caption, "label": label}.items():
        if isinstance(column, list | tuple):
            advice = "Pass one of them."
            if name == "caption":
                advice = (
                    "For several captions per image, make a column of lists: "
                    "table[['first', 'second']].values.tolist()."
                )
            raise ValueError(f"{name} must be the name of one column, not {column!r}. {advice}")
    table, where, base = _resolve_source(source)
    if root is not None:
        base = expand_user(root).absolute()
    cells = get_column(table, image, where, "image")
    if not cells:
        raise ValueError(f"{where} has 0 rows. Pass a table with one row per image and caption.")
    bunch = Bunch(DESCR=_DESCR.format(n=len(cells), source=where))
    if caption == "caption" and caption not in table and label is not None:
        caption = None
    bunch.captions = None
    if caption is not None:
        captions = parse_captions(get_text_column(table, caption, where, "caption"), where)
        bunch.captions = flatten_single_captions(captions)
    if label is not None:
        bunch.labels = _check_labels(get_text_column(table, label, where, "label"), label, where)
    bunch.images = _resolve_images(cells, base, where)
    if isinstance(table, Delimited):
        # File names may contain any bytes. If the file does not exist, the encoding is wrong.
        unknown = [
            cell
            for cell, path in zip(cells, bunch.images, strict=True)
            if contains_bytes(path) and not os.path.lexists(path)
        ]
        check_utf8(unknown, f"column {image!r}", where)
    if check_files:  # last, because it is slow for many files
        check_images_exist(bunch.images, base, where)
    return make_result(bunch, return_X_y)


def _resolve_source(source: Any) -> tuple[Table, str, Path]:
    """Return the columns of a table, its name for messages, and the folder of relative paths."""
    if isinstance(source, (str, os.PathLike)):
        file = expand_user(source).absolute()
        return read_table(file), repr(str(file)), file.parent
    is_frame = hasattr(source, "columns") and hasattr(source, "to_dict")
    if is_frame or hasattr(source, "to_pydict"):  # pyarrow
        where = "the data frame" if is_frame else "the table"
        return _split_columns(source, where), where, Path.cwd()
    hint = ""
    if hasattr(source, "column_names"):
        hint = " Columns of a dataset need no loader. Pass dataset['image'] to fit."
    elif isinstance(source, list | dict):
        hint = " Pass pandas.DataFrame(source)."
    elif hasattr(source, "collect"):  # a lazy frame
        hint = " Pass source.collect()."
    raise TypeError(
        "source must be the path of a table, a pyarrow Table, or a pandas or polars DataFrame, "
        f"not {type(source).__name__}.{hint}"
    )


def _check_labels(values: list[Any], name: str, where: str) -> np.ndarray:
    missing = [row for row, value in enumerate(values) if is_blank(value)]
    if missing:
        raise ValueError(
            f"{where} has no label in column {name!r} of {len(missing)} of {len(values)} rows "
            f"(numbered from 0): {format_list(missing)}. Remove these rows, or add labels."
        )
    for row, value in enumerate(values):
        if isinstance(value, list | tuple | Set | np.ndarray) or _is_written_list(value):
            raise ValueError(
                f"{where} has the list {value!r} in column {name!r}, row {row} (the first is 0). "
                "Pass a column with one label per image. For several labels per image, pass the "
                "column of lists to MultiLabelZeroShotClassifier.fit."
            )
        if isinstance(value, bytes | Mapping):
            raise ValueError(
                f"{where} has the {type(value).__name__} {value!r} in column {name!r}, row {row} "
                "(the first is 0). Convert the labels to texts."
            )
    # pandas turns integers into floats where a value of the column is missing.
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    # str() of a member of an Enum of texts is its name.
    return as_label_array(str.__str__(v).strip() if isinstance(v, str) else str(v) for v in values)


def _resolve_images(cells: list[Any], base: Path, where: str) -> list[Any]:
    """Return the images, with paths made absolute."""
    cells = [_unwrap_dict(cell) for cell in cells]
    missing = [row for row, cell in enumerate(cells) if is_blank(cell)]
    if missing:
        raise ValueError(
            f"{where} has no image in {len(missing)} of {len(cells)} rows: rows "
            f"{format_list(missing)} (the first is 0). Remove these rows."
        )
    images = []
    for row, cell in enumerate(cells):
        if isinstance(cell, str) and re.match(r"\w+://", cell):
            raise ValueError(
                f"Row {row} of {where} (the first is 0) has the URL {cell!r} as image. Download "
                "the images, and replace the URLs by the paths of the files."
            )
        if isinstance(cell, (str, os.PathLike)):
            images.append(os.path.join(base, os.path.expanduser(cell)))
        elif isinstance(cell, (bytes, np.ndarray)) or hasattr(cell, "convert"):
            images.append(cell)
        else:
            raise TypeError(
                f"Row {row} of {where} (the first is 0) has an image of type "
                f"{type(cell).__name__}. Use a path, bytes, a PIL image, an array, or a dict with "
                "'bytes' or 'path'."
            )
    return images


def check_images_exist(images: list[Any], base: Path, where: str) -> None:
    """Raise FileNotFoundError if an image file of a table does not exist."""
    paths = dict.fromkeys(path for path in images if isinstance(path, str))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        advice = describe_similar_file(missing[0])
        if not advice:
            advice = (
                f"Relative paths refer to {str(base)!r}. Correct the paths, or pass root=... to "
                "load_pairs in Python."
            )
            if len(missing) < len(paths):
                advice += (
                    " Remove these rows, or pass check_files=False and use an encoder with "
                    "on_error='nan'."
                )
        raise FileNotFoundError(
            f"{where} lists {len(missing)} of {len(paths)} images that do not exist: "
            f"{format_list(missing)}. {advice}"
        )


def _unwrap_dict(cell: object) -> object:
    """Return the bytes or the path in a dict of a Hugging Face dataset, or the cell unchanged."""
    if isinstance(cell, Mapping):
        content = cell.get("bytes")
        return content if content is not None else cell.get("path")
    return cell
