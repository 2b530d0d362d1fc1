"""Request limits and sessions of the web app, checks of texts, messages, progress callbacks."""

from __future__ import annotations

import copy
import logging
import os
import re
import reprlib
import threading
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from skorch.callbacks import Callback

from ..encoders.items import ItemError
from ..encoders.text_encoder import validate_text
from ..utils.concurrency import LRUCache
from ..utils.files import IMAGE_SUFFIXES
from ..utils.messages import escape_controls
from ..utils.validation import check_integer

_log = logging.getLogger("sklearn_ape.app")

# Visitors whose data are reported as deleted; about 100 bytes each.
_MAX_REMEMBERED_VISITORS = 10_000
# Visitors, most of them without data, whose fields on the page Gradio stores; about 100 kB each.
# Beyond it, Gradio deletes the data of the visitor who was inactive longest.
_MAX_VISITORS = 1_000

_short_repr = reprlib.Repr()
_short_repr.maxstring = 60


class UserError(Exception):
    """A request that cannot be served; the message tells the visitor why and what to do."""


def check_text(text: str, limits: Limits, kind: str) -> None:
    """Raise `UserError` if a text is too long, not valid, or the name of an image file."""
    try:
        validate_text(text)
    except ItemError as error:
        raise UserError(
            f"The {kind} {quote(text)} is an empty text, or not valid Unicode. Enter another text."
        ) from error
    if len(text) > limits.text_length:
        raise UserError(
            f"The {kind} {quote(text)} has {len(text):,} characters; the limit is "
            f"{limits.text_length:,}. Shorten it."
        )
    # Encoders reject the paths of existing files, so that visitors could find out which exist.
    if Path(text).suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"The {kind} {quote(text)} is a file name. Describe an image in words.")


def parse_labels(text: str | None, limits: Limits, known: Sequence[str] = ()) -> list[str]:
    """Return the distinct labels of a text that a visitor entered; raise UserError if invalid.

    The `known` labels may contain separators and repeated spaces. A line with such a label, as
    `join_labels` writes it, is read as the label.
    """
    known_by_line = {_clean_line(label): label for label in known}
    names = _split_names(text or "", known_by_line)
    labels = list(dict.fromkeys(known_by_line.get(name, name) for name in names))
    if not labels:
        raise UserError("There are no labels yet. Enter at least two, such as 'cat, dog, car'.")
    if len(labels) == 1:
        raise UserError(
            f"{quote(labels[0])} is the only label, so its probability would be 100%. Enter at "
            "least two labels."
        )
    if len(labels) > limits.labels:
        raise UserError(
            f"There are {len(labels):,} labels; the limit is {limits.labels:,}. Enter fewer "
            "labels."
        )
    for label in labels:
        check_text(label, limits, "label")
    return labels


def _split_names(text: str, known: Collection[str]) -> list[str]:
    """Return the names in a text, which are separated by commas or semicolons, or one per line.

    Separators at the ends of a line are ignored, and so are list markers if all lines have one and
    none is a `known` name. Lines that are `known` names are not split.
    """
    lines = [line for line in map(_clean_line, re.split(r"\r\n|\r|\n", text)) if line]
    is_list = len(lines) > 1 and all(line.startswith(("- ", "* ", "• ")) for line in lines)
    if is_list and not any(line in known for line in lines):
        lines = [line[2:] for line in lines]
    # One comma in a line may be a part of a name. With two commas, a list of names was continued
    # on another line.
    has_one_per_line = len(lines) > 1 and all(
        line in known or len(re.findall("[,;]", line)) < 2 for line in lines
    )
    names = lines if has_one_per_line else re.split(r"[,;\n]", "\n".join(lines))
    return [name.strip() for name in names if name.strip()]


def join_labels(labels: Sequence[str]) -> str:
    """Return labels as text for the field: one per line if a label contains a separator."""
    labels = [_clean_line(label) for label in labels]  # `parse_labels` finds the known labels
    has_separators = any(mark in label for label in labels for mark in ",;")
    return "\n".join(labels) if has_separators else ", ".join(labels)


def _clean_line(line: str) -> str:
    return " ".join(line.strip(" \t,;").split())


def make_visitor_message(error: BaseException) -> str:
    """Return the text of a `UserError`, or a generic text after logging any other error."""
    if isinstance(error, UserError):
        return str(error)
    # Other errors may contain paths and values of the server, which visitors must not see.
    _log_error(error)
    return "Unexpected error on the server. Try again, or upload a smaller file."


def make_download_message(error: BaseException) -> str:
    """Return why a fitted aligner cannot be downloaded, after logging the error."""
    _log_error(error)
    return (
        "The aligner is in use, but cannot be downloaded, because the server could not store the "
        "file. Ask the person who runs the page to free disk space, then align again."
    )


def _log_error(error: BaseException) -> None:
    """Log the traceback of an error."""
    # It may contain file names of visitors: control characters must not reach a terminal.
    trace = "".join(traceback.format_exception(error))
    _log.error("A request failed.\n%s", escape_controls(trace, keep="\n"))


def hide_folder(error: BaseException, folder: str | os.PathLike[str]) -> UserError:
    """Convert an error to a `UserError` whose file names are relative to the visitor's folder."""
    text = str(error).strip()
    # The longer path first, because it may contain the shorter one.
    for root in sorted({str(folder), str(Path(folder).resolve())}, key=len, reverse=True):
        text = text.replace(root + os.sep, "").replace(root, "the zip")
    return UserError(text)


def quote(text: str) -> str:
    """Return a visitor's text in quotes, shortened for a message."""
    return _short_repr.repr(text)


Progress = Callable[[float, str], None]
"""Called with the completed fraction (0 to 1) and a description of the current step."""


def scale_progress(progress: Progress, start: float, end: float) -> Progress:
    """Return a callback for one stage, which covers the fractions from `start` to `end`."""
    return lambda fraction, step: progress(start + fraction * (end - start), step)


class EpochReporter(Callback):
    """skorch callback that reports the progress of the training."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __deepcopy__(self, memo: dict[int, Any]) -> EpochReporter:
        return self  # the progress callback belongs to the request and cannot be copied

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        row = net.history[-1]
        step = f"Epoch {row['epoch']} of at most {net.max_epochs}, loss {row['train_loss']:.2f}"
        if "valid_recall" in row:
            step += f", recall {row['valid_recall']:.0%}"
        self.progress(row["epoch"] / net.max_epochs, step)


@dataclass(frozen=True)
class Limits:
    """Limits on the requests and uploads of visitors.

    The page "Web app" of the user guide lists what happens beyond each limit.

    Parameters
    ----------
    upload_bytes : int, default=64 MiB
        Maximum size of one uploaded file.
    unpacked_bytes : int, default=256 MiB
        Maximum total size of the unpacked files of a zip file.
    ratio : int, default=200
        Maximum ratio of the unpacked to the compressed size of a file in a zip file. Files of
        up to 1 MiB are exempt.
    files : int, default=4000
        Maximum number of entries of a zip file.
    images : int, default=2000
        Maximum number of images in a zip file.
    pixels : int, default=40,000,000
        Maximum number of pixels of an image.
    labels : int, default=500
        Maximum number of label names.
    corrections : int, default=500
        Maximum number of labelled images by which a visitor corrects predictions.
    text_length : int, default=500
        Maximum number of characters of a label name, a query or a caption.
    request_bytes : int, default=1 MiB
        Maximum size of a request that is not an upload.
    found : int, default=48
        Maximum number of images shown for a search.
    waiting : int, default=64
        Maximum number of waiting requests. Further requests get the status 429.
    at_once : int, default=2
        Number of requests that are processed concurrently. Alignments are processed one at a
        time.
    sessions : int, default=50
        Number of visitors whose aligners and images are stored, about 30 MB each. The data of the
        visitor who was inactive longest are deleted first.
    idle_seconds : int, default=3600
        Time until the data of a session are deleted after their last change, and until an
        uploaded file is deleted.
    stored_bytes : int, default=2 GiB
        Maximum total size of all uploaded files. Further uploads get the status 429.

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
    corrections: int = 500
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
            check_integer(getattr(self, field.name), field.name, 1)


def get_max_visitors(limits: Limits) -> int:
    """Return the number of visitors, with and without data, for whom Gradio stores data."""
    return max(limits.sessions, _MAX_VISITORS)


def format_percent(probability: float) -> str:
    """Return a probability as a rounded percentage, with two digits below 1%."""
    return f"{probability:.0%}" if probability >= 0.01 else f"{100 * probability:.2g}%"


def format_size(n_bytes: int) -> str:
    """Return a size with its unit, such as "64 MiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"


class _HoldersWithData:
    """The holders of visitors with data; beyond a limit, the least recently used are emptied.

    `lock` must be held to change it or a holder. It is shared by all holders, so that a visitor's
    data cannot be deleted between the check of a request and its use of the data.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # By visitor, the least recently used first. Weak, because Gradio deletes the holders of
        # visitors who left or were inactive.
        self._holders: WeakValueDictionary[str, SessionHolder] = WeakValueDictionary()
        self.lock = threading.Lock()

    def mark_as_used(self, visitor: str, holder: SessionHolder) -> None:
        """Store a holder as the last used one, and empty those beyond the limit."""
        self.discard(visitor)  # to move it to the end
        self._holders[visitor] = holder
        for other, excess in list(self._holders.items())[: -self._limit]:
            excess.delete()
            self.discard(other)

    def discard(self, visitor: str) -> None:
        """Forget a visitor without data."""
        self._holders.pop(visitor, None)


class SessionHolder:
    """The current session of a visitor, whose requests may be processed at the same time.

    Gradio copies the initial holder for each visitor. It deletes the copy with the visitor's data,
    and makes another one for the next request.
    """

    def __init__(
        self, initial: Any, limits: Limits, get_visitor: Callable[[], str | None]
    ) -> None:
        self.session = self._initial = initial
        self._limits = limits
        self._get_visitor = get_visitor
        # Both are shared by all copies. The first says whether each visitor has data.
        self._has_data: LRUCache[str, bool] = LRUCache(_MAX_REMEMBERED_VISITORS)
        self._with_data = _HoldersWithData(limits.sessions)
        self._is_new = True
        self._is_deleted = False

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionHolder:
        copied = copy.copy(self)
        copied.session, copied._is_new, copied._is_deleted = self._initial, True, False
        return copied

    def open(self) -> Any:
        """Return the session; raise `UserError` if the visitor's data have been deleted."""
        visitor = self._get_visitor()
        with self._with_data.lock:
            has_data = visitor is not None and bool(self._has_data.get(visitor))
            if self._is_deleted or (self._is_new and has_data):
                self._raise_deleted()
            if has_data:
                assert visitor is not None
                self._with_data.mark_as_used(visitor, self)
            return self.session

    def delete(self) -> None:
        """Delete the data of the visitor, whose next request raises `UserError`."""
        self.session, self._is_deleted = self._initial, True

    def change(self, process: Callable[[Any], Any]) -> None:
        """Process a request by a function that returns a changed session."""
        session = self.open()
        self.update(session, process(session))

    def update(self, before: Any, after: Any) -> None:
        """Apply the changes of a request to the session.

        Requests that were processed at the same time may have changed other fields of it.
        """
        values = vars(after).items()
        changes = {name: value for name, value in values if value is not getattr(before, name)}
        if not changes:
            return
        visitor = self._get_visitor()
        with self._with_data.lock:
            if self._is_deleted:  # during the request
                self._raise_deleted()
            self.session = replace(self.session, **changes)
            self._is_new = False
            if visitor is None:  # programs may send requests without a name
                return
            has_data = self.session != self._initial
            self._has_data.put(visitor, has_data)
            if has_data:
                self._with_data.mark_as_used(visitor, self)
            else:
                self._with_data.discard(visitor)

    def _raise_deleted(self) -> None:
        minutes = max(1, self._limits.idle_seconds // 60)
        raise UserError(
            "Your aligner, images and corrections were deleted, because they had not changed for "
            f"{minutes} minutes, or because more than {self._limits.sessions} visitors have data "
            f"on this page, or more than {get_max_visitors(self._limits):,} have used it. Reload "
            "the page to begin again."
        )
