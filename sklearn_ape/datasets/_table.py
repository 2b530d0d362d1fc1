"""Columns of tables, from files and data frames, with the checks that all tables need."""

import csv
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._base import listed, require

Table = Mapping[str, Any]  # columns by name: lists, or series of a data frame

_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


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
    with file.open(encoding="utf-8-sig", newline="") as stream:
        names = stream.readline()
    found = {delimiter: names.count(delimiter) for delimiter in (",", ";", "\t")}
    return "," if found[","] else max(found, key=lambda delimiter: found[delimiter])


def _read_csv(file: Path, delimiter: str) -> Table:
    # Not pandas: it takes "NA" for nothing, and a comma too many for one more column.
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(reader, [])
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
    return dict(zip(header, columns, strict=True))


def _read_json_lines(file: Path) -> Table:
    rows = []
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}.") from error
            if not isinstance(rows[-1], dict):
                raise ValueError(f'line {number} is not an object such as {{"caption": "..."}}.')
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


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
    wanted = (names,) if isinstance(names, str) else tuple(names)
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
