"""Checks and small numerics that the functions of curation share."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils import gen_batches

from .._numbers import as_floats
from .._sequences import check_sequence
from ..aligners._given import look_at, narrowed
from ..aligners._units import unit_rows as scaled_rows

_TILE_BYTES = 2**25


def float_rows(features: Any, name: str, look: bool = False) -> np.ndarray:
    """Return features as float32, NaN among them, refusing what float32 cannot hold."""
    given = as_floats(features, name)
    numbers, largest = narrowed(given, name)
    if look:
        look_at(given, largest, name)
    return numbers


def unit_rows(features: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of length 1, and which rows have a direction at all (no zeros, no NaN)."""
    features = float_rows(features, name)
    scaled = scaled_rows(features)
    return scaled, np.linalg.norm(scaled, axis=1) > 0


def row_tiles(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield slices of rows whose scores with all columns fit in bounded memory."""
    yield from gen_batches(n_rows, max(1, _TILE_BYTES // (4 * max(1, n_columns))))


def checked_groups(groups: Any, n_pairs: int) -> np.ndarray:
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


def check_count(value: Any, name: str, least: int = 1, optional: bool = True) -> None:
    """Raise ValueError unless a parameter is None or an integer of some size."""
    if value is None and optional:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        none = "None or " if optional else ""
        raise ValueError(f"{name} must be {none}an integer >= {least}, not {value!r}.")


def check_range(value: Any, name: str, low: float, high: float, optional: bool = False) -> None:
    """Raise ValueError unless a parameter is a number in [low, high]."""
    if value is None and optional:
        return
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) <= high:
        none = "None or " if optional else ""
        raise ValueError(f"{name} must be {none}a number in [{low:g}, {high:g}], not {value!r}.")
