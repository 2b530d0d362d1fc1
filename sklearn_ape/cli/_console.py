"""Messages and exit status of the command line."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..utils.messages import escape_controls

_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130

# typer does not export the base class of its errors about options.
_UsageError: Any = typer.BadParameter.__bases__[0]
_HANDLED_BY_TYPER = (_UsageError, typer.Exit, typer.Abort)

# Errors whose message tells the user what to do. A TypeError is not among them: options are
# checked before they are passed on, so that it is a bug of this package.
_USER_ERRORS = (OSError, ValueError, ImportError, FloatingPointError)


# Options by the heading under which --help lists them. All others are advanced.
_GROUPS = {
    "Input": (
        *("images", "data", "image", "caption", "label", "captions", "labels", "labels_file"),
        *("query", "like", "index", "texts", "strict", "folder", "max_size", "dimension"),
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

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        records: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{g: [] for g in _GROUPS}}
        records["Advanced"] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            group = next((g for g, names in _GROUPS.items() if param.name in names), "Advanced")
            if param.param_type_name == "argument":
                group = "Arguments"
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
        # File names may contain bytes that are not valid text. Results contain them unchanged.
        with suppress(AttributeError, OSError):
            sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        try:
            with warnings.catch_warnings(), _escape_usage_errors():
                warnings.showwarning = _print_warning
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
    if isinstance(error, _USER_ERRORS):
        return str(error)
    # torch is slow to import, and if it was not imported, it did not raise the error.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return (
            "Out of device memory. Use --device cpu, or close other programs that use the device."
        )
    print_message(traceback.format_exc())
    name = type(error).__name__
    return f"Unexpected error ({name}). This is a bug. Please report it with the lines above."


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print_message(f"sklearn-ape: Warning: {message}")


def _discard_stdout() -> None:
    """Discard buffered output, which Python would otherwise fail to write at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
