"""Retrieval ranks, recall@k and retrieval reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..utils.concurrency import single_threaded_blas
from ..utils.validation import (
    as_column,
    as_floats,
    as_numeric,
    check_integer,
    check_sequence,
    describe_rows,
)

# A tile of scores fits into the processor's cache.
_TILE_ROWS, _TILE_COLUMNS = 480, 1024

# Sparse matrix products have a constant cost, so their tiles are larger.
_SPARSE_TILE_ROWS = 4 * _TILE_ROWS

# With fewer scores per thread, it takes longer to start the thread than to count.
_MIN_SCORES_PER_THREAD = 2**24

# Scores that differ by less than this many rounding errors are ties. Equal features can have
# unequal scores, as the last bits of embeddings and products depend on the position in a batch.
_TIE_ROUNDINGS = 16


class _Tile(NamedTuple):
    """Scores of a block of queries with a block of candidates.

    `positions` are the rows and columns within the tile of the pairs `pair_indices`.
    """

    rows: slice
    columns: slice
    scores: np.ndarray
    pair_indices: np.ndarray
    positions: tuple[np.ndarray, np.ndarray]


class _Tiles:
    """Tiles of nearly equal size of the matrix of scores.

    Candidates are ordered by their first query, so that only few tiles have pairs. `order` holds
    the candidate of each column of the matrix, and `pair_columns` the column of each pair.

    Tiles are numbered from 0, first down and then to the right. `tile_pairs` holds the indices of
    the pairs in the order of their tiles. Those of a tile begin at ``tile_starts[tile]`` and end
    before ``tile_starts[tile + 1]``.
    """

    def __init__(self, queries: Any, candidates: Any, pairs: np.ndarray) -> None:
        self.queries, self.candidates, self.pairs = queries, candidates, pairs
        self.order = _order_by_first_query(pairs, (len(queries), len(candidates)))
        self.pair_columns = np.argsort(self.order)[pairs[:, 1]]
        is_dense = all(isinstance(side, np.ndarray) for side in (queries, candidates))
        # Products in half precision are slow, and not exact enough for ranks.
        self.dtype = np.result_type(queries, candidates, np.float32) if is_dense else None
        self.row_edges = _split_evenly(len(queries), _TILE_ROWS if is_dense else _SPARSE_TILE_ROWS)
        self.column_edges = _split_evenly(len(candidates), _TILE_COLUMNS)
        self.n_rows, self.n_columns = len(self.row_edges) - 1, len(self.column_edges) - 1
        rows = np.searchsorted(self.row_edges, pairs[:, 0], side="right") - 1
        columns = np.searchsorted(self.column_edges, self.pair_columns, side="right") - 1
        tiles = columns * self.n_rows + rows
        self.tile_pairs = np.argsort(tiles, kind="stable")
        counts = np.bincount(tiles, minlength=self.n_rows * self.n_columns)
        self.tile_starts = np.append(0, np.cumsum(counts))

    def visit(self, every: bool, first: int = 0, step: int = 1) -> Iterator[_Tile]:
        """Yield every tile, or only those with pairs, of every `step`-th column from `first`.

        The scores of a tile are overwritten by the next tile.
        """
        largest = [np.diff(edges).max() for edges in (self.row_edges, self.column_edges)]
        buffer = None if self.dtype is None else np.empty(largest, dtype=self.dtype)
        for number in range(first, self.n_columns, step):
            start, stop = self.column_edges[number : number + 2].tolist()
            top = number * self.n_rows
            if not every and self.tile_starts[top] == self.tile_starts[top + self.n_rows]:
                continue
            columns = self._cast(self.candidates[self.order[start:stop]]).T
            for tile, (low, high) in enumerate(pairwise(self.row_edges.tolist()), top):
                pair_indices = self.tile_pairs[self.tile_starts[tile] : self.tile_starts[tile + 1]]
                if not every and not len(pair_indices):
                    continue
                rows = self._cast(self.queries[low:high])
                if buffer is None:
                    scores = rows @ columns
                else:
                    scores = np.matmul(rows, columns, out=buffer[: high - low, : stop - start])
                if not np.isfinite(scores).all():
                    raise ValueError("Embeddings must be finite, but there is NaN or infinity.")
                positions = (
                    self.pairs[pair_indices, 0] - low,
                    self.pair_columns[pair_indices] - start,
                )
                yield _Tile(slice(low, high), slice(start, stop), scores, pair_indices, positions)

    def _cast(self, embeddings: Any) -> Any:
        if self.dtype is None:
            return embeddings
        return np.asarray(embeddings, dtype=self.dtype)


def _order_by_first_query(pairs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the candidates in the order of their first query; those without one are last."""
    n_queries, n_candidates = shape
    first = np.full(n_candidates, n_queries)
    np.minimum.at(first, pairs[:, 1], pairs[:, 0])
    return np.argsort(first, kind="stable")


def compute_both_ranks(
    queries: Any, candidates: Any, pairs: np.ndarray, both: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of the best positive of each query, and of each candidate if `both`, from 0.

    Embeddings are dense, or of a type that can be sliced, transposed and multiplied. `pairs` are
    the row of the query and the row of the candidate of each positive pair. Candidates that are
    not positives and have the same score, up to rounding, rank before the positive.
    """
    shape = len(queries), len(candidates)
    pairs = check_pairs(pairs, shape)
    keys = np.unique(pairs[:, 0] * shape[1] + pairs[:, 1])  # sorted and without duplicates
    pairs = np.column_stack(np.divmod(keys, max(shape[1], 1)))
    for side in (0, 1) if both else (0,):
        unpaired = np.flatnonzero(np.bincount(pairs[:, side], minlength=shape[side]) == 0)
        if unpaired.size:
            raise ValueError(
                f"pairs has no positive for query {unpaired[0]}. Pass a pair for every query."
            )
    tiles = _Tiles(queries, candidates, pairs)
    # The scores of positives are taken from the same products as the scores that they are compared
    # with. A separate product would be rounded differently, and equal embeddings would not tie.
    positive_scores = np.empty(len(pairs), dtype=np.float64)
    for tile in tiles.visit(every=False):
        positive_scores[tile.pair_indices] = tile.scores[tile.positions]
    best, best_back = np.full(shape[0], -np.inf), np.full(shape[1], -np.inf)
    np.maximum.at(best, pairs[:, 0], positive_scores)
    np.maximum.at(best_back, tiles.pair_columns, positive_scores)
    tie, tie_back = _compute_tie_margins(queries, candidates)
    best -= tie
    best_back -= tie_back[tiles.order]
    best, best_back = (side.astype(tiles.dtype or np.float64) for side in (best, best_back))
    ranks_back = np.zeros(shape[1], np.int64)

    def count(first: int, step: int) -> np.ndarray:
        ranks = np.zeros(shape[0], np.int64)
        for tile in tiles.visit(every=True, first=first, step=step):
            tile.scores[tile.positions] = -np.inf  # positives are not counted
            ranks[tile.rows] += _count(tile.scores >= best[tile.rows, None], axis=1)
            if both:
                is_before = tile.scores >= best_back[tile.columns]
                ranks_back[tile.columns] += _count(is_before, axis=0)
        return ranks

    max_threads = min(tiles.n_columns, shape[0] * shape[1] // _MIN_SCORES_PER_THREAD)
    ranks = _count_in_threads(count, max_threads)
    ranks_by_candidate = np.empty_like(ranks_back)
    ranks_by_candidate[tiles.order] = ranks_back
    return ranks, ranks_by_candidate


def _compute_tie_margins(queries: Any, candidates: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each query and candidate, by how much scores can differ by rounding alone."""
    sides = (queries, candidates)
    if all(isinstance(side, np.ndarray) for side in sides):
        dtype = np.result_type(*sides, np.float32)
        norms = [np.sqrt(np.einsum("ij,ij->i", side, side, dtype=np.float64)) for side in sides]
    else:  # sparse embeddings, which are L2-normalized
        dtype = np.dtype(np.float32)
        norms = [np.ones(len(side)) for side in sides]
    margin = _TIE_ROUNDINGS * float(np.finfo(dtype).eps)
    largest, largest_back = (float(side.max(initial=0)) for side in norms)
    return margin * largest_back * norms[0], margin * largest * norms[1]


def _count(flags: np.ndarray, axis: int) -> np.ndarray:
    # 20 times faster than numpy.count_nonzero. A tile has fewer than 2**16 rows and columns.
    return flags.view(np.uint8).sum(axis=axis, dtype=np.uint16)


def _count_in_threads(count: Callable[[int, int], np.ndarray], max_threads: int) -> np.ndarray:
    """Sum the counts of threads, each of which processes its own columns of tiles.

    BLAS would use several threads for the products only, and count in a single thread.
    """
    if max_threads < 2:
        return count(0, 1)
    with single_threaded_blas() as n_blas_threads:
        n_threads = min(max_threads, n_blas_threads)
        if n_threads < 2:
            return count(0, 1)
        with ThreadPoolExecutor(n_threads) as pool:
            counts = pool.map(count, range(n_threads), [n_threads] * n_threads)
            return np.sum(list(counts), axis=0)


def check_pairs(
    pairs: Any, shape: tuple[int, int], nouns: tuple[str, str] = ("queries", "candidates")
) -> np.ndarray:
    """Return pairs as integers; check that they are rows of `shape` queries and candidates."""
    pairs = np.asarray(as_numeric(pairs, "pairs"))
    if pairs.dtype.kind == "O":  # such as nullable columns of pandas
        with suppress(TypeError, ValueError):
            pairs = pairs.astype(float)
    if pairs.dtype == bool:
        raise ValueError(
            f"pairs is a boolean array of shape {pairs.shape}. Pass row numbers, such as "
            f"np.argwhere(pairs) for a matrix of {nouns[0]} by {nouns[1]}."
        )
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be of shape (n_pairs, 2), not {pairs.shape}.")
    if pairs.dtype.kind == "f":
        invalid = np.flatnonzero(
            (pairs != np.floor(pairs)).any(axis=1) | ~np.isfinite(pairs).all(1)
        )
        if invalid.size:
            raise ValueError(
                f"pairs must be integers, and pair {invalid[0]} is {pairs[invalid[0]].tolist()}. "
                f"Pass row numbers of {nouns[0]} and {nouns[1]}."
            )
    elif pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers, not of type {pairs.dtype}.")
    absent = np.flatnonzero(((pairs < 0) | (pairs >= shape)).any(axis=1))
    if absent.size:
        query, candidate = pairs[absent[0]].astype(object)
        raise ValueError(
            f"pairs has the rows {query:.0f} and {candidate:.0f} in pair {absent[0]}, but there "
            f"are {shape[0]} {nouns[0]} and {shape[1]} {nouns[1]}."
        )
    return pairs.astype(np.int64)


def _split_evenly(n: int, max_size: int) -> np.ndarray:
    """Return the edges of parts of nearly equal size.

    A last part of a single row would be multiplied, and so rounded, in another way.
    """
    n_parts = max(1, -(-n // max_size))
    return np.arange(n_parts + 1) * n // n_parts


# If the largest value of all embeddings is in this range, products neither overflow nor underflow
# in float32. The lower bound is higher than in `utils.linalg`, where it applies to each row,
# because some rows may be much smaller than the largest row.
_LOW, _HIGH = 1e-9, 1e12


def retrieval_ranks(queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Compute the rank of the best positive of each query among the candidates.

    Parameters
    ----------
    queries, candidates : ndarray of shape (n_rows, n_components)
        L2-normalized embeddings of the queries and of the candidates.
    pairs : ndarray of shape (n_pairs, 2)
        Row of the query and row of the candidate of each positive pair.

    Returns
    -------
    ranks : ndarray of shape (n_queries,)
        Number of candidates before the best positive; 0 is the best rank. Ties with candidates
        that are not positives count against the query, so constant embeddings get no hits.

    Raises
    ------
    ValueError
        If a query has no positive, or an embedding is not finite.

    See Also
    --------
    recall_at_k : Compute recall from ranks.
    rank_report : Compute recall and mean ranks in both directions.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import retrieval_ranks
    >>> retrieval_ranks(np.eye(3), np.eye(3), pairs=np.array([[0, 0], [1, 1], [2, 0]]))
    array([0, 0, 2])
    """
    queries, candidates = check_embeddings(queries=queries, candidates=candidates)
    return compute_both_ranks(queries, candidates, pairs, both=False)[0]


def recall_at_k(ranks: Any, k: int) -> float:
    """Compute the fraction of the queries with a positive among the first k candidates.

    Parameters
    ----------
    ranks : array-like of shape (n_queries,)
        Output of `retrieval_ranks`: integers from 0, the best rank.
    k : int
        Number of candidates, at least 1.

    Returns
    -------
    recall : float
        Recall between 0 and 1.

    Raises
    ------
    ValueError
        If `ranks` is empty or has values that are not integers of at least 0, or `k` is not an
        integer of at least 1.

    See Also
    --------
    retrieval_ranks : Compute the ranks.
    bootstrap_interval : Compute a confidence interval from ``ranks < k``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import recall_at_k
    >>> recall_at_k(np.array([0, 3, 7, 20]), k=5)
    0.5
    """
    check_integer(k, "k", 1)
    ranks = as_column(as_numeric(ranks, "ranks"), "ranks")
    if not len(ranks):
        raise ValueError("ranks is empty. Pass one rank per query.")
    if ranks.dtype.kind not in "iuf":
        raise ValueError(
            f"ranks must be numbers, not of type {ranks.dtype}. Pass the output of "
            "retrieval_ranks."
        )
    invalid = np.flatnonzero(~(np.isfinite(ranks) & (ranks >= 0) & (ranks == np.floor(ranks))))
    if invalid.size:
        raise ValueError(
            f"ranks must be integers from 0, and the rank of query {invalid[0]} is "
            f"{ranks[invalid[0]].item()!r}. Pass the output of retrieval_ranks."
        )
    return float(np.mean(ranks < k))


def retrieval_report(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    pairs: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[int, float]]:
    """Compute recall@k in both directions.

    Parameters
    ----------
    image_embeddings, text_embeddings : ndarray of shape (n_rows, n_components)
        L2-normalized embeddings, one row per distinct image and per distinct caption.
    pairs : ndarray of shape (n_pairs, 2)
        Row of the image and row of the caption of each positive pair. Any positive is a hit.
    ks : sequence of int, default=(1, 5, 10)
        Values of k.

    Returns
    -------
    recall : dict
        ``{"image_to_text": {k: recall}, "text_to_image": {k: recall}}``.

    Raises
    ------
    ValueError
        If a query has no positive, or an embedding is not finite.

    See Also
    --------
    rank_report : Report that also has mean and median ranks.
    retrieval_ranks : Ranks from which recall is computed.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import retrieval_report
    >>> pairs = np.column_stack([np.arange(4), np.arange(4)])
    >>> retrieval_report(np.eye(4), np.eye(4)[[0, 1, 3, 2]], pairs, ks=[1, 2])["image_to_text"]
    {1: 0.5, 2: 0.5}
    """
    report = rank_report(image_embeddings, text_embeddings, pairs, ks)
    return {name: {k: scores[f"recall@{k}"] for k in ks} for name, scores in report.items()}


def rank_report(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    pairs: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """Compute recall@k, mean, median and mean reciprocal rank in both directions.

    Parameters
    ----------
    image_embeddings, text_embeddings : ndarray of shape (n_rows, n_components)
        L2-normalized embeddings, one row per distinct image and per distinct caption.
    pairs : ndarray of shape (n_pairs, 2)
        Row of the image and row of the caption of each positive pair. The best positive counts.
    ks : sequence of int, default=(1, 5, 10)
        Values of k.

    Returns
    -------
    report : dict
        For ``"image_to_text"`` and ``"text_to_image"`` a dict of ``"recall@k"`` for each k,
        ``"mean_rank"``, ``"median_rank"`` and ``"mean_reciprocal_rank"``. Here ranks are counted
        from 1, as in papers. They increase with the number of candidates.

    Raises
    ------
    ValueError
        If a query has no positive, or an embedding is not finite.

    See Also
    --------
    retrieval_report : Report of recall only, with k as keys.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.metrics import rank_report
    >>> pairs = np.column_stack([np.arange(4), np.arange(4)])
    >>> rank_report(np.eye(4), np.eye(4)[[0, 1, 3, 2]], pairs, ks=[1])["image_to_text"]
    {'recall@1': 0.5, 'mean_rank': 2.5, 'median_rank': 2.5, 'mean_reciprocal_rank': 0.625}
    """
    images, texts = check_embeddings(
        image_embeddings=image_embeddings, text_embeddings=text_embeddings
    )
    check_sequence(ks, "ks", "integer")
    report = {}
    both_ranks = compute_both_ranks(images, texts, pairs)
    for name, ranks in zip(("image_to_text", "text_to_image"), both_ranks, strict=True):
        report[name] = {f"recall@{k}": recall_at_k(ranks, k) for k in ks} | {
            "mean_rank": float(np.mean(ranks + 1)),
            "median_rank": float(np.median(ranks + 1)),
            "mean_reciprocal_rank": float(np.mean(1 / (ranks + 1))),
        }
    return report


def check_embeddings(**embeddings: Any) -> list[np.ndarray]:
    """Return embeddings of one space as floats whose products neither overflow nor underflow."""
    sides = [_check_side(side, name) for name, side in embeddings.items()]
    widths = [side.shape[1] for side in sides]
    if widths[0] != widths[1]:
        first, second = embeddings
        raise ValueError(
            f"{first} has {widths[0]} components, and {second} has {widths[1]}. Pass embeddings "
            "of one space, not features."
        )
    return sides


def _check_side(embeddings: Any, name: str) -> np.ndarray:
    """Return embeddings as floats whose products neither overflow nor underflow."""
    rows = as_floats(embeddings, name)
    with np.errstate(invalid="ignore"):
        largest = float(max(rows.max(), -rows.min()))
    if not np.isfinite(largest):
        invalid = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        raise ValueError(
            f"{name} must be finite, but has NaN or infinity in {describe_rows(invalid)}. Remove "
            "such rows."
        )
    if _LOW < largest < _HIGH:
        return rows
    # Scaling by a power of two is exact, so ranks do not change.
    return np.ldexp(rows, -int(np.frexp(largest)[1]))
