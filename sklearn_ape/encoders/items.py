"""Items to encode: checks of their sequence, and errors about items that cannot be encoded."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.utils.data

from ..utils.validation import check_sequence, format_list, to_list

# Types of the content of a file.
BYTES = bytes | bytearray | memoryview

# Number of reasons that a message lists.
_MAX_REASONS = 5


class ItemError(ValueError):
    """An item cannot be encoded.

    The message is a sentence without its subject, which `describe_item` prepends.
    """


class EncodingError(ValueError):
    """Some items could not be encoded.

    Parameters
    ----------
    message : str
        Message that names the first rows that cannot be encoded.
    errors : dict of {int: str}
        Reasons for the rows that were found before the error was raised, by row. Truncated images
        are found later than files of other formats.
    """

    def __init__(self, message: str, errors: dict[int, str]) -> None:
        super().__init__(message)
        self.errors = errors

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.errors)


class EncodingFailedWarning(UserWarning):
    """Some items could not be encoded; their features are NaN."""


class _ErrorText(str):
    """Message of an error, with the name of the item and the reason as attributes."""

    name: str
    reason: str


def describe_item(item: Any, error: ItemError) -> str:
    """Return the message of an error with the name of the item prepended."""
    name = ""
    # Bytes of a shard have a text `where`; tensors have a method of this name.
    if isinstance(getattr(item, "where", None), str):
        name = item.where
    elif isinstance(item, str | os.PathLike):
        name = repr(str(item)[:200])
    text = _ErrorText(f"{name or _describe_type(item)} {error}")
    text.name, text.reason = name, str(error)
    return text


def _describe_type(item: Any) -> str:
    if isinstance(item, BYTES):
        return f"the {type(item).__name__} object"
    if isinstance(item, np.ndarray):
        return "the array"
    return "the PIL image" if hasattr(item, "getexif") else reprlib.repr(item)


def summarize_errors(errors: Mapping[int, str], modality: str) -> str:
    """Return a message with one line per reason, which lists the rows."""
    rows_by_reason: dict[str, list[int]] = {}
    for row in sorted(errors):
        rows_by_reason.setdefault(getattr(errors[row], "reason", errors[row]), []).append(row)
    groups = list(rows_by_reason.items())
    lines = [_format_reason(errors, reason, rows) for reason, rows in groups[:_MAX_REASONS]]
    n_more = sum(len(rows) for _, rows in groups[_MAX_REASONS:])
    if n_more:
        lines.append(f"  and {n_more} more.")
    plural = "s" if len(errors) > 1 else ""
    return "\n".join([f"{len(errors)} {modality}{plural} cannot be encoded:", *lines, ""])


def _format_reason(errors: Mapping[int, str], reason: str, rows: list[int]) -> str:
    if len(rows) == 1:
        return f"  row {rows[0]}: {errors[rows[0]]}"
    names = list(dict.fromkeys(getattr(errors[row], "name", "") for row in rows))
    if not hasattr(errors[rows[0]], "reason"):  # the text was read from a file of features
        subject = ""
    elif not all(names):
        subject = "each "
    else:
        subject = f"{names[0]} " if len(names) == 1 else f"each of {format_list(names, str)} "
    return f"  rows {format_list(rows, str)} ({len(rows)} in all): {subject}{reason}"


def as_items(X: Any, modality: str) -> list[Any]:
    """Return X as a list of items; raise ValueError unless it is a sequence of them."""
    check_sequence(X, "X", modality)
    if isinstance(X, torch.utils.data.DataLoader):
        raise ValueError(
            f"X is a DataLoader, which yields batches, not a sequence of {modality}s. Pass a "
            f"list of the {modality}s of its dataset."
        )
    columns = getattr(X, "column_names", getattr(X, "columns", None))
    if columns is not None:
        raise ValueError(
            f"X is a table with the columns {format_list(columns)}. Pass the column that contains "
            f"the {modality}s; in a ColumnTransformer, its name as a text, not in a list. If the "
            "columns are features, pass them to an aligner without this encoder."
        )
    # Only the first item is loaded, because loading every item may be slow.
    if isinstance(X, torch.utils.data.Dataset) and len(X) and isinstance(X[0], tuple):  # type: ignore[arg-type]
        raise ValueError(
            f"X is a dataset ({type(X).__name__}) of tuples, not of {modality}s. Pass a list of "
            f"the {modality}s only, [{modality} for {modality}, *_ in X]."
        )
    items = to_list(X)
    if not items:
        raise ValueError(f"X is empty: 0 {modality}s to encode. Pass at least one.")
    return items
