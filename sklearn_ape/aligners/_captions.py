"""Tell captions from features, and bad captions from good ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import issparse

_NAMED_IN_ERRORS = 5


def holds_texts(y: Any) -> bool:
    """Say whether y is captions (or lists of captions) rather than numbers."""
    kind = getattr(getattr(y, "dtype", None), "kind", None)
    if issparse(y) or kind in ("f", "i", "u", "b", "c") or not hasattr(y, "__len__"):
        return False
    if hasattr(y, "columns") or getattr(y, "ndim", 1) > 1:
        return False
    return any(_is_text(item) for item in y)


def _is_text(item: Any) -> bool:
    return isinstance(item, str) or (
        isinstance(item, list | tuple | np.ndarray) and any(isinstance(text, str) for text in item)
    )


def holds_pictures(X: Any) -> bool:
    """Say whether X is paths, pictures or bytes rather than features."""
    if not isinstance(X, list | tuple | np.ndarray) or len(X) == 0:
        return hasattr(X, "str") and not hasattr(X, "columns")
    first = X[0]
    return isinstance(first, str | os.PathLike | bytes) or hasattr(first, "getexif")


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
            "Give each picture a text, or leave these pictures out."
        )
    return captions, np.array(rows, dtype=np.intp)
