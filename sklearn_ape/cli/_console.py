"""Messages and exit codes of the command line."""

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

__all__ = ["Commands", "noted_when_interrupted", "say"]

_FAILED, _INTERRUPTED = 1, 130


# Errors in options, whose messages typer shows, and the requests to end with an exit code.
_UsageError: Any = typer.BadParameter.__bases__[0]


_HANDLED_BY_TYPER = (_UsageError, typer.Exit, typer.Abort)


class Commands(TyperGroup):
    """A group of commands whose errors, when a user can act on them, are one message."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the options that stand in front of the command."""
        with _usage_errors_escaped():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        # Names of files may contain bytes that are not text; results contain them unchanged.
        with suppress(AttributeError, OSError):
            sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        try:
            with warnings.catch_warnings(), _usage_errors_escaped():
                warnings.showwarning = _warn
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except _HANDLED_BY_TYPER:
            raise
        except BrokenPipeError:  # the reader, such as head, has all that it wants
            _silence_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt as error:
            say("\n".join(["sklearn-ape: Interrupted.", *getattr(error, "__notes__", [])]))
            raise typer.Exit(_INTERRUPTED) from None
        except MemoryError:
            say("sklearn-ape: The memory is full. Give fewer images at a time.")
            raise typer.Exit(_FAILED) from None
        except OSError as error:
            named = error.strerror and error.filename is not None
            say(f"sklearn-ape: {f'{error.filename!r}: {error.strerror}' if named else error}")
            raise typer.Exit(_FAILED) from None
        except (ValueError, ImportError, FloatingPointError) as error:
            say(f"sklearn-ape: {error}")
            raise typer.Exit(_FAILED) from None
        except Exception as error:
            if _is_out_of_device_memory(error):
                say(
                    "sklearn-ape: The memory of the device is full. Give --device cpu, or close "
                    "other programs that use the device."
                )
            else:
                say(traceback.format_exc())
                say(
                    f"sklearn-ape: Unexpected error ({type(error).__name__}). This is a bug: "
                    "please report it with the lines above."
                )
            raise typer.Exit(_FAILED) from None


@contextmanager
def noted_when_interrupted(note: str) -> Iterator[None]:
    """Say in addition, when Ctrl-C ends what is inside, what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(note)
        raise


def say(text: str, quiet: bool = False) -> None:
    """Write lines to standard error, where they do not get in the way of results.

    Control characters in names of files, labels and captions are written as escapes, so that a
    terminal does not obey them.
    """
    if not quiet:
        print(escape_controls(text, keep="\n"), file=sys.stderr, flush=True)


@contextmanager
def _usage_errors_escaped() -> Iterator[None]:
    """Escape the messages of typer about wrong options, which may be names of files."""
    try:
        yield
    except _UsageError as error:
        error.message = escape_controls(error.message, keep="\n")
        raise


def _is_out_of_device_memory(error: Exception) -> bool:
    torch = sys.modules.get(
        "torch"
    )  # it is slow to import, and cannot be the cause where it is absent
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"sklearn-ape: Warning: {message}")


def _silence_stdout() -> None:
    """Let what is still buffered go nowhere, lest Python complains at its exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
