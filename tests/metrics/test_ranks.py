"""Ranks from one pass over tiles: against the whole matrix, and in little memory."""

import subprocess
import sys

import numpy as np
import pytest

from sklearn_ape.metrics import retrieval as _ranks
from sklearn_ape.metrics import retrieval_report
from sklearn_ape.metrics.retrieval import compute_both_ranks


def ranks_of_matrix(scores, positive):
    best = np.where(positive, scores, -np.inf).max(axis=1)
    return ((scores >= best[:, None]) & ~positive).sum(axis=1)


def random_pairs(rng, n_queries, n_candidates, n_more):
    """Every row of both sides in at least one pair, in no order, some pairs twice."""
    pairs = [
        np.column_stack([np.arange(n_queries), rng.integers(n_candidates, size=n_queries)]),
        np.column_stack([rng.integers(n_queries, size=n_candidates), np.arange(n_candidates)]),
        np.column_stack([rng.integers(n, size=n_more) for n in (n_queries, n_candidates)]),
    ]
    return rng.permutation(np.concatenate([*pairs, pairs[0][:3]]))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(_ranks, "_TILE_ROWS", 7)
    monkeypatch.setattr(_ranks, "_TILE_COLUMNS", 5)


@pytest.mark.parametrize(("n_queries", "n_candidates"), [(20, 30), (31, 8), (1, 9), (9, 1)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("small_tiles")
def test_ranks_in_both_directions_equal_full_matrix(n_queries, n_candidates, seed):
    """With many ties (the numbers are small and whole), several positives and ragged tiles."""
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
    alone, none = compute_both_ranks(queries, candidates, pairs, both=False)
    np.testing.assert_array_equal(alone, ranks)
    assert not none.any()


def test_equal_embeddings_tie_at_any_position():
    """Rounding must not tell a candidate from its twin in another tile."""
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((1500, 97)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    candidates = np.concatenate([unit, unit])[rng.permutation(3000)]
    pairs = np.column_stack([np.arange(3000), np.arange(3000)])
    ranks, back = compute_both_ranks(candidates, candidates, pairs)
    assert (ranks == 1).all()
    assert (back == 1).all()


def test_a_collapsed_model_comes_last_in_every_tile():
    same = np.tile(np.random.default_rng(0).standard_normal((1, 33)), (2500, 1))
    pairs = np.column_stack([np.arange(2500), np.arange(2500)])
    for ranks in compute_both_ranks(same.astype(np.float32), same.astype(np.float32), pairs):
        assert (ranks == 2499).all()


@pytest.mark.parametrize(("n", "width"), [(7, 33), (40, 1280), (97, 384), (1000, 8)])
def test_equal_candidates_tie_whatever_the_shape(n, width):
    """With 7 candidates of width 33, the product of one of them was rounded differently."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((n, width)).astype(np.float32)
    candidates = np.repeat(rng.standard_normal((1, width)).astype(np.float32), n, axis=0)
    pairs = np.column_stack([np.arange(n), np.arange(n)])
    assert (compute_both_ranks(queries, candidates, pairs)[0] == n - 1).all()


def test_half_precision_is_compared_in_float32():
    """Products of float16 would be rounded to it, and ranks with them."""
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((2, 300, 16)).astype(np.float16)
    pairs = np.column_stack([np.arange(300), np.arange(300)])
    assert retrieval_report(queries, candidates, pairs) == retrieval_report(
        queries.astype(np.float32), candidates.astype(np.float32), pairs
    )


@pytest.mark.parametrize(
    ("pairs", "said"),
    [([[0, 0], [1, 7]], "rows 1 and 7 in pair 1, but there are 2 queries and 2 cand"),
     ([[0, 0], [-1, 1]], "pairs has the rows -1 and 1"),
     ([0, 1], r"pairs must be of shape \(n_pairs, 2\), not \(2,\)"),
     ([[0, 0], [1, 0]], "no positive for query 1"),
     ([[0, 0.9], [1, 1.9]], r"pairs must be integers, and pair 0 is \[0.0, 0.9\]"),
     ([[0, 0.0], [1, np.nan]], r"pair 1 is \[1.0, nan\]"),
     ([[0, 0.0], [np.inf, 1]], r"pair 1 is \[inf, 1.0\]"),
     ([[0, 0.0], [1, 2.0]], "pairs has the rows 1 and 2 in"),
     (np.eye(2, dtype=bool), r"pairs is a boolean array of shape \(2, 2\).*np.argwhere\(pairs\)"),
     (np.eye(3, dtype=bool), r"pairs is a boolean array of shape \(3, 3\)"),
     ([["0", "0"], ["1", "1"]], "pairs must be integers, not of type <U1"),
     ([[0, 0], [1, None]], "pairs must be integers, not of type object"),
     ([[0, 0], [1, 1j]], "pairs must be integers, not of type complex128"),
     (np.array([[0, 0], [1, 2**64 - 1]], dtype=np.uint64), "pairs has the rows 1 and 18446744"),
     (np.ma.masked_array([[0, 0], [1, 1]], mask=[[0, 1], [0, 0]]), "pairs has masked values")],
)  # fmt: skip
def test_invalid_pairs_raise(pairs, said):
    with pytest.raises(ValueError, match=said):
        compute_both_ranks(np.eye(2), np.eye(2), pairs)


@pytest.mark.parametrize("kind", [np.float64, np.uint8, np.int32, list])
def test_pairs_of_whole_numbers_may_be_of_any_type(kind):
    pairs = np.array([[0, 1], [1, 0]])
    pairs = pairs.tolist() if kind is list else pairs.astype(kind)
    ranks, back = compute_both_ranks(np.eye(2), np.eye(2)[::-1], pairs)
    assert ranks.tolist() == back.tolist() == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the system's count of pages")
def test_memory_is_bounded_by_a_tile():
    """20,000 by 20,000 scores would take 1.6 GB."""
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_CHILD], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 100


# Not getrusage, whose peak is also that of the process that started this one.
_IN_A_CHILD = """
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
