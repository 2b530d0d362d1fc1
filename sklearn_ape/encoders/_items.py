"""What encoders are given, and where they keep what they make of it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from .._home import default_home


def as_items(X: Any, modality: str) -> list[Any]:
    """Return X as a list of items, refusing what is no sequence of them."""
    single = str | bytes | bytearray | memoryview | PathLike
    if isinstance(X, single) or hasattr(X, "getexif"):
        raise ValueError(f"X is a single {modality}, not a sequence of them: pass a list, [X].")
    if X is None or not hasattr(X, "__len__") or isinstance(X, dict | set | frozenset):
        raise ValueError(
            f"X must be a sequence of {modality}s (a list, an array, a column), not "
            f"{type(X).__name__}."
        )
    columns = getattr(X, "column_names", getattr(X, "columns", None))
    if columns is not None:
        raise ValueError(
            f"X is a table with the columns {list(columns)}: pass the one column that "
            f"holds the {modality}s."
        )
    if getattr(X, "ndim", 1) == 0:
        raise ValueError(f"X must be a sequence of {modality}s, not a single object.")
    items = X.to_pylist() if hasattr(X, "to_pylist") else list(X)  # pyarrow, or any other
    if not items:
        raise ValueError(f"X is empty: 0 {modality}s to encode.")
    return items


def exports_folder(cache: Any) -> Path:
    """Return where exported networks are kept: beside the features, or with the user's caches."""
    folder = getattr(cache, "folder", cache)
    if not isinstance(folder, str | PathLike) or folder == "memory":
        folder = default_home()
    return Path(folder).expanduser() / "engines"
