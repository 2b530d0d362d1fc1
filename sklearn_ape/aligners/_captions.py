"""Tell captions from features, and bad captions from good ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import issparse

from .._sequences import check_sequence
from ..encoders._errors import EncodingError, summary

_NAMED_IN_ERRORS = 5


def plain_sequence(y: Any, name: str = "y") -> Any:
    """Return a column of another library, or a table of texts, as lists; other y as it is.

    Parameters
    ----------
    y : object
        Captions, or features of captions.
    name : str, default="y"
        The parameter, for messages.

    Raises
    ------
    ValueError
        When y is not a sequence, is empty, or is a table whose caption column has to be chosen.
    """
    check_sequence(y, name, "text", "captions or features")
    if getattr(y, "ndim", 1) == 1 and hasattr(y, "__len__") and len(y) == 0:
        raise ValueError(f"{name} is empty: pass a list with at least one text, ['a cat'].")
    if hasattr(y, "to_pylist"):  # pyarrow
        return y.to_pylist()
    if hasattr(y, "to_list") and not hasattr(y, "iloc"):  # polars
        return y.to_list()
    if hasattr(y, "columns"):
        kinds = {getattr(dtype, "kind", "O") for dtype in getattr(y, "dtypes", "O")}
        if kinds <= set("fiub") or np.asarray(y).dtype.kind in "fiub":
            return y
        raise ValueError(
            f"{name} is a table with the columns {list(y.columns)}: pass the one that holds "
            "captions."
        )
    is_table = isinstance(y, np.ndarray) and y.ndim == 2 and y.dtype.kind in "UO"
    if is_table and any(isinstance(text, str) for text in y.flat):
        return y.tolist()
    return y


def holds_texts(y: Any) -> bool:
    """Say whether y is captions (or lists of captions) rather than numbers."""
    kind = getattr(getattr(y, "dtype", None), "kind", None)
    if issparse(y) or kind in ("f", "i", "u", "b", "c") or not hasattr(y, "__len__"):
        return False
    if getattr(y, "ndim", 1) != 1:
        return False
    return any(_is_text(item) for item in y)


def _is_text(item: Any) -> bool:
    return isinstance(item, str) or (
        isinstance(item, list | tuple | np.ndarray) and any(isinstance(text, str) for text in item)
    )


def holds_images(X: Any) -> bool:
    """Say whether X is paths, images or bytes rather than features."""
    if not isinstance(X, list | tuple | np.ndarray) or len(X) == 0:
        return hasattr(X, "str") and not hasattr(X, "columns")
    first = X[0]
    return isinstance(first, str | os.PathLike | bytes | Mapping) or hasattr(first, "getexif")


def flat_captions(y: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    """Return all captions in one list and, for each, the row of y that it stands in.

    Raises
    ------
    ValueError
        When captions are missing, empty or not text; the message names the rows.
    """
    captions: list[str] = []
    rows: list[int] = []
    bad: dict[int, str] = {}
    for row, item in enumerate(y):
        several = list(item) if isinstance(item, list | tuple | np.ndarray) else [item]
        if not several:
            bad[row] = "an empty list of captions"
        for caption in several:
            if not isinstance(caption, str):
                bad[row] = f"{caption!r} is not a text"
            elif not caption.strip():
                bad[row] = f"{caption!r} is an empty caption"
            else:
                captions.append(str(caption))
                rows.append(row)
    if bad:
        named = "\n".join(f"  row {row}: {bad[row]}" for row in sorted(bad)[:_NAMED_IN_ERRORS])
        more = f"\n  and {len(bad) - _NAMED_IN_ERRORS} more" if len(bad) > _NAMED_IN_ERRORS else ""
        raise ValueError(
            f"{len(bad)} of {len(y)} captions cannot be used:\n{named}{more}\n"
            "Give each image a text, or leave these images out."
        )
    return captions, np.array(rows, dtype=np.intp)


def encoded_once(
    encode: Callable[[list[str]], Any], captions: list[str], rows: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Return features of the distinct captions, and the number of each caption among them.

    Raises
    ------
    EncodingError
        When captions cannot be encoded; it names the rows that these stand in.
    """
    unique = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    numbers = np.array([unique[text] for text in captions])
    try:
        return encode(list(unique)), numbers
    except EncodingError as error:
        first = rows[np.unique(numbers, return_index=True)[1]]
        errors = {int(first[number]): said for number, said in error.errors.items()}
        remedy = str(error).rpartition("\n")[2]
        raise EncodingError(summary(errors, "caption") + remedy, errors) from None
