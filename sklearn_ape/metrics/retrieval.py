"""Ranks of retrieved items, recall@k and the retrieval report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import column_or_1d
from threadpoolctl import ThreadpoolController

from ..utils.validation import as_floats, as_numeric, check_integer, format_list

# A tile of scores stays near the processor. Flags are counted in bytes, many times as fast as in
# integers, so fewer than 256 at a time: rows by 240, and of the columns every eighth.
_ROWS, _COLUMNS = 480, 1024


_IN_A_BYTE = 240


# Of embeddings that are no arrays (sparse ones), whose every product has a cost of its own.
_OTHER_ROWS = 4 * _ROWS


# With fewer scores than this, threads of one's own are not worth their start.
_SCORES_A_THREAD = 2**24


# Scores whose difference is below this many rounding errors are a tie. Equal features need not
# have equal scores: the last bits of embeddings and products depend on their place in a batch.
_TIE_ROUNDINGS = 16


class _Tile(NamedTuple):
    """Scores of some queries with some candidates, and where the pairs among them are.

    `numbers` are those of the pairs; `at` are their places within the tile.
    """

    rows: slice
    columns: slice
    scores: np.ndarray
    numbers: np.ndarray
    at: tuple[np.ndarray, np.ndarray]


class _Tiles:
    """Cuts the scores into tiles of nearly equal size.

    Candidates are taken in the order of their first query, so that few tiles hold pairs.
    """

    def __init__(self, queries: Any, candidates: Any, pairs: np.ndarray) -> None:
        self.queries, self.candidates, self.pairs = queries, candidates, pairs
        first = np.full(len(candidates), len(queries))
        np.minimum.at(first, pairs[:, 1], pairs[:, 0])
        self.order = np.argsort(first, kind="stable")
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(candidates))
        self.places = place[pairs[:, 1]]
        dense = all(isinstance(side, np.ndarray) for side in (queries, candidates))
        # Products of half precision are slow, and coarser than ranks should be.
        self.dtype = np.result_type(queries, candidates, np.float32) if dense else None
        self.row_edges = _edges(len(queries), _ROWS if dense else _OTHER_ROWS)
        self.column_edges = _edges(len(candidates), _COLUMNS)
        self.n_rows = len(self.row_edges) - 1
        tile_of_pair = (
            np.searchsorted(self.column_edges, self.places, side="right") - 1
        ) * self.n_rows + (np.searchsorted(self.row_edges, pairs[:, 0], side="right") - 1)
        self.by_tile = np.argsort(tile_of_pair, kind="stable")
        n_tiles = self.n_rows * self.n_columns
        self.pair_edges = np.searchsorted(tile_of_pair[self.by_tile], np.arange(n_tiles + 1))

    @property
    def largest(self) -> tuple[int, int]:
        """Rows and columns of the largest tile."""
        return int(np.diff(self.row_edges).max()), int(np.diff(self.column_edges).max())

    @property
    def n_columns(self) -> int:
        """How many tiles stand beside each other."""
        return len(self.column_edges) - 1

    def visit(self, every: bool, first: int = 0, step: int = 1) -> Iterator[_Tile]:
        """Yield tiles, all or only those with pairs. Scores hold until the next one.

        Parameters
        ----------
        every : bool
            Whether tiles without pairs are wanted, too.
        first, step : int, default=0 and 1
            Which columns of tiles.

        Raises
        ------
        ValueError
            When a score is not finite.
        """
        buffer = None
        if self.dtype is not None:
            buffer = np.empty(self.largest, dtype=self.dtype)
        for number in range(first, self.n_columns, step):
            start, stop = self.column_edges[number : number + 2].tolist()
            top = number * self.n_rows
            if not every and self.pair_edges[top] == self.pair_edges[top + self.n_rows]:
                continue
            columns = self._of_dtype(self.candidates[self.order[start:stop]]).T
            for tile, (low, high) in enumerate(_neighbours(self.row_edges), top):
                numbers = self.by_tile[self.pair_edges[tile] : self.pair_edges[tile + 1]]
                if not every and not len(numbers):
                    continue
                rows = self._of_dtype(self.queries[low:high])
                if buffer is None:
                    scores = rows @ columns
                else:
                    scores = np.matmul(rows, columns, out=buffer[: high - low, : stop - start])
                if not np.isfinite(scores).all():
                    raise ValueError("Embeddings must be finite: there are NaN or infinite ones.")
                at = self.pairs[numbers, 0] - low, self.places[numbers] - start
                yield _Tile(slice(low, high), slice(start, stop), scores, numbers, at)

    def _of_dtype(self, embeddings: Any) -> Any:
        if self.dtype is None:
            return embeddings
        return np.asarray(embeddings, dtype=self.dtype)


def compute_both_ranks(
    queries: Any, candidates: Any, pairs: np.ndarray, both: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the best positive of every query, and of every candidate among the queries.

    Parameters
    ----------
    queries : array of shape (n_queries, n_components)
        Embeddings, dense or of any kind that can be sliced, transposed and multiplied.
    candidates : array of shape (n_candidates, n_components)
        The same.
    pairs : array of shape (n_pairs, 2)
        Rows of both that belong together.
    both : bool, default=True
        With False the ranks of candidates are not counted, and all 0.

    Returns
    -------
    ranks : ndarray of shape (n_queries,)
        From 0. A candidate that is not a positive and whose score is the same, up to rounding,
        counts as coming before the positive.
    ranks_back : ndarray of shape (n_candidates,)
        The same the other way.

    Raises
    ------
    ValueError
        When one has no positive, a pair names no row, or an embedding is not finite.
    """
    shape = len(queries), len(candidates)
    pairs = _distinct(pairs, shape)
    for side in (0, 1) if both else (0,):
        lonely = np.flatnonzero(np.bincount(pairs[:, side], minlength=shape[side]) == 0)
        if lonely.size:
            raise ValueError(f"Query {lonely[0]} has no positive among the candidates.")
    tiles = _Tiles(queries, candidates, pairs)
    # What a positive scores is read off the same kind of product as what it is compared with:
    # a product of its own would differ by rounding, and equal embeddings would be no tie.
    scored = np.empty(len(pairs), dtype=np.float64)
    for tile in tiles.visit(every=False):
        scored[tile.numbers] = tile.scores[tile.at]
    best, best_back = np.full(shape[0], -np.inf), np.full(shape[1], -np.inf)
    np.maximum.at(best, pairs[:, 0], scored)
    np.maximum.at(best_back, tiles.places, scored)
    tie, tie_back = _tie_margins(queries, candidates)
    best -= tie
    best_back -= tie_back[tiles.order]
    best, best_back = (side.astype(tiles.dtype or np.float64) for side in (best, best_back))
    ranks_back = np.zeros(shape[1], np.int64)

    def count(first: int, step: int) -> np.ndarray:
        ranks = np.zeros(shape[0], np.int64)
        n_rows, n_columns = tiles.largest
        flags = np.zeros((n_rows, 8 * (n_columns // 8 + 1)), dtype=bool)
        for tile in tiles.visit(every=True, first=first, step=step):
            tile.scores[tile.at] = -np.inf  # positives are not counted
            height, width = tile.scores.shape
            some = flags[:height, :width]
            flags[:height, width:] = False
            np.greater_equal(tile.scores, best[tile.rows, None], out=some)
            ranks[tile.rows] += _rows_counted(flags[:height])
            if both:
                np.greater_equal(tile.scores, best_back[tile.columns], out=some)
                ranks_back[tile.columns] += _columns_counted(some)
        return ranks

    ranks = _shared_out(count, min(tiles.n_columns, shape[0] * shape[1] // _SCORES_A_THREAD))
    in_order = np.empty_like(ranks_back)
    in_order[tiles.order] = ranks_back
    return ranks, in_order


def _tie_margins(queries: Any, candidates: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return for every query, and every candidate, how far scores differ by rounding alone."""
    sides = (queries, candidates)
    if all(isinstance(side, np.ndarray) for side in sides):
        dtype = np.result_type(*sides, np.float32)
        lengths = [np.sqrt(np.einsum("ij,ij->i", side, side, dtype=np.float64)) for side in sides]
    else:  # sparse embeddings, which are L2-normalized
        dtype = np.dtype(np.float32)
        lengths = [np.ones(len(side)) for side in sides]
    margin = _TIE_ROUNDINGS * float(np.finfo(dtype).eps)
    longest, longest_back = (float(side.max(initial=0)) for side in lengths)
    return margin * longest_back * lengths[0], margin * longest * lengths[1]


def _rows_counted(flags: np.ndarray) -> np.ndarray:
    """Return how many of every row are set: each of the eight bytes of a word has its sum."""
    sums = flags.view(np.uint64).sum(axis=1)
    return sums[:, None].view(np.uint8).sum(axis=1, dtype=np.int64)


def _columns_counted(flags: np.ndarray) -> np.ndarray:
    """Return how many of every column are set."""
    counts = np.zeros(flags.shape[1], np.int64)
    for start in range(0, len(flags), _IN_A_BYTE):
        some = flags[start : start + _IN_A_BYTE].view(np.uint8)
        counts += some.sum(axis=0, dtype=np.uint8)
    return counts


def _shared_out(count: Callable[[int, int], np.ndarray], most: int) -> np.ndarray:
    """Add up what threads return, each for its columns of tiles.

    Only the product would be shared out otherwise, and the counting be left to one thread.
    """
    blas = ThreadpoolController().select(user_api="blas") if most > 1 else None
    known = [library["num_threads"] for library in blas.info()] if blas else []
    n_threads = min(most, max(known, default=1))
    if blas is None or n_threads < 2:
        return count(0, 1)
    with blas.limit(limits=1), ThreadPoolExecutor(n_threads) as pool:
        counted = pool.map(count, range(n_threads), [n_threads] * n_threads)
        return np.sum(list(counted), axis=0)


def _distinct(pairs: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the pairs sorted and without duplicates.

    Raises
    ------
    ValueError
        When they are not integers, or a row does not exist.
    """
    pairs = np.asarray(as_numeric(pairs, "pairs"))
    if pairs.dtype == bool:
        raise ValueError(
            f"pairs is a boolean array of shape {pairs.shape}. Pass the rows that belong "
            "together, such as np.argwhere(pairs) for a matrix of queries by candidates."
        )
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be of shape (n_pairs, 2), not {pairs.shape}.")
    if pairs.dtype.kind == "f":
        broken = np.flatnonzero(
            (pairs != np.floor(pairs)).any(axis=1) | ~np.isfinite(pairs).all(1)
        )
        if broken.size:
            raise ValueError(
                f"pairs must be integers, and pair {broken[0]} is {pairs[broken[0]].tolist()}. "
                "Pass the row of the query and the row of the candidate."
            )
    elif pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers, not of type {pairs.dtype}.")
    absent = np.flatnonzero(((pairs < 0) | (pairs >= shape)).any(axis=1))
    if absent.size:
        query, candidate = pairs[absent[0]].astype(object)
        raise ValueError(
            f"Pair {absent[0]} is of rows {query:.0f} and {candidate:.0f}, and there are "
            f"{shape[0]} queries and {shape[1]} candidates."
        )
    pairs = pairs.astype(np.int64)
    keys = np.unique(pairs[:, 0] * shape[1] + pairs[:, 1])
    return np.column_stack(np.divmod(keys, max(shape[1], 1)))


def _edges(n: int, most: int) -> np.ndarray:
    """Cut n into parts of nearly equal size: a row alone is multiplied, and rounded, otherwise."""
    n_parts = max(1, -(-n // most))
    return np.arange(n_parts + 1) * n // n_parts


def _neighbours(edges: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


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
    return compute_both_ranks(queries, candidates, pairs, both=False)[0]


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
    check_integer(k, "k", 1)
    ranks = column_or_1d(as_numeric(ranks, "ranks"))
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
    by_image, by_text = compute_both_ranks(
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
    by_image, by_text = compute_both_ranks(
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
            f"first of them {format_list(bad, str)}."
        )
    if largest == 0 or _LEAST < largest < _MOST:
        return rows
    # A factor that is a power of two changes no rank.
    return np.ldexp(rows, -int(np.frexp(largest)[1]))
