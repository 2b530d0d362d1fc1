"""Checks of the inputs of curation."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils import gen_batches

from ..aligners.pairs import as_sequence, flatten_captions, holds_texts
from ..features.validation import cast_to_float32, warn_if_ill_conditioned
from ..utils.linalg import normalize_rows
from ..utils.validation import as_floats, check_sequence


class CaptionRows(NamedTuple):
    """All captions in one list, and where those of each row begin."""

    n_rows: int
    starts: np.ndarray
    texts: list[str] | None
    features: np.ndarray | None

    def captions_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the captions of some rows, and where each row's begin."""
        counts = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        shift = np.repeat(self.starts[rows] - starts, counts)
        return np.arange(counts.sum()) + shift, starts


def caption_rows(captions: Any) -> CaptionRows:
    """Check captions; every row has at least one."""
    captions = as_sequence(captions, "captions")
    if holds_texts(captions):
        texts, rows = flatten_captions(captions)
        counts = np.bincount(rows, minlength=len(captions))
        return CaptionRows(len(captions), np.concatenate([[0], np.cumsum(counts)]), texts, None)
    features = float_rows(captions, "captions")
    return CaptionRows(len(features), np.arange(len(features) + 1), None, features)


def max_by_row(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the highest values of each row's captions."""
    return values if len(starts) == len(values) else np.maximum.reduceat(values, starts, axis=0)


_TILE_BYTES = 2**25


def float_rows(features: Any, name: str, look: bool = False) -> np.ndarray:
    """Return features as float32, NaN among them, refusing what float32 cannot hold."""
    given = as_floats(features, name)
    numbers, largest = cast_to_float32(given, name)
    if look:
        warn_if_ill_conditioned(given, largest, name)
    return numbers


def normalize_known_rows(features: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of length 1, and which rows have a direction at all (no zeros, no NaN)."""
    features = float_rows(features, name)
    scaled = normalize_rows(features)
    return scaled, np.linalg.norm(scaled, axis=1) > 0


def row_tiles(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield slices of rows whose scores with all columns fit in bounded memory."""
    yield from gen_batches(n_rows, max(1, _TILE_BYTES // (4 * max(1, n_columns))))


def check_groups(groups: Any, n_pairs: int) -> np.ndarray:
    """Return group numbers from 0 on, one a pair."""
    check_sequence(groups, "groups", "number")
    groups = np.asarray(groups)
    if groups.shape != (n_pairs,):
        raise ValueError(
            f"groups must have one entry for each of the {n_pairs} pairs, as find_near_duplicates "
            f"returns it, but has the shape {groups.shape}."
        )
    return np.unique(groups, return_inverse=True)[1]


def joined_groups(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Put rows together that share a group in either of two groupings."""
    n_groups = int(first.max()) + 1
    size = n_groups + int(second.max()) + 1
    # As int32, since older versions of scipy find no components, in silence, among int64.
    ends = (first.astype(np.int32), (n_groups + second).astype(np.int32))
    graph = coo_array((np.ones(len(first)), ends), shape=(size, size))
    return connected_components(graph, directed=False)[1][first]


def distinct(values: Iterable[Hashable]) -> np.ndarray:
    """Return the number of each value among the distinct ones, in order of appearance."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.intp)
