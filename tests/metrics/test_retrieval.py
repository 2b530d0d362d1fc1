"""Retrieval ranks, recall and reports."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from sklearn_ape import CCAAligner
from sklearn_ape.aligners.similarity import SparseRows
from sklearn_ape.metrics import (
    rank_report,
    recall_at_k,
    retrieval,
    retrieval_ranks,
    retrieval_report,
)
from sklearn_ape.metrics.retrieval import compute_both_ranks


def ranks_by_loop(queries, candidates, pairs):
    ranks = []
    for row, query in enumerate(queries):
        positives = {c for q, c in pairs.tolist() if q == row}
        scores = candidates @ query
        best = max(scores[c] for c in positives)
        negatives = [c for c in range(len(candidates)) if c not in positives]
        ranks.append(sum(scores[c] >= best for c in negatives))
    return np.array(ranks)


@pytest.mark.parametrize("tile_size", [3, 240])
def test_ranks_equal_loop_for_any_tile_size(tile_size, monkeypatch):
    monkeypatch.setattr(retrieval, "_TILE_ROWS", tile_size)
    monkeypatch.setattr(retrieval, "_TILE_COLUMNS", tile_size)
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((20, 4)), rng.standard_normal((30, 4))
    pairs = np.column_stack([np.repeat(np.arange(20), 3), rng.integers(30, size=60)])
    np.testing.assert_array_equal(
        retrieval_ranks(queries, candidates, pairs), ranks_by_loop(queries, candidates, pairs)
    )


def test_equal_embeddings_are_not_hits():
    """A collapsed model, whose embeddings are all equal, must have zero recall."""
    embeddings = np.ones((5, 2)) / np.sqrt(2)
    pairs = np.column_stack([np.arange(5), np.arange(5)])
    assert retrieval_report(embeddings, embeddings, pairs, ks=[1])["image_to_text"][1] == 0.0


def test_nan_raises():
    embeddings = np.eye(3)
    broken = embeddings.copy()
    broken[1, 1] = np.nan
    pairs = np.column_stack([np.arange(3), np.arange(3)])
    with pytest.raises(ValueError, match=r"queries must be finite, .* in 1 row \(row 1\)"):
        retrieval_ranks(broken, embeddings, pairs)
    with pytest.raises(ValueError, match="Embeddings must be finite"):
        compute_both_ranks(broken, embeddings, pairs)


def test_query_without_positive_raises():
    with pytest.raises(ValueError, match="no positive for query 1"):
        retrieval_ranks(np.eye(2), np.eye(2), np.array([[0, 0]]))


def test_recall_counts_ranks_below_k():
    ranks = np.array([0, 1, 4, 9])
    assert [recall_at_k(ranks, k) for k in (1, 2, 5, 10)] == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match="an integer >= 1"):
        recall_at_k(ranks, 0)


@pytest.mark.parametrize("k", [0, -1, 1.0, 2.5, np.nan, np.inf, True, "1", None])
def test_k_must_be_a_positive_integer(k):
    with pytest.raises(ValueError, match="k must be an integer >= 1, not"):
        recall_at_k(np.arange(3), k)
    pairs = np.column_stack([np.arange(3), np.arange(3)])
    for report in (retrieval_report, rank_report):
        with pytest.raises(ValueError, match="k must be an integer >= 1, not"):
            report(np.eye(3), np.eye(3), pairs, ks=[k])


@pytest.mark.parametrize("ks", [5, None, "15", (k for k in (1, 2))])
def test_ks_must_be_a_sequence(ks):
    """A generator gave recalls of the first direction only."""
    aligner = CCAAligner(n_components=1).fit(np.eye(3), np.eye(3))
    pairs = np.column_stack([np.arange(3), np.arange(3)])
    for report, arguments in (
        (retrieval_report, (np.eye(3), np.eye(3), pairs)),
        (rank_report, (np.eye(3), np.eye(3), pairs)),
        (aligner.retrieval_report, (np.eye(3), np.eye(3))),
    ):
        with pytest.raises(ValueError, match=r"^ks (is a single|must be a sequence of) integer"):
            report(*arguments, ks=ks)


@pytest.mark.parametrize("kind", [list, tuple, np.uint8, np.float32, pd.Series])
def test_ranks_may_be_any_sequence_of_integers(kind):
    ranks = np.array([0, 1, 4, 9])
    ranks = ranks.astype(kind) if kind in (np.uint8, np.float32) else kind(ranks.tolist())
    assert recall_at_k(ranks, np.int64(2)) == 0.5


@pytest.mark.parametrize(
    ("ranks", "message"),
    [([], "ranks is empty"),
     (np.empty(0, int), "ranks is empty"),
     ([0, -1], "the rank of query 1 is -1"),
     ([0.5, 0.0], "the rank of query 0 is 0.5"),
     ([0, np.nan], "the rank of query 1 is nan"),
     ([0, np.inf], "the rank of query 1 is inf"),
     ([True, False], "ranks must be numbers, not of type bool"),
     (["0", "1"], "ranks must be numbers, not of type <U1"),
     ([0, None], "ranks must be numbers, not of type object"),
     (np.zeros((2, 3), int), r"ranks must have one dimension, not the shape \(2, 3\)"),
     (3, "ranks must have one dimension"),
     (np.ma.masked_array([0, 1], mask=[0, 1]), "ranks has masked values")],
)  # fmt: skip
def test_invalid_ranks_raise(ranks, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(ranks, 1)


def test_rank_report_with_several_positives():
    """Images 0 and 1 share caption 0, image 1 also has caption 1, and image 2 has caption 2."""
    image = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    text = np.array([[0.0, 1.0], [0.8, 0.6], [0.6, -0.8]])
    pairs = np.array([[0, 0], [1, 0], [1, 1], [2, 2]])
    report = rank_report(image, text, pairs, ks=[1, 2])
    # Cosines per image: [0, 0.8, 0.6], [0.8, 0.96, -0.28] and [0, -0.8, -0.6].
    assert report["image_to_text"] == pytest.approx(
        {
            "recall@1": 1 / 3,
            "recall@2": 2 / 3,
            "mean_rank": (3 + 1 + 2) / 3,
            "median_rank": 2,
            "mean_reciprocal_rank": (1 / 3 + 1 + 1 / 2) / 3,
        }
    )
    assert report["text_to_image"] == pytest.approx(
        {
            "recall@1": 2 / 3,
            "recall@2": 2 / 3,
            "mean_rank": (1 + 1 + 3) / 3,
            "median_rank": 1,
            "mean_reciprocal_rank": (1 + 1 + 1 / 3) / 3,
        }
    )


def ranks_of_matrix(scores, positive):
    best = np.where(positive, scores, -np.inf).max(axis=1)
    return ((scores >= best[:, None]) & ~positive).sum(axis=1)


def random_pairs(rng, n_queries, n_candidates, n_more):
    """Return shuffled pairs that cover all rows of both sides; three pairs are repeated."""
    pairs = [
        np.column_stack([np.arange(n_queries), rng.integers(n_candidates, size=n_queries)]),
        np.column_stack([rng.integers(n_queries, size=n_candidates), np.arange(n_candidates)]),
        np.column_stack([rng.integers(n, size=n_more) for n in (n_queries, n_candidates)]),
    ]
    return rng.permutation(np.concatenate([*pairs, pairs[0][:3]]))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(retrieval, "_TILE_ROWS", 7)
    monkeypatch.setattr(retrieval, "_TILE_COLUMNS", 5)


@pytest.mark.parametrize(("n_queries", "n_candidates"), [(20, 30), (31, 8), (1, 9), (9, 1)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("small_tiles")
def test_ranks_in_both_directions_equal_full_matrix(n_queries, n_candidates, seed):
    """Small integers give many ties; tiles at the borders are smaller."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(-1, 2, (n_queries, 3)).astype(np.float32)
    candidates = rng.integers(-1, 2, (n_candidates, 3)).astype(np.float32)
    pairs = random_pairs(rng, n_queries, n_candidates, 10)
    positive = np.zeros((n_queries, n_candidates), dtype=bool)
    positive[tuple(pairs.T)] = True
    scores = queries @ candidates.T
    ranks, back = compute_both_ranks(queries, candidates, pairs)
    np.testing.assert_array_equal(ranks, ranks_of_matrix(scores, positive))
    np.testing.assert_array_equal(back, ranks_of_matrix(scores.T, positive.T))
    forward, backward = compute_both_ranks(queries, candidates, pairs, both=False)
    np.testing.assert_array_equal(forward, ranks)
    assert not backward.any()
    assert ranks.dtype == back.dtype == np.int64


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("n_blas_threads", "expected_pools"), [(4, [2]), (1, [])])
def test_threads_do_not_change_ranks(n_blas_threads, expected_pools, monkeypatch):
    """Two threads of four, since each one counts at least 250 of the 600 scores.

    A pool of a single thread would delay KeyboardInterrupt until all scores are counted.
    """
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((20, 4)), rng.standard_normal((30, 4))
    pairs = random_pairs(rng, 20, 30, 10)
    expected = compute_both_ranks(queries, candidates, pairs)
    pools = []
    executor = retrieval.ThreadPoolExecutor
    monkeypatch.setattr(retrieval, "ThreadPoolExecutor", lambda n: pools.append(n) or executor(n))
    monkeypatch.setattr(retrieval, "_MIN_SCORES_PER_THREAD", 250)
    with threadpool_limits(n_blas_threads, user_api="blas"):
        ranks = compute_both_ranks(queries, candidates, pairs)
    assert pools == expected_pools
    np.testing.assert_array_equal(ranks[0], expected[0])
    np.testing.assert_array_equal(ranks[1], expected[1])


@pytest.mark.parametrize("factors", [(1e-6, 1e-6), (1e6, 1e-3), (1e-3, 1e6)])
def test_ranks_do_not_depend_on_the_scale(factors):
    """The margin of ties is relative to the norms."""
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((2, 30, 4)).astype(np.float32)
    pairs = random_pairs(rng, 30, 30, 10)
    expected = compute_both_ranks(queries, candidates, pairs)
    scaled = compute_both_ranks(
        queries * np.float32(factors[0]), candidates * np.float32(factors[1]), pairs
    )
    np.testing.assert_array_equal(scaled, expected)


@pytest.mark.parametrize("factor", [-1e-30, 1e-30, -1e30, 1e30])
def test_products_neither_overflow_nor_underflow(factor):
    """The squares of these factors are beyond the range of float32."""
    embeddings = np.float32(factor) * np.eye(3, dtype=np.float32)
    pairs = np.column_stack([np.arange(3), np.arange(3)])
    assert retrieval_ranks(embeddings, embeddings, pairs).tolist() == [0, 0, 0]
    assert retrieval_ranks(0 * embeddings, embeddings, pairs).tolist() == [2, 2, 2]
    mixed = np.float32([[-1e30, 1e-3], [1e-3, -1e30]])
    assert retrieval_ranks(mixed, mixed, pairs[:2]).tolist() == [0, 0]


def test_ranks_of_no_queries_are_empty():
    no_pairs = np.empty((0, 2), dtype=int)
    for ranks in compute_both_ranks(np.empty((0, 4)), np.empty((0, 4)), no_pairs):
        assert ranks.shape == (0,)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 10, 1000])
def test_tiles_have_nearly_equal_sizes(n):
    edges = retrieval._split_evenly(n, 3)
    sizes = np.diff(edges)
    assert (edges[0], edges[-1], len(sizes)) == (0, n, max(1, -(-n // 3)))
    assert sizes.max() - sizes.min() <= 1


def test_small_differences_in_float64_are_not_ties():
    candidates = np.array([[1.0], [1 - 1e-10]])
    pairs = np.array([[0, 0], [0, 1]])
    assert compute_both_ranks(np.ones((1, 1)), candidates, pairs[:1], both=False)[0] == 0
    assert compute_both_ranks(np.ones((1, 1)), candidates, pairs[1:], both=False)[0] == 1


def test_equal_embeddings_in_different_tiles_tie():
    """Products of equal rows must not be rounded differently in another tile."""
    rng = np.random.default_rng(0)
    units = rng.standard_normal((1500, 97)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    candidates = np.concatenate([units, units])[rng.permutation(3000)]
    pairs = np.column_stack([np.arange(3000), np.arange(3000)])
    ranks, back = compute_both_ranks(candidates, candidates, pairs)
    assert (ranks == 1).all()
    assert (back == 1).all()


def test_collapsed_model_has_the_last_rank_in_every_tile():
    embeddings = np.tile(np.random.default_rng(0).standard_normal((1, 33)), (2500, 1)).astype(
        np.float32
    )
    pairs = np.column_stack([np.arange(2500), np.arange(2500)])
    for ranks in compute_both_ranks(embeddings, embeddings, pairs):
        assert (ranks == 2499).all()


@pytest.mark.parametrize("types", [(np.float32, np.float32), (np.float64, np.float32)])
@pytest.mark.parametrize(("n", "width"), [(7, 33), (40, 1280), (97, 384), (1000, 8)])
def test_equal_candidates_tie_for_any_shape(n, width, types):
    """Regression: one of 7 candidates of width 33 had a differently rounded product."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((n, width)).astype(types[0])
    candidates = np.repeat(rng.standard_normal((1, width)).astype(types[1]), n, axis=0)
    pairs = np.column_stack([np.arange(n), np.arange(n)])
    assert (compute_both_ranks(queries, candidates, pairs)[0] == n - 1).all()
    assert (compute_both_ranks(candidates, queries, pairs)[1] == n - 1).all()


def test_sparse_embeddings_that_differ_by_rounding_tie():
    candidates = np.float32([[1.0, 0.0], [np.nextafter(np.float32(1), 0), 0.0]])
    sides = SparseRows(csr_array(candidates[:1])), SparseRows(csr_array(candidates))
    assert compute_both_ranks(*sides, np.array([[0, 0]]), both=False)[0] == 1


def test_half_precision_embeddings_are_compared_in_float32():
    """Products in float16 would be rounded and would change ranks."""
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((2, 300, 16)).astype(np.float16)
    pairs = np.column_stack([np.arange(300), np.arange(300)])
    assert retrieval_report(queries, candidates, pairs) == retrieval_report(
        queries.astype(np.float32), candidates.astype(np.float32), pairs
    )
    np.testing.assert_array_equal(
        compute_both_ranks(queries, candidates, pairs),
        compute_both_ranks(queries.astype(np.float32), candidates.astype(np.float32), pairs),
    )


@pytest.mark.parametrize(
    ("pairs", "message"),
    [([[0, 0], [1, 7]], "pairs has the rows 1 and 7 in pair 1, but there are 2 queries and 2"),
     ([[0, 0], [-1, 1]], "pairs has the rows -1 and 1 in pair 1"),
     ([0, 1], r"pairs must be of shape \(n_pairs, 2\), not \(2,\)"),
     ([[0, 0], [1, 0]], "pairs has no positive for query 1"),
     ([[0, 0], [0, 1]], "pairs has no positive for query 1"),
     ([[0, 0.9], [1, 1.9]], r"pairs must be integers, and pair 0 is \[0.0, 0.9\]"),
     ([[0, 0.0], [1, np.nan]], r"pair 1 is \[1.0, nan\]"),
     ([[0, 0.0], [np.inf, 1]], r"pair 1 is \[inf, 1.0\]"),
     ([[0, 0.0], [1, 2.0]], "pairs has the rows 1 and 2 in pair 1"),
     (np.eye(2, dtype=bool), r"pairs is a boolean array of shape \(2, 2\).*np.argwhere\(pairs\)"),
     (np.eye(3, dtype=bool), r"pairs is a boolean array of shape \(3, 3\)"),
     ([["0", "0"], ["1", "1"]], "pairs must be integers, not of type <U1"),
     ([[0, 0], [1, None]], r"pairs must be integers, and pair 1 is \[1.0, nan\]"),
     ([[0, 0], [1, "a"]], "pairs must be integers, not of type <U"),
     (pd.DataFrame([[0, 0], [1, pd.NA]], dtype="Int64"), "integers, not of type object"),
     ([[0, 0], [1, 1j]], "pairs must be integers, not of type complex128"),
     (np.array([[0, 0], [1, 2**64 - 1]], dtype=np.uint64), "pairs has the rows 1 and 18446744"),
     (np.ma.masked_array([[0, 0], [1, 1]], mask=[[0, 1], [0, 0]]), "^pairs has masked values")],
)  # fmt: skip
def test_invalid_pairs_raise(pairs, message):
    with pytest.raises(ValueError, match=message):
        compute_both_ranks(np.eye(2), np.eye(2), pairs)


def test_masked_embeddings_raise():
    with pytest.raises(ValueError, match=r"^candidates has masked values"):
        retrieval_ranks(np.eye(2), np.ma.masked_array(np.eye(2), mask=np.eye(2)), [[0, 0]])


def test_embeddings_of_different_spaces_raise():
    message = "has 3 components, and {} has 2. Pass embeddings of one space, not features"
    with pytest.raises(ValueError, match="queries " + message.format("candidates")):
        retrieval_ranks(np.eye(3), np.eye(3)[:, :2], [[0, 0], [1, 1], [2, 2]])
    with pytest.raises(ValueError, match="image_embeddings " + message.format("text_embeddings")):
        retrieval_report(np.eye(3), np.eye(3)[:, :2], [[0, 0], [1, 1], [2, 2]])


@pytest.mark.parametrize("kind", [np.float64, np.uint8, np.int32, object, "Int64", list])
def test_integer_pairs_may_have_any_type(kind):
    pairs = np.array([[0, 1], [1, 0]])
    if kind == "Int64":
        pairs = pd.DataFrame(pairs)
    pairs = pairs.tolist() if kind is list else pairs.astype(kind)
    ranks, back = compute_both_ranks(np.eye(2), np.eye(2)[::-1], pairs)
    assert ranks.tolist() == back.tolist() == [0, 0]


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_hold_the_full_matrix():
    """A matrix of 20,000 x 20,000 scores would take 1.6 GB."""
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True
    )
    assert float(process.stdout) < 100


# The peak of getrusage would include that of the parent process.
_PROGRAM = """
def peak():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) / 1024

import numpy as np
from sklearn_ape.metrics import retrieval_report

rng = np.random.default_rng(0)
image, text = rng.standard_normal((2, 20_000, 32), dtype=np.float32)
pairs = np.column_stack([np.arange(20_000), rng.permutation(20_000)])
retrieval_report(image[:300], text[:300], np.column_stack([np.arange(300)] * 2))
before = peak()
retrieval_report(image, text, pairs)
print(peak() - before)
"""
