"""Checks of features: dtype, finite values, and rows of NaN for items that failed to encode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

from ..utils.linalg import evenly_spaced
from ..utils.validation import format_list, ignores_underflow
from ..utils.warnings import warn
from .memmap import StoredRows, find_missing_rows, row_blocks

_FLOAT32 = np.finfo(np.float32)


_ROWS_AT_ONCE = 4096


# A row whose numbers are so many times those of the others decides every variance.
_FAR = 1e6


# Float32 has seven digits: below this share of their length, too few are left for differences.
_DROWNED = 1e-4


def as_float32(features: np.ndarray, name: str, look: bool) -> np.ndarray:
    """Return features as float32, of which whole rows may be NaN, and no others.

    Parameters
    ----------
    features : ndarray of shape (n, n_features)
        As `as_floats` returns it. Rows of NaN stay.
    name : str
        For messages.
    look : bool
        Whether to warn of what float32 is too coarse for, or one row decides: for a fit.

    Returns
    -------
    features : ndarray of shape (n, n_features)
        C-contiguous, so that the order in memory decides no rounding.

    Raises
    ------
    ValueError
        When numbers are not finite or beyond float32, or what tells rows apart is lost in it.
    """
    numbers, largest = cast_to_float32(features, name)
    check_finite_rows(numbers, name)
    if look:
        warn_if_ill_conditioned(features, largest, name)
    return numbers


def cast_to_float32(features: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float32, and the largest size of a number of every row.

    Parameters
    ----------
    features : ndarray of shape (n, n_features)
        As `as_floats` returns it; NaN stays.
    name : str
        For messages.

    Returns
    -------
    features : ndarray of shape (n, n_features)
        C-contiguous.
    largest : ndarray of shape (n,)
        NaN for rows with NaN.

    Raises
    ------
    ValueError
        When numbers are infinite, or too large or too small for float32.
    """
    if features.dtype == np.float16:  # of which NumPy computes slowly
        features = features.astype(np.float32)
    largest = _largest(features)
    beyond = np.flatnonzero(largest > _FLOAT32.max)
    if beyond.size:
        raise ValueError(
            f"Input {name} contains infinity or a value too large for float32: {beyond.size} "
            f"rows, the first of them {format_list(beyond, str)}. Leave these rows out, or "
            "multiply all features by a small number."
        )
    below = np.flatnonzero((largest > 0) & (largest < _FLOAT32.tiny))
    if below.size and features.dtype == np.float64:
        raise ValueError(
            f"Input {name} is too small for float32, whose numbers end at 1e-38: {below.size} "
            f"rows, the first of them {format_list(below, str)}. Multiply all features by a large "
            "number."
        )
    return np.ascontiguousarray(features, dtype=np.float32), largest


def _largest(features: np.ndarray) -> np.ndarray:
    """Return the largest size of a number of every row, NaN where there is NaN."""
    largest = np.empty(len(features), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        for rows in gen_batches(len(features), _ROWS_AT_ONCE):
            some = features[rows]
            largest[rows] = np.maximum(some.max(axis=1), -some.min(axis=1))
    return largest


def warn_if_ill_conditioned(features: np.ndarray, largest: np.ndarray, name: str) -> None:
    """Warn of features that are numbers, and yet will teach little.

    Parameters
    ----------
    features : ndarray of shape (n, n_features)
        As `as_floats` returns it.
    largest : ndarray of shape (n,)
        What `cast_to_float32` returns.
    name : str
        For messages.

    Raises
    ------
    ValueError
        When what tells rows apart is lost in float32.
    """
    known = largest[largest > 0]
    if not known.size:
        return
    usual = float(np.median(known))
    far = np.flatnonzero(largest > _FAR * usual)
    if far.size:
        warn(
            f"Input {name} has numbers up to {known.max():.0e} in {far.size} rows, the first of "
            f"them {format_list(far, str)}, and up to {usual:.0e} in most: such rows decide means "
            "and variances alone. Leave them out, or scale every row to length 1.",
        )
    some = features[evenly_spaced(len(features))].astype(np.float64)
    some = some[~np.isnan(some).any(axis=1)]
    if len(some) < 2 or not np.ptp(some, axis=0).any():
        return
    away = some - some.mean(axis=0)
    share = float(np.linalg.norm(away) / np.linalg.norm(some))
    if share >= _DROWNED:
        return
    column = int(np.abs(some.mean(axis=0)).argmax())
    why = (
        f"rows differ by {share:.0e} of their length, most of which feature {column} makes up. "
        f"Subtract the mean of every feature of the training set first, {name} - "
        f"{name}.mean(axis=0)."
    )
    if share < _FLOAT32.eps and (some != some.astype(np.float32)).any():
        raise ValueError(f"What tells the rows of {name} apart is lost in float32: {why}")
    warn(
        f"Float32 is coarse for what tells the rows of {name} apart: {why}",
    )


def check_finite_rows(features: np.ndarray, name: str) -> np.ndarray:
    """Let whole rows of NaN pass (what an encoder gave up), refuse any other NaN."""
    partly = np.flatnonzero(_partly(features))
    if partly.size:
        raise ValueError(_contains_nan(name, partly))
    return features


def check_stored_features(array: np.ndarray, name: str) -> StoredRows:
    """Return rows of an array that stays where it is, after a look at all of them.

    Parameters
    ----------
    array : ndarray of shape (n_rows, n_features)
        Of which `stays_stored` is true.
    name : str
        For messages.

    Returns
    -------
    features : StoredRows
        Knows which rows an encoder gave up.

    Raises
    ------
    ValueError
        When a number is infinite, or is no number; the message names the first rows.
    """
    features = StoredRows(array)
    missing = np.zeros(len(features), dtype=bool)
    partly: list[int] = []
    for rows in row_blocks(features):
        block = features[rows]
        # A sum is a number if all of its terms are, or when some cancel: NaN never does.
        if np.isfinite(block.sum(axis=1, dtype=np.float64)).all():
            continue
        infinite = np.flatnonzero(np.isinf(block).any(axis=1))
        if infinite.size:
            raise ValueError(
                f"Input {name} contains infinity or a value too large for float32: row "
                f"{rows.start + infinite[0]} is the first. Leave such rows out."
            )
        partly += (rows.start + np.flatnonzero(_partly(block))).tolist()
        missing[rows] = np.isnan(block[:, 0])
    if partly:
        raise ValueError(_contains_nan(name, np.array(partly)))
    if missing.any():
        features.missing = missing
    return features


@ignores_underflow
def embed_rows(features: Any, embed: Callable[[np.ndarray], np.ndarray], width: int) -> np.ndarray:
    """Embed the rows that are known, a block at a time if they are stored; others stay NaN.

    Parameters
    ----------
    features : StoredRows or ndarray of shape (n_rows, n_features)
        Rows of NaN are not known.
    embed : callable
        Embeds an array of features.
    width : int
        Of the embeddings.

    Returns
    -------
    embeddings : ndarray of shape (n_rows, width)
        float32, where it is made here.
    """
    known = ~find_missing_rows(features)
    if known.all() and not isinstance(features, StoredRows):
        return embed(features)
    embeddings = np.full((len(features), width), np.nan, dtype=np.float32)
    for rows in row_blocks(features):
        some = rows.start + np.flatnonzero(known[rows])
        if some.size:
            embeddings[some] = embed(features[some])
    return embeddings


def _partly(features: np.ndarray) -> np.ndarray:
    missing = np.isnan(features)
    return missing.any(axis=1) & ~(missing.all(axis=1) & (missing.shape[1] > 1))


def _contains_nan(name: str, rows: np.ndarray) -> str:
    return (
        f"Input {name} contains NaN: {rows.size} rows, the first of them "
        f"{format_list(rows, str)}. Leave these rows out."
    )
