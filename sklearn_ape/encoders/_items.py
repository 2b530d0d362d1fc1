"""What encoders are given, and where they keep what they make of it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch.utils.data

from .._home import default_home
from .._sequences import check_sequence


def as_items(X: Any, modality: str) -> list[Any]:
    """Return X as a list of items, refusing what is no sequence of them."""
    check_sequence(X, "X", modality)
    if isinstance(X, torch.utils.data.DataLoader):
        raise ValueError(
            f"X is a DataLoader, which yields batches, not a sequence of {modality}s: pass a "
            f"list of the {modality}s of its dataset."
        )
    columns = getattr(X, "column_names", getattr(X, "columns", None))
    if columns is not None:
        raise ValueError(
            f"X is a table with the columns {list(columns)}: pass the one column that "
            f"holds the {modality}s."
        )
    # Only the first item is loaded: the others may be read from a disk one by one.
    if isinstance(X, torch.utils.data.Dataset) and len(X) and isinstance(X[0], tuple):  # type: ignore[arg-type]
        raise ValueError(
            f"X is a data set ({type(X).__name__}) of tuples, not of {modality}s: pass a list of "
            f"the {modality}s alone, [{modality} for {modality}, *_ in X]."
        )
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
