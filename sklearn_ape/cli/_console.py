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
from typer.core import TyperGroup

from ..utils.escape import escape_controls

__all__ = ["CommandGroup", "note_on_interrupt", "print_message"]

_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130

# typer does not export the base class of its errors about options.
_UsageError: Any = typer.BadParameter.__bases__[0]
_HANDLED_BY_TYPER = (_UsageError, typer.Exit, typer.Abort)

# Errors whose message tells the user what to do. A TypeError is not among them: options are
# checked before they are passed on, so that it is a bug of this package.
_USER_ERRORS = (ValueError, ImportError, FloatingPointError)


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
            print_message(
                "\n".join(["sklearn-ape: Interrupted.", *getattr(error, "__notes__", [])])
            )
            raise typer.Exit(_EXIT_INTERRUPTED) from None
        except MemoryError:
            print_message("sklearn-ape: Out of memory. Pass fewer images at a time.")
        except OSError as error:
            has_file = error.strerror and error.filename is not None
            text = f"{error.filename!r}: {error.strerror}" if has_file else str(error)
            print_message(f"sklearn-ape: {text}")
        except _USER_ERRORS as error:
            print_message(f"sklearn-ape: {error}")
        except Exception as error:
            if _is_out_of_device_memory(error):
                print_message(
                    "sklearn-ape: Out of device memory. Use --device cpu, or close other programs "
                    "that use the device."
                )
            else:
                print_message(traceback.format_exc())
                print_message(
                    f"sklearn-ape: Unexpected error ({type(error).__name__}). This is a bug. "
                    "Please report it with the lines above."
                )
        raise typer.Exit(_EXIT_ERROR)


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


def _is_out_of_device_memory(error: Exception) -> bool:
    # torch is slow to import, and if it was not imported, it did not raise the error.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print_message(f"sklearn-ape: Warning: {message}")


def _discard_stdout() -> None:
    """Discard buffered output, which Python would otherwise fail to write at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
