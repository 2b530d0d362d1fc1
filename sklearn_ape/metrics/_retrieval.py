"""Retrieval metrics with any number of positives, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import column_or_1d

from .._first_few import first_few
from .._numbers import as_floats, plain_numbers
from ._checks import check_count
from ._ranks import ranks_of_both

# Products of numbers between these, and their sums, are numbers of float32.
_LEAST, _MOST = 1e-9, 1e12


def retrieval_ranks(queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Rank of the best positive of every query among the candidates; 0 is the best rank.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, n_components)
        Embeddings of length 1.
    candidates : ndarray of shape (n_candidates, n_components)
        Embeddings of length 1.
    pairs : ndarray of shape (n_pairs, 2)
        Rows of queries and of candidates that belong together, its positives.

    Returns
    -------
    ranks : ndarray of shape (n_queries,)
        How many candidates come before the best positive. A tie with a candidate that is no
        positive counts against the query, so that equal embeddings are not called right.

    Raises
    ------
    ValueError
        When a query has no positive, or an embedding is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import retrieval_ranks
    >>> retrieval_ranks(np.eye(3), np.eye(3), pairs=np.array([[0, 0], [1, 1], [2, 0]]))
    array([0, 0, 2])
    """
    queries, candidates = _rows(queries, "queries"), _rows(candidates, "candidates")
    return ranks_of_both(queries, candidates, pairs, both=False)[0]


def recall_at_k(ranks: Any, k: int) -> float:
    """Share of the queries with a positive among the first k.

    Parameters
    ----------
    ranks : array-like of shape (n_queries,)
        What `retrieval_ranks` returns: integers, of which 0 is the best.
    k : int
        At least 1.

    Returns
    -------
    recall : float
        Between 0 and 1.

    Raises
    ------
    ValueError
        When `ranks` is empty or holds anything else than integers of at least 0, or `k` is not an
        integer of at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import recall_at_k
    >>> recall_at_k(np.array([0, 3, 7, 20]), k=5)
    0.5
    """
    check_count(k, "k")
    ranks = column_or_1d(plain_numbers(ranks, "ranks"))
    if not len(ranks):
        raise ValueError("ranks is empty, so recall is not defined. Pass one rank per query.")
    if ranks.dtype.kind not in "iuf":
        raise ValueError(
            f"ranks must be numbers, not of type {ranks.dtype}. Pass what retrieval_ranks returns."
        )
    broken = np.flatnonzero(~(np.isfinite(ranks) & (ranks >= 0) & (ranks == np.floor(ranks))))
    if broken.size:
        raise ValueError(
            f"The rank of query {broken[0]} is {ranks[broken[0]].item()!r}. Ranks are integers "
            "that count from 0: pass what retrieval_ranks returns."
        )
    return float(np.mean(ranks < k))


def retrieval_report(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    pairs: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[int, float]]:
    """Recall@k in both directions.

    Parameters
    ----------
    image_embeddings : ndarray of shape (n_images, n_components)
        One row a distinct image, of length 1.
    text_embeddings : ndarray of shape (n_texts, n_components)
        One row a distinct caption, of length 1.
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions that belong together; a hit on any of them counts.
    ks : sequence of int, default=(1, 5, 10)
        Where recall is taken.

    Returns
    -------
    recall : dict
        ``{"image_to_text": {k: recall}, "text_to_image": {k: recall}}``.

    See Also
    --------
    rank_report : Mean and median ranks as well.
    retrieval_ranks : The ranks that recall is taken from.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import retrieval_report
    >>> pairs = np.column_stack([np.arange(4), np.arange(4)])
    >>> retrieval_report(np.eye(4), np.eye(4)[[0, 1, 3, 2]], pairs, ks=[1, 2])["image_to_text"]
    {1: 0.5, 2: 0.5}
    """
    by_image, by_text = ranks_of_both(
        _rows(image_embeddings, "image_embeddings"),
        _rows(text_embeddings, "text_embeddings"),
        pairs,
    )
    return {
        "image_to_text": {k: recall_at_k(by_image, k) for k in ks},
        "text_to_image": {k: recall_at_k(by_text, k) for k in ks},
    }


def rank_report(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    pairs: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """Recall@k, mean, median and mean reciprocal rank in both directions.

    Parameters
    ----------
    image_embeddings : ndarray of shape (n_images, n_components)
        One row a distinct image, of length 1.
    text_embeddings : ndarray of shape (n_texts, n_components)
        One row a distinct caption, of length 1.
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions that belong together; the best of them gives the rank.
    ks : sequence of int, default=(1, 5, 10)
        Where recall is taken.

    Returns
    -------
    report : dict
        For ``"image_to_text"`` and ``"text_to_image"`` a dict with ``"recall@k"`` for every k,
        ``"mean_rank"``, ``"median_rank"`` and ``"mean_reciprocal_rank"``. Ranks count from 1
        here, as papers give them, and grow with the number of candidates.

    Raises
    ------
    ValueError
        When a query has no positive, or an embedding is not finite.

    See Also
    --------
    retrieval_report : Recall alone, with k as keys.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import rank_report
    >>> pairs = np.column_stack([np.arange(4), np.arange(4)])
    >>> rank_report(np.eye(4), np.eye(4)[[0, 1, 3, 2]], pairs, ks=[1])["image_to_text"]
    {'recall@1': 0.5, 'mean_rank': 2.5, 'median_rank': 2.5, 'mean_reciprocal_rank': 0.625}
    """
    by_image, by_text = ranks_of_both(
        _rows(image_embeddings, "image_embeddings"),
        _rows(text_embeddings, "text_embeddings"),
        pairs,
    )
    return {
        name: {f"recall@{k}": recall_at_k(ranks, k) for k in ks}
        | {
            "mean_rank": float(np.mean(ranks + 1)),
            "median_rank": float(np.median(ranks + 1)),
            "mean_reciprocal_rank": float(np.mean(1 / (ranks + 1))),
        }
        for name, ranks in (("image_to_text", by_image), ("text_to_image", by_text))
    }


def _rows(embeddings: Any, name: str) -> np.ndarray:
    """Return embeddings as floats whose products are numbers, too."""
    rows = as_floats(embeddings, name)
    with np.errstate(invalid="ignore"):
        largest = float(max(rows.max(), -rows.min()))
    if not np.isfinite(largest):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        raise ValueError(
            f"Embeddings must be finite: {name} contains NaN or infinity in {bad.size} rows, the "
            f"first of them {first_few(bad, str)}."
        )
    if largest == 0 or _LEAST < largest < _MOST:
        return rows
    # A factor that is a power of two changes no rank.
    return np.ldexp(rows, -int(np.frexp(largest)[1]))
