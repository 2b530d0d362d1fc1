"""Features that are numbers, but for rows that an encoder gave up, in memory or stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._first_few import first_few
from .._numbers import ignores_underflow
from ..training import StoredRows, row_blocks
from ._pairs import missing_rows


def rows_or_nan(features: np.ndarray, name: str) -> np.ndarray:
    """Let whole rows of NaN pass (what an encoder gave up), refuse any other NaN."""
    partly = np.flatnonzero(_partly(features))
    if partly.size:
        raise ValueError(_contains_nan(name, partly))
    return features


def stored_features(array: np.ndarray, name: str) -> StoredRows:
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
def embedded_where_known(
    features: Any, embed: Callable[[np.ndarray], np.ndarray], width: int
) -> np.ndarray:
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
    known = ~missing_rows(features)
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
        f"{first_few(rows, str)}. Leave these rows out."
    )
