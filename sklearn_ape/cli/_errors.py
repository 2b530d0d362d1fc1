"""What a command does when it cannot go on: a message without a traceback, and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["Commands", "noted_when_interrupted", "say"]

_FAILED, _INTERRUPTED = 1, 130


class Commands(TyperGroup):
    """A group of commands whose errors, when a user can act on them, are one message."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        # Names of files may hold bytes that are no text; they go out as they came in.
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError):
                stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except BrokenPipeError:  # the reader, such as head, has all that it wants
            _silence_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt as error:
            say("\n".join(["sklearn-ape: Interrupted.", *getattr(error, "__notes__", [])]))
            raise typer.Exit(_INTERRUPTED) from None
        except MemoryError:
            say("sklearn-ape: The memory is full. Give fewer pictures at a time.")
            raise typer.Exit(_FAILED) from None
        except OSError as error:
            named = error.strerror and error.filename is not None
            say(f"sklearn-ape: {f'{error.filename!r}: {error.strerror}' if named else error}")
            raise typer.Exit(_FAILED) from None
        except (ValueError, ImportError) as error:
            say(f"sklearn-ape: {error}")
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
    """Write a line to standard error, where it does not get in the way of results."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"sklearn-ape: Warning: {message}")


def _silence_stdout() -> None:
    """Let what is still buffered go nowhere, lest Python complains at its exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
