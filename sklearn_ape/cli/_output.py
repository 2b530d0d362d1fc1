"""Result tables and atomic output files of the commands."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import typer

from ..utils.escape import escape_controls, escape_formula, escape_formula_path
from ..utils.files import atomic_directory

__all__ = [
    "FileName",
    "Table",
    "check_model_folder",
    "check_output_file",
    "check_output_folder",
    "resolve_format",
    "write_atomically",
]

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")
_FORMAT_BY_SUFFIX = {f".{name}": name for name in FORMATS} | {".ndjson": "jsonl", ".pq": "parquet"}
_MIN_FREE_BYTES = 2**20


def resolve_format(output: Path | None, file_format: str | None) -> str:
    """Return the format of an output, after checking that it can be written.

    Parameters
    ----------
    output : Path or None
        Output file. None and "-" are standard output.
    file_format : str or None
        Value of --format. None selects the format by the suffix of the output file.

    Returns
    -------
    file_format : str
        One of `FORMATS`, or "table".
    """
    is_stdout = output is None or str(output) == "-"
    if file_format is not None:
        resolved = file_format.lower()
        if resolved not in (*FORMATS, "table"):
            raise typer.BadParameter(
                f"{file_format!r} is not one of {', '.join(FORMATS)}, table.",
                param_hint="--format",
            )
    elif output is None or is_stdout:
        resolved = "table" if sys.stdout.isatty() else "csv"
    else:
        resolved = _FORMAT_BY_SUFFIX.get(output.suffix.lower(), "")
        if not resolved:
            raise typer.BadParameter(
                f"{str(output)!r} has no suffix of a known format. Use one of "
                f"{', '.join(_FORMAT_BY_SUFFIX)}, or set --format.",
                param_hint="--output",
            )
    if resolved == "parquet":
        if is_stdout and sys.stdout.isatty():
            raise typer.BadParameter(
                "parquet cannot be shown on a terminal. Set --output names.parquet.",
                param_hint="--format",
            )
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "pyarrow is not installed, but parquet files need it. Install it with: "
                'pip install "sklearn-ape[tables]"'
            ) from error
    return resolved


def check_output_file(output: Path | None, n_bytes: int = _MIN_FREE_BYTES) -> None:
    """Raise an error if a file cannot be written; create its folder if it is missing."""
    if output is None or str(output) == "-":
        return
    path = output.expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{str(output)!r} is a folder. Pass the name of a file.")
    if path.exists() and not path.is_file():
        return  # a device such as /dev/null
    _check_writable(path.resolve().parent, output, n_bytes)


def check_output_folder(output: Path, n_bytes: int = _MIN_FREE_BYTES) -> None:
    """Raise an error if a folder cannot be written; create its parents if they are missing."""
    path = output.expanduser()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{str(output)!r} is a file. Pass the name of a folder.")
    _check_writable(path.resolve().parent, output, n_bytes)


def check_model_folder(output: Path) -> None:
    """Raise an error if a model cannot be saved to a folder."""
    check_output_folder(output)
    if output.expanduser().is_dir():
        from ..persistence.files import _check_ours

        _check_ours(output.expanduser())


def _check_writable(folder: Path, output: Path, n_bytes: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{str(output)!r} cannot be written ({error.strerror}). Choose another --output."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            f"{str(output)!r} needs about {_format_size(n_bytes)}, but only {_format_size(free)} "
            "are free. Free some disk space, or choose another --output."
        )


def _format_size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"


@contextmanager
def write_atomically(output: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces the output on success."""
    path = output.expanduser().resolve()  # replace the target of a link, not the link
    if path.exists() and not path.is_file():
        yield path
        return
    with atomic_directory(path) as folder:
        partial = folder / path.name
        yield partial
        # The data must be on the disk before the old file is replaced.
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)


class FileName(str):
    """A table cell that contains a file name."""

    __slots__ = ()


class Table:
    """Rows of results, written to a file, to standard output or to a terminal.

    On standard output, rows of csv, tsv and jsonl are written one by one, so that they remain if
    an error occurs later. Files are written atomically.

    In csv and tsv, no text is a formula to a spreadsheet: a file name that would be a formula is
    written with the prefix ``./``, which names the same file, and any other text with an
    apostrophe, which the loaders of this package remove. On a terminal, control characters are
    escaped.

    Parameters
    ----------
    columns : sequence of str
        Names of the columns.
    output : Path or None, default=None
        Output file. None and "-" are standard output.
    file_format : str or None, default=None
        Output format, see `resolve_format`.

    Examples
    --------
    >>> from sklearn_ape.cli._output import Table
    >>> with Table(["path", "label"], file_format="csv") as table:
    ...     table.write(["a, b.jpg", "cat"])
    path,label
    "a, b.jpg",cat
    """

    def __init__(
        self, columns: Sequence[str], output: Path | None = None, file_format: str | None = None
    ) -> None:
        self.columns = list(columns)
        self.output = None if output is None or str(output) == "-" else output
        self.file_format = resolve_format(output, file_format)
        self._rows: list[Sequence[Any]] = []
        self._has_started = False
        self._writer: Callable[[Sequence[Any]], Any] | None = None

    def __enter__(self) -> Self:
        self._file: Any = None if self.output is None else write_atomically(self.output)
        self._path = None if self._file is None else self._file.__enter__()
        self._stream: Any = sys.stdout
        if self._path is not None and self.file_format != "parquet":
            self._stream = self._path.open(
                "w", encoding="utf-8", errors="surrogateescape", newline=""
            )
        return self

    def write(self, row: Sequence[Any]) -> None:
        """Write one row; None is an empty cell."""
        if not self._has_started:  # not earlier: an error before the first row leaves no header
            self._start()
        if self._writer is None:
            self._rows.append(row)
        else:
            self._writer(row)

    def flush(self) -> None:
        """Flush standard output, for a reader that waits for the rows."""
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

    def _start(self) -> None:
        self._has_started = True
        self._writer = _WRITERS[self.file_format](self._stream, self.columns)

    def _finish(self, failed: bool) -> None:
        if not self._has_started:
            if failed:
                return
            self._start()
        if self.file_format == "json":
            records = [dict(zip(self.columns, row, strict=True)) for row in self._rows]
            self._stream.write(_dump_json(records, indent=1) + "\n")
        elif self.file_format == "parquet":
            _write_parquet(self._path, self.columns, self._rows)
        elif self.file_format == "table":
            _print_table(self.columns, self._rows, self._stream)


def _make_csv_writer(
    delimiter: str,
) -> Callable[[TextIO, list[str]], Callable[[Sequence[Any]], Any]]:
    def start(stream: TextIO, columns: list[str]) -> Callable[[Sequence[Any]], Any]:
        # With this line terminator, csv quotes cells that contain "\r" as well as "\n".
        line = io.StringIO(newline="")
        writer = csv.writer(line, delimiter=delimiter, lineterminator="\r\n")
        is_terminal = stream is sys.stdout and stream.isatty()

        def escape_cell(value: Any) -> Any:
            if not isinstance(value, str):
                return value
            escape = escape_formula_path if isinstance(value, FileName) else escape_formula
            value = escape(value)
            return escape_controls(value) if is_terminal else value

        def write(row: Sequence[Any]) -> None:
            writer.writerow([escape_cell(value) for value in row])
            stream.write(line.getvalue().removesuffix("\r\n") + "\n")
            line.seek(0)
            line.truncate()

        write(columns)
        return write

    return start


def _start_jsonl(stream: TextIO, columns: list[str]) -> Callable[[Sequence[Any]], Any]:
    def write(row: Sequence[Any]) -> None:
        stream.write(_dump_json(dict(zip(columns, row, strict=True))) + "\n")

    return write


def _dump_json(value: Any, indent: int | None = None) -> str:
    # The only control character that json.dumps does not escape.
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


_WRITERS: dict[str, Callable[[Any, list[str]], Callable[[Sequence[Any]], Any] | None]] = {
    "csv": _make_csv_writer(","),
    "tsv": _make_csv_writer("\t"),
    "jsonl": _start_jsonl,
    "json": lambda stream, columns: None,
    "parquet": lambda stream, columns: None,
    "table": lambda stream, columns: None,
}


def _write_parquet(path: Path | None, columns: list[str], rows: list[Sequence[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    def to_unicode(value: Any) -> Any:  # parquet does not support surrogate escapes
        return (
            value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        )

    values = {
        name: [to_unicode(row[column]) for row in rows] for column, name in enumerate(columns)
    }
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
    for column, name in enumerate(columns):
        is_numeric = any(isinstance(row[column], int | float) for row in rows)
        justify: Any = "right" if is_numeric else "left"
        table.add_column(Text(escape_controls(name)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_format_cell(value)) for value in row))  # Text ignores [markup]
    Console(file=stream).print(table)


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else escape_controls(str(value))
