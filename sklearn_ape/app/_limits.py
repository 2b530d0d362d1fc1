"""Request limits of the web app, errors for the user, and progress."""

from __future__ import annotations

import logging
import os
import reprlib
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from ..utils.escape import escape_controls

__all__ = ["Limits"]


def check_text(text: str, limits: Limits, what: str) -> None:
    """Refuse a text that is too long."""
    if len(text) > limits.text_length:
        raise UserError(
            f"The {what} {quoted(text)} has {len(text):,} characters; the limit is "
            f"{limits.text_length:,}. Shorten it."
        )


_log = logging.getLogger("sklearn_ape.app")


_UNEXPECTED = (
    "Something went wrong on the server, not with what you sent; its log says what. "
    "Please try again, or with something smaller."
)


_short = reprlib.Repr()


_short.maxstring = 60


class UserError(ValueError):
    """A request that cannot be served, with the reason and what to do, for the visitor to read."""


def reason(error: BaseException) -> str:
    """Return what a visitor may read of an error: a refusal's text, else nothing of its inside."""
    if isinstance(error, UserError):
        return str(error)
    trace = "".join(traceback.format_exception(error))  # with names of a visitor's files
    _log.error("A request failed.\n%s", escape_controls(trace, keep="\n"))
    return _UNEXPECTED


def without_paths(error: BaseException, folder: str | os.PathLike[str]) -> UserError:
    """Return an error as a refusal that names files relative to the visitor's own folder."""
    text = str(error).strip()
    for root in sorted({str(folder), str(Path(folder).resolve())}, key=len, reverse=True):
        text = text.replace(root + os.sep, "").replace(root, "the zip")
    return UserError(text)


def quoted(text: str) -> str:
    """Return a visitor's text, short enough for a message."""
    return _short.repr(text)


def some_of(names: Iterable[str], limit: int = 3) -> str:
    """Name the first few, and how many there are if that is more."""
    names = list(names)
    text = ", ".join(map(quoted, names[:limit]))
    return f"{text}, ... ({len(names)} in all)" if len(names) > limit else text


Report = Callable[[float, str], None]
"""Told of the share done, from 0 to 1, and what is being done."""


def no_report(share: float, what: str) -> None:
    """Tell nobody."""


def part(report: Report, start: float, end: float) -> Report:
    """Return what reports a part of the whole.

    >>> part(lambda share, what: print(share, what), 0.5, 1)(0.5, "half of the second half")
    0.75 half of the second half
    """
    return lambda share, what: report(start + share * (end - start), what)


@dataclass(frozen=True)
class Limits:
    """Bounds on what visitors of the page may send; more is refused with the reason.

    Parameters
    ----------
    upload_bytes : int, default=64 MiB
        Size of one uploaded file.
    unpacked_bytes : int, default=256 MiB
        Size of all files of a zip together, unpacked.
    ratio : int, default=200
        How many times a packed file of more than 1 MiB may grow when it is unpacked.
    files : int, default=4000
        Entries of a zip.
    images : int, default=2000
        Images of a collection, or of a set to align on.
    pixels : int, default=40,000,000
        Width times height of an image.
    labels : int, default=500
        Names to choose from.
    text_length : int, default=500
        Characters of a name, a sentence or a caption.
    request_bytes : int, default=1 MiB
        Size of a request that is not an upload.
    found : int, default=48
        Images shown for a search.
    waiting : int, default=64
        Requests that wait; further ones are told to come again later.
    at_once : int, default=2
        Requests that are worked on at the same time. Alignments are one at a time.
    sessions : int, default=50
        Visitors whose own aligner and collection are kept; the longest unseen go first. One takes
        up to some 30 MB.
    idle_seconds : int, default=3600
        How long they are kept after their last change, and uploaded files at all.
    stored_bytes : int, default=2 GiB
        Size of all uploaded files together; further ones are told to come again later.

    Examples
    --------
    >>> from sklearn_ape.app import Limits
    >>> Limits(labels=50).labels
    50
    """

    upload_bytes: int = 64 * 2**20
    unpacked_bytes: int = 256 * 2**20
    ratio: int = 200
    files: int = 4_000
    images: int = 2_000
    pixels: int = 40_000_000
    labels: int = 500
    text_length: int = 500
    request_bytes: int = 2**20
    found: int = 48
    waiting: int = 64
    at_once: int = 2
    sessions: int = 50
    idle_seconds: int = 3600
    stored_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Limits: {field.name} must be an integer >= 1, not {value!r}.")


def in_words(n_bytes: int) -> str:
    """Return a size as people write it.

    >>> in_words(64 * 2**20), in_words(1536)
    ('64 MiB', '1.5 KiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"
