"""Messages and exit status of the command line, result tables and atomic output files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Self

import typer
from typer.core import TyperCommand, TyperGroup

from ..utils.files import FULL_DISK, check_writable, expand_user, write_file_atomically
from ..utils.messages import escape_controls, escape_formula, escape_formula_path

_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130

# typer does not export the base class of its errors about options.
_UsageError: Any = typer.BadParameter.__bases__[0]
_HANDLED_BY_TYPER = (_UsageError, typer.Exit, typer.Abort)

# Errors whose message tells the user what to do. A TypeError is not among them: options are
# checked before they are passed on, so that it is a bug of this package.
_USER_ERRORS = (OSError, ValueError, ImportError, FloatingPointError)

# Patterns of messages for Python, and the texts for users of commands that replace them.
_REPLACEMENTS: tuple[tuple[str, Any], ...] = (
    (
        r"pass on_error='nan' to \w*ImageEncoder to skip them"
        r"|pass check_files=False and use an encoder with on_error='nan'",
        "leave out --strict",
    ),
    (r", or pass on_error='nan' to \w+ to skip them", ""),  # no option skips texts
    (r"Their features are NaN; `errors_` lists all of them", "They are skipped"),
    (r"\b(captions|device|templates)=(['\"])(\S+?)\2", r"--\1 \3"),
    (
        r"^(device|dtype|n_jobs|n_pairs|pooling|templates)(?=[ =])",
        lambda match: f"--{match[0].replace('_', '-')}",
    ),
    (r"\blabels=\{'([^']*)': '([^']*)'\}", r'--labels-file labels.json with {"\1": "\2"}'),
    (r"\bmodel_name=(?=['\"])", ""),  # the name is that of an option, or of a saved model
    ("that save_pretrained writes", "that 'sklearn-ape fit' or 'sklearn-ape index' writes"),
    (r"cache=None", "--cache memory"),
    (r"\bcaptions=None", "--captions none"),
    (r"list_encoders\(\)", "'sklearn-ape models'"),
)

# Options by the heading under which --help lists them. All others are advanced.
_GROUPS = {
    "Input": (
        *("images", "image", "caption", "label", "captions", "labels", "labels_file"),
        *("query", "like", "index", "texts", "strict", "max_size", "dimension"),
    ),
    "Model": (
        *("method", "aligner", "image_encoder", "text_encoder", "encoder", "templates"),
        *("together", "threshold", "depth", "head_pairs", "pooling"),
    ),
    "Output": (
        *("output", "file_format", "top_k", "probabilities", "k", "min_score", "figure"),
        *("test_size", "refit", "update", "dropped", "overwrite", "quiet", "open_browser"),
    ),
}


class GroupedCommand(TyperCommand):
    """A command whose options are listed by purpose, common ones first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, none of which may be empty: an empty path is the current folder."""
        params: list[Any] = self.get_params(ctx)
        options = [param for param in params if param.param_type_name == "option"]
        needs_value = {name: not option.is_flag for option in options for name in option.opts}
        for option, value in pairwise(takewhile(lambda arg: arg != "--", args)):
            if needs_value.get(option) and value in needs_value:
                raise typer.BadParameter(
                    f"{option} needs a value before {value}. Pass a value, or leave it out.",
                    ctx=ctx,
                )
        words = [word for arg in args for word in arg.split("=", 1 if arg.startswith("--") else 0)]
        if "" in words:
            position = words.index("")
            previous = words[position - 1] if position else ""
            name = previous if needs_value.get(previous) else "An argument"
            raise typer.BadParameter(
                f"{name} is empty. Pass a value, or leave it out. The shell passes an empty text "
                "for a variable that is not set.",
                ctx=ctx,
            )
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        groups = ("Arguments", *_GROUPS, "Advanced")
        records: dict[str, list[tuple[str, str]]] = {group: [] for group in groups}
        for param in self.get_params(ctx):
            group = next((g for g, names in _GROUPS.items() if param.name in names), "Advanced")
            if param.param_type_name == "argument":
                group = "Arguments"
            if record := param.get_help_record(ctx):
                records[group].append(record)
        for group, rows in records.items():
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows, col_max=26)


class CommandGroup(TyperGroup):
    """A group of commands that prints errors of the user as messages, without a traceback."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Parse the options before the command."""
        with _escape_usage_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command and exit with the status of its error, if there is one."""
        # File names may contain bytes that are not valid text. Results contain them unchanged. On
        # Windows, the encoding of pipes lacks most characters, so they are UTF-8 as files are.
        with suppress(AttributeError, OSError):
            encoding = None if sys.stdout.isatty() else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="surrogateescape")  # type: ignore[union-attr]
        try:
            with warnings.catch_warnings(), _escape_usage_errors():
                warnings.showwarning = _make_warning_printer()
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except _HANDLED_BY_TYPER:
            raise
        except BrokenPipeError:  # the reader, such as head, does not read further rows
            _discard_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt as error:
            notes = getattr(error, "__notes__", [])
            print_message("\n".join(["sklearn-ape: Interrupted.", *notes]))
            raise typer.Exit(_EXIT_INTERRUPTED) from None
        except Exception as error:
            print_message(f"sklearn-ape: {_describe(error)}")
            raise typer.Exit(_EXIT_ERROR) from None


@contextmanager
def note_on_interrupt(note: str) -> Iterator[None]:
    """Add a note on how to resume to the message for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(note)
        raise


def print_message(text: str, quiet: bool = False) -> None:
    """Print lines to standard error, unless `quiet`.

    Control characters of file names, labels and captions are escaped, so that a terminal does
    not execute them.
    """
    if not quiet:
        print(escape_controls(text, keep="\n"), file=sys.stderr, flush=True)


def print_loading(quiet: bool) -> None:
    """Say on a terminal that networks are loaded, which takes seconds before the first bar."""
    print_message("Loading the networks ...", quiet or not sys.stderr.isatty())


@contextmanager
def _escape_usage_errors() -> Iterator[None]:
    """Escape the arguments that are quoted in error messages of typer."""
    try:
        yield
    except _UsageError as error:
        error.message = escape_controls(error.message, keep="\n")
        raise


def _describe(error: Exception) -> str:
    """Return the message for an error, after printing the traceback if it is a bug."""
    if isinstance(error, MemoryError):
        return "Out of memory. Pass fewer images at a time."
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename!r}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FULL_DISK:  # such as of standard output
        return f"{error.strerror}. Free some disk space, and run the command again."
    if isinstance(error, _USER_ERRORS):
        return _name_options(str(error))
    # torch is slow to import, and if it was not imported, it did not raise the error.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return (
            "Out of device memory. Use --device cpu, or close other programs that use the device."
        )
    print_message(traceback.format_exc())
    name = type(error).__name__
    return f"Unexpected error ({name}). This is a bug. Please report it with the lines above."


def _make_warning_printer() -> Callable[..., None]:
    """Return a function that prints each distinct warning once.

    Python forgets which warnings it has shown whenever filters change, as they do in a command.
    """
    printed = set()

    def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        text = _name_options(str(message))
        if text not in printed:
            printed.add(text)
            print_message(f"sklearn-ape: Warning: {text}")

    return print_warning


def _name_options(text: str) -> str:
    """Return a message with the names of options in place of those of parameters.

    >>> _name_options("Pass captions='sidecar', or use device='cpu'.")
    'Pass --captions sidecar, or use --device cpu.'
    >>> _name_options("n_jobs must not be 0. Pass labels={'猫': 'cat'}, or cache=None.")
    '--n-jobs must not be 0. Pass --labels-file labels.json with {"猫": "cat"}, or --cache memory.'
    """
    for pattern, replacement in _REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return text


def _discard_stdout() -> None:
    """Discard buffered output, which Python would otherwise fail to write at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "table")
_FORMAT_BY_SUFFIX = {f".{name}": name for name in _FORMATS[:-1]}
_FORMAT_BY_SUFFIX |= {".ndjson": "jsonl", ".pq": "parquet"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_MIN_FREE_BYTES = 2**20


def _get_file(output: Path | None) -> Path | None:
    """Return the file of an output, or None if it is the standard output."""
    return None if str(output) == "-" else output


def resolve_format(output: Path | None, file_format: str | None, option: str = "--output") -> str:
    """Return the format of an output, by --format or its suffix; check that it can be written."""
    file = _get_file(output)
    if file_format is not None:
        resolved = file_format.lower()
        if resolved not in _FORMATS:
            raise typer.BadParameter(
                f"{file_format!r} is not one of {', '.join(_FORMATS)}.", param_hint="--format"
            )
    elif file is None:
        resolved = "table" if sys.stdout.isatty() else "csv"
    else:
        resolved = _FORMAT_BY_SUFFIX.get(file.suffix.lower(), "")
        if not resolved:
            hint = ", or set --format" if option == "--output" else ""
            raise typer.BadParameter(
                f"{str(file)!r} has no suffix of a known format. Use one of "
                f"{', '.join(_FORMAT_BY_SUFFIX)}{hint}.",
                param_hint=option,
            )
    if resolved == "parquet":
        if file is None and sys.stdout.isatty():
            raise typer.BadParameter(
                "parquet cannot be shown on a terminal. Set --output names.parquet.",
                param_hint="--format",
            )
        from ..utils.messages import import_optional

        import_optional("pyarrow", extra="tables", purpose="Writing parquet")
    return resolved


def check_output_file(output: Path | None, n_bytes: int = _MIN_FREE_BYTES) -> None:
    """Raise an error if a file cannot be written; create its folder if it is missing."""
    file = _get_file(output)
    if file is None:
        return
    path = expand_user(file)
    if path.is_dir():
        raise IsADirectoryError(f"{str(file)!r} is a folder. Pass the name of a file.")
    if path.is_file() or not path.exists():  # else a device such as /dev/null
        _check_writable(file, path.resolve().parent, n_bytes)


def check_output_folder(output: Path, n_bytes: int = _MIN_FREE_BYTES) -> None:
    """Raise an error if a folder cannot be written; create its parents if they are missing."""
    path = expand_user(output)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{str(output)!r} is a file. Pass the name of a folder.")
    _check_writable(output, find_written_folder(path), n_bytes)


def find_written_folder(folder: Path) -> Path:
    """Return where files are created first to write a folder: in itself if it exists."""
    return folder if folder.is_dir() else folder.resolve().parent


def check_model_folder(output: Path, *kinds: str, has_starter: bool = False) -> None:
    """Raise an error if a model of one of these kinds cannot be saved to a folder.

    It replaces a saved model of the same kind. A kind is a class, or "Aligner" for any aligner.
    """
    check_output_folder(output, 2**25 if has_starter else _MIN_FREE_BYTES)  # it has 23 MiB
    if (folder := expand_user(output)).is_dir():
        from ..persistence.files import check_replaceable, read_class_name

        check_replaceable(folder)
        name = read_class_name(folder)
        kind = "Aligner" if f"{name}".endswith("Aligner") else name
        if kind not in (None, *kinds):
            what = "an index" if name == "CrossModalRetriever" else f"a model of class {name}"
            raise FileExistsError(
                f"{str(output)!r} has {what}, which would be replaced. Pass another folder, or "
                "delete this one."
            )


def _check_writable(output: Path, folder: Path, n_bytes: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise OSError(
            f"{str(output)!r} cannot be written ({error.strerror}). Choose another path."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            f"{str(output)!r} needs about {n_bytes / 2**20:,.0f} MiB, but only "
            f"{free / 2**20:,.0f} MiB are free. Free some disk space, or choose another path."
        )


@contextmanager
def write_atomically(output: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces the output on success."""
    path = expand_user(output).resolve()  # replace the target of a link, not the link
    is_device = path.exists() and not path.is_file()  # such as /dev/null
    try:
        with nullcontext(path) if is_device else write_file_atomically(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(output)) from error


class FileName(str):
    """A table cell that contains a file name."""

    __slots__ = ()


class Table:
    """Rows of results, written to a file, to standard output or to a terminal.

    On standard output, rows of csv, tsv and jsonl are written one by one, so that they remain if
    an error occurs later. Files are written atomically.

    In csv and tsv, no text is a formula to a spreadsheet. A file name that would be a formula gets
    the prefix ``./``, which names the same file. Any other such text gets an apostrophe, which the
    loaders of this package remove. On a terminal, control characters are escaped.
    """

    def __init__(
        self, columns: Sequence[str], output: Path | None = None, file_format: str | None = None
    ) -> None:
        self.columns = list(columns)
        self.output = _get_file(output)
        self.file_format = resolve_format(output, file_format)
        self.rows: list[Sequence[Any]] = []  # those that are written at the end
        self._has_started = False

    def __enter__(self) -> Self:
        self._files = ExitStack()
        self._path: Path | None = None
        self._stream: Any = sys.stdout
        if self.output is not None:
            self._path = self._files.enter_context(write_atomically(self.output))
            if self.file_format != "parquet":
                self._stream = self._files.enter_context(
                    self._path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
                )
        return self

    def write(self, row: Sequence[Any]) -> None:
        """Write one row; None is an empty cell."""
        self._start()
        if self.file_format in _DELIMITERS:
            self._write_cells(row)
        elif self.file_format == "jsonl":
            self._stream.write(_dump_json(dict(zip(self.columns, row, strict=True))) + "\n")
        else:
            self.rows.append(row)

    def drop_columns(self, names: Collection[str]) -> None:
        """Leave out columns of a table whose rows are written at the end."""
        kept = [column for column, name in enumerate(self.columns) if name not in names]
        self.columns = [self.columns[column] for column in kept]
        self.rows = [[row[column] for column in kept] for row in self.rows]

    def flush(self) -> None:
        """Flush the rows, for a reader of standard output that waits for them."""
        self._stream.flush()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and self._path is not None:
            self._files.__exit__(kind, error, trace)
            return
        with self._files:
            if error is None:
                self._start()
            if self._has_started:
                self._write_collected_rows()

    def _start(self) -> None:
        """Write the header before the first row, so that an earlier error leaves no header."""
        if not self._has_started and self.file_format in _DELIMITERS:
            self._write_cells(self.columns)
        self._has_started = True

    def _write_cells(self, row: Sequence[Any]) -> None:
        # With this line terminator, csv quotes cells that contain "\r" as well as "\n".
        line = io.StringIO(newline="")
        writer = csv.writer(line, delimiter=_DELIMITERS[self.file_format], lineterminator="\r\n")
        writer.writerow([self._escape_cell(value) for value in row])
        self._stream.write(line.getvalue().removesuffix("\r\n") + "\n")

    def _escape_cell(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        escape = escape_formula_path if isinstance(value, FileName) else escape_formula
        is_terminal = self._stream is sys.stdout and self._stream.isatty()
        return escape_controls(escape(value)) if is_terminal else escape(value)

    def _write_collected_rows(self) -> None:
        if self.file_format == "json":
            records = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
            self._stream.write(_dump_json(records, indent=1) + "\n")
        elif self.file_format == "parquet":
            _write_parquet(self._path, self.columns, self.rows)
        elif self.file_format == "table":
            _print_table(self.columns, self.rows, self._stream)


def _dump_json(value: Any, indent: int | None = None) -> str:
    # The only control character that json.dumps does not escape.
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def _write_parquet(path: Path | None, columns: list[str], rows: list[Sequence[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    def to_unicode(value: Any) -> Any:  # parquet does not support surrogate escapes
        is_text = isinstance(value, str)
        return value.encode(errors="backslashreplace").decode() if is_text else value

    table = pyarrow.table(
        {name: [to_unicode(row[column]) for row in rows] for column, name in enumerate(columns)}
    )
    # Not the path, because pyarrow deletes it after an error, even a device.
    with nullcontext(sys.stdout.buffer) if path is None else path.open("wb") as file:
        parquet.write_table(table, file)


def _print_table(columns: list[str], rows: list[Sequence[Any]], stream: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(columns):
        is_numeric = any(isinstance(row[column], int | float) for row in rows)
        heading = Text(escape_controls(name).replace("_", " "))  # can be wrapped
        table.add_column(heading, justify="right" if is_numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_format_cell(value)) for value in row))  # Text ignores [markup]
    Console(file=stream).print(table)


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else escape_controls(str(value))
