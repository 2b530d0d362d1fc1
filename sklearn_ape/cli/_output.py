"""Writing results: whole files or none, plain text into pipes, tables on terminals."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import typer

from ..utils.escape import escape_controls, escape_formula, escape_formula_path
from ..utils.files import atomic_directory, check_writable

__all__ = [
    "FileName",
    "Table",
    "check_file",
    "check_folder",
    "check_model_folder",
    "form_of",
    "whole_file",
]

FORMS = ("csv", "tsv", "json", "jsonl", "parquet")
_SUFFIXES = {f".{form}": form for form in FORMS} | {".ndjson": "jsonl", ".pq": "parquet"}
_LEAST_ROOM = 2**20


def form_of(output: Path | None, form: str | None) -> str:
    """Return the form in which rows are to be written, and see that it can be."""
    if form is not None:
        chosen = form.lower()
        if chosen not in (*FORMS, "table"):
            raise typer.BadParameter(
                f"{form!r} is not one of {', '.join(FORMS)}, table.", param_hint="--format"
            )
    elif output is None or str(output) == "-":
        chosen = "table" if sys.stdout.isatty() else "csv"
    else:
        chosen = _SUFFIXES.get(output.suffix.lower(), "")
        if not chosen:
            raise typer.BadParameter(
                f"cannot tell the format of {str(output)!r}: its name should end in one of "
                f"{', '.join(_SUFFIXES)}, or give --format.",
                param_hint="--output",
            )
    if chosen == "parquet":
        if (output is None or str(output) == "-") and sys.stdout.isatty():
            raise typer.BadParameter(
                "parquet cannot be shown on a terminal. Give --output names.parquet.",
                param_hint="--format",
            )
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'Writing parquet needs pyarrow: pip install "sklearn-ape[tables]".'
            ) from error
    return chosen


def check_file(output: Path | None, n_bytes: int = _LEAST_ROOM) -> None:
    """Raise, before any work, if a file cannot be written; make its folder if it is missing."""
    if output is None or str(output) == "-":
        return
    path = output.expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{str(output)!r} is a folder: give the name of a file.")
    if path.exists() and not path.is_file():
        return  # such as /dev/null
    _check_place(path.resolve().parent, output, n_bytes)


def check_folder(output: Path, n_bytes: int = _LEAST_ROOM) -> None:
    """Raise, before any work, if a folder cannot be written to; make those above it."""
    path = output.expanduser()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{str(output)!r} is a file: give the name of a folder.")
    _check_place(path.resolve().parent, output, n_bytes)


def check_model_folder(output: Path) -> None:
    """Raise, before any work, if a model cannot be saved to a folder."""
    check_folder(output)
    if output.expanduser().is_dir():
        from ..persistence.files import check_replaceable

        check_replaceable(output.expanduser())


def _check_place(folder: Path, output: Path, n_bytes: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise OSError(
            f"{str(output)!r} cannot be written ({error.strerror}). Choose another --output."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            f"{str(output)!r} will take about {_size(n_bytes)}, and {_size(free)} are free there. "
            "Make room, or choose another --output."
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"


@contextmanager
def whole_file(output: Path) -> Iterator[Path]:
    """Give the name of a file to write, which becomes the output when it is whole."""
    path = output.expanduser().resolve()  # a link stays a link
    if path.exists() and not path.is_file():
        yield path
        return
    with atomic_directory(path) as folder:
        partial = folder / path.name
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)


class FileName(str):
    """A cell of a table that is the name of a file."""

    __slots__ = ()


class Table:
    """Rows that are written to a file, to standard output or to a terminal.

    On standard output, csv, tsv and jsonl come row by row, and what is there when something goes
    wrong stays. A file appears when it is whole.

    In csv and tsv, no text is a formula to a spreadsheet: the name of a file that would be one
    begins with ``./``, which names the same file, and any other text with an apostrophe, which
    the loaders of this package remove. On a terminal, control characters are written as escapes.

    Parameters
    ----------
    columns : sequence of str
        Names of the columns.
    output : Path or None, default=None
        None, and "-", are standard output.
    form : str or None, default=None
        See `form_of`.

    Examples
    --------
    >>> from sklearn_ape.cli._output import Table
    >>> with Table(["path", "label"], form="csv") as table:
    ...     table.write(["a, b.jpg", "cat"])
    path,label
    "a, b.jpg",cat
    """

    def __init__(
        self, columns: Sequence[str], output: Path | None = None, form: str | None = None
    ) -> None:
        self.columns = list(columns)
        self.output = None if output is None or str(output) == "-" else output
        self.form = form_of(output, form)
        self._rows: list[Sequence[Any]] = []
        self._is_begun = False
        self._writer: Callable[[Sequence[Any]], Any] | None = None

    def __enter__(self) -> Self:
        self._file: Any = None if self.output is None else whole_file(self.output)
        self._path = None if self._file is None else self._file.__enter__()
        self._stream: Any = sys.stdout
        if self._path is not None and self.form != "parquet":
            self._stream = self._path.open(
                "w", encoding="utf-8", errors="surrogateescape", newline=""
            )
        return self

    def write(self, row: Sequence[Any]) -> None:
        """Write one row; None is an empty cell."""
        if not self._is_begun:  # what fails before it has a result leaves no heading behind
            self._begin()
        if self._writer is None:
            self._rows.append(row)
        else:
            self._writer(row)

    def flush(self) -> None:
        """Hand over what is written, to a reader that waits for it."""
        if self._path is None and self._writer is not None:
            self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._path is None or error is None:
                self._finish(error is not None)
            if self._stream is not sys.stdout:
                self._stream.close()
        except BaseException as failure:
            if self._file is not None:
                self._file.__exit__(type(failure), failure, None)
            raise
        if self._file is not None:
            self._file.__exit__(kind, error, trace)

    def _begin(self) -> None:
        self._is_begun = True
        self._writer = _WRITERS[self.form](self._stream, self.columns)

    def _finish(self, failed: bool) -> None:
        if not self._is_begun:
            if failed:
                return
            self._begin()
        if self.form == "json":
            records = [dict(zip(self.columns, row, strict=True)) for row in self._rows]
            self._stream.write(_json(records, indent=1) + "\n")
        elif self.form == "parquet":
            _write_parquet(self._path, self.columns, self._rows)
        elif self.form == "table":
            _print_table(self.columns, self._rows, self._stream)


def _delimited(delimiter: str) -> Callable[[TextIO, list[str]], Callable[[Sequence[Any]], Any]]:
    def begin(stream: TextIO, columns: list[str]) -> Callable[[Sequence[Any]], Any]:
        # With this line end, the writer puts quotes around line feeds and carriage returns.
        line = io.StringIO(newline="")
        writer = csv.writer(line, delimiter=delimiter, lineterminator="\r\n")
        is_terminal = stream is sys.stdout and stream.isatty()

        def cell(value: Any) -> Any:
            if not isinstance(value, str):
                return value
            escape = escape_formula_path if isinstance(value, FileName) else escape_formula
            value = escape(value)
            return escape_controls(value) if is_terminal else value

        def write(row: Sequence[Any]) -> None:
            writer.writerow([cell(value) for value in row])
            stream.write(line.getvalue().removesuffix("\r\n") + "\n")
            line.seek(0)
            line.truncate()

        write(columns)
        return write

    return begin


def _lines_of_json(stream: TextIO, columns: list[str]) -> Callable[[Sequence[Any]], Any]:
    def write(row: Sequence[Any]) -> None:
        stream.write(_json(dict(zip(columns, row, strict=True))) + "\n")

    return write


def _json(value: Any, indent: int | None = None) -> str:
    # The only control character that JSON does not escape.
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


_WRITERS: dict[str, Callable[[Any, list[str]], Callable[[Sequence[Any]], Any] | None]] = {
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "jsonl": _lines_of_json,
    "json": lambda stream, columns: None,
    "parquet": lambda stream, columns: None,
    "table": lambda stream, columns: None,
}


def _write_parquet(path: Path | None, columns: list[str], rows: list[Sequence[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    def text(value: Any) -> Any:  # parquet takes valid Unicode alone
        return (
            value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        )

    values = {name: [text(row[number]) for row in rows] for number, name in enumerate(columns)}
    table = pyarrow.table(values)
    if path is None:
        buffer = pyarrow.BufferOutputStream()
        parquet.write_table(table, buffer)
        sys.stdout.buffer.write(buffer.getvalue().to_pybytes())
    else:
        parquet.write_table(table, path)


def _print_table(columns: list[str], rows: list[Sequence[Any]], stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD)
    numeric = {
        number
        for number in range(len(columns))
        if any(isinstance(row[number], int | float) for row in rows)
    }
    for number, name in enumerate(columns):
        justify: Any = "right" if number in numeric else "left"
        table.add_column(Text(escape_controls(name)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))  # names may hold [markup]
    Console(file=stream).print(table)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else escape_controls(str(value))
