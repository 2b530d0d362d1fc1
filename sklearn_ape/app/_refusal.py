"""What a visitor is told, and what is kept from them."""

from __future__ import annotations

import logging
import os
import reprlib
import traceback
from collections.abc import Iterable
from pathlib import Path

from .._escape import escape_controls

_log = logging.getLogger("sklearn_ape.app")
_UNEXPECTED = (
    "Something went wrong on the server, not with what you sent; its log says what. "
    "Please try again, or with something smaller."
)
_short = reprlib.Repr()
_short.maxstring = 60


class Refusal(ValueError):
    """A request that cannot be served, with the reason and what to do, for the visitor to read."""


def reason(error: BaseException) -> str:
    """Return what a visitor may read of an error: a refusal's text, else nothing of its inside."""
    if isinstance(error, Refusal):
        return str(error)
    trace = "".join(traceback.format_exception(error))  # with names of a visitor's files
    _log.error("A request failed.\n%s", escape_controls(trace, keep="\n"))
    return _UNEXPECTED


def without_paths(error: BaseException, folder: str | os.PathLike[str]) -> Refusal:
    """Return an error as a refusal that names files relative to the visitor's own folder."""
    text = str(error).strip()
    for root in sorted({str(folder), str(Path(folder).resolve())}, key=len, reverse=True):
        text = text.replace(root + os.sep, "").replace(root, "the zip")
    return Refusal(text)


def quoted(text: str) -> str:
    """Return a visitor's text, short enough for a message."""
    return _short.repr(text)


def some_of(names: Iterable[str], limit: int = 3) -> str:
    """Name the first few, and how many there are if that is more."""
    names = list(names)
    text = ", ".join(map(quoted, names[:limit]))
    return f"{text}, ... ({len(names)} in all)" if len(names) > limit else text
