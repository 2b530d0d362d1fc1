"""Checks of captions, features and groups."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import gen_batches

from ..aligners.pairs import as_sequence, flatten_captions, holds_texts
from ..features.validation import as_float32
from ..utils.linalg import normalize_rows
from ..utils.validation import as_floats, check_sequence


class Captions(NamedTuple):
    """Flat list of captions, as texts or features, and the index of the first caption per row."""

    n_rows: int
    starts: np.ndarray
    texts: list[str] | None
    features: np.ndarray | None

    def select_captions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the captions of rows, and the first position of each row."""
        counts = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        offsets = np.repeat(self.starts[rows] - starts, counts)
        return np.arange(counts.sum()) + offsets, starts


def check_captions(captions: Any) -> Captions:
    """Return valid captions; each row has at least one."""
    captions = as_sequence(captions, "captions")
    if holds_texts(captions):
        texts, rows = flatten_captions(captions)
        counts = np.bincount(rows, minlength=len(captions))
        return Captions(len(captions), np.concatenate([[0], np.cumsum(counts)]), texts, None)
    features = as_float_features(captions, "captions")
    return Captions(len(features), np.arange(len(features) + 1), None, features)


def max_per_row(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return values if len(starts) == len(values) else np.maximum.reduceat(values, starts, axis=0)


_TILE_BYTES = 2**25


def as_float_features(features: Any, name: str, check_conditioning: bool = False) -> np.ndarray:
    """Return features as float32; they may contain NaN."""
    return as_float32(as_floats(features, name), name, check_conditioning, allow_nan=True)


def normalize_valid_rows(features: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return L2-normalized rows, and a mask of the rows that are not zero or NaN."""
    features = as_float_features(features, name)
    normalized = normalize_rows(features)
    return normalized, np.linalg.norm(normalized, axis=1) > 0


def row_tiles(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield slices of rows for which the scores of all columns take at most 32 MiB."""
    yield from gen_batches(n_rows, max(1, _TILE_BYTES // (4 * max(1, n_columns))))


def check_groups(groups: Any, n_pairs: int) -> np.ndarray:
    """Return group numbers from 0, one per pair."""
    check_sequence(groups, "groups", "number")
    groups = np.asarray(groups)
    if groups.shape != (n_pairs,):
        raise ValueError(
            f"groups must have shape ({n_pairs},), one number per pair, not {groups.shape}. Pass "
            "the output of find_near_duplicates."
        )
    return np.unique(groups, return_inverse=True)[1]


def label_codes(values: Iterable[Hashable]) -> np.ndarray:
    """Return an integer code per value, in order of appearance."""
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.intp)
