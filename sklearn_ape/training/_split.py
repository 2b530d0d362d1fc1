"""Holding pairs out that share nothing with the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_FEWEST_VALIDATION_GROUPS = 10
_MOST_VALIDATION_GROUPS = 5000


class Split(NamedTuple):
    """Rows of pairs to train on, and to validate on.

    Attributes
    ----------
    train : ndarray of int
        Rows to train on.
    valid : ndarray of int or None
        Rows held out.
    """

    train: np.ndarray
    valid: np.ndarray | None


def split_pairs(pairs: np.ndarray, fraction: float, rng: np.random.RandomState) -> Split:
    """Hold out pairs that share neither image nor caption with the others.

    Parameters
    ----------
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions.
    fraction : float
        Share of the pairs to hold out, in at least 10 and at most 5,000 groups.
    rng : numpy.random.RandomState
        Draws the groups.

    Returns
    -------
    split : Split
        ``valid`` is None when there are too few groups for a recall that means something
        (fewer than 50).

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import split_pairs
    >>> pairs = np.column_stack([np.arange(100), np.arange(100)])
    >>> split = split_pairs(pairs, 0.1, np.random.RandomState(0))
    >>> len(split.train), len(split.valid)
    (90, 10)
    """
    n_images = int(pairs[:, 0].max()) + 1
    n_nodes = n_images + int(pairs[:, 1].max()) + 1
    # As int32, since older versions of scipy find no components, in silence, among int64.
    ends = (pairs[:, 0].astype(np.int32), (pairs[:, 1] + n_images).astype(np.int32))
    graph = coo_array((np.ones(len(pairs), dtype=bool), ends), shape=(n_nodes, n_nodes))
    group = connected_components(graph, directed=False)[1][pairs[:, 0]]
    groups, sizes = np.unique(group, return_counts=True)
    if len(groups) < 5 * _FEWEST_VALIDATION_GROUPS:
        return Split(np.arange(len(pairs)), None)
    # A caption of very many images makes a large group: it stays in training.
    room = max(fraction * len(pairs), float(_FEWEST_VALIDATION_GROUPS))
    chosen: list[int] = []
    for number in rng.permutation(len(groups)):
        if sizes[number] <= room and len(chosen) < _MOST_VALIDATION_GROUPS:
            chosen.append(groups[number])
            room -= sizes[number]
    if len(chosen) < _FEWEST_VALIDATION_GROUPS:
        return Split(np.arange(len(pairs)), None)
    held_out = np.isin(group, chosen)
    return Split(np.flatnonzero(~held_out), np.flatnonzero(held_out))
