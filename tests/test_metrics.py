"""Retrieval ranks against a plain loop."""

import numpy as np
import pytest

from sklearn_ape import metrics
from sklearn_ape.metrics import recall_at_k, retrieval_ranks, retrieval_report


def ranks_by_loop(queries, candidates, pairs):
    ranks = []
    for row, query in enumerate(queries):
        positives = {c for q, c in pairs.tolist() if q == row}
        scores = candidates @ query
        best = max(scores[c] for c in positives)
        others = [c for c in range(len(candidates)) if c not in positives]
        ranks.append(sum(scores[c] >= best for c in others))
    return np.array(ranks)


@pytest.mark.parametrize("tile_bytes", [8, 2**26])
def test_ranks_equal_a_loops_with_several_positives_and_in_tiles(tile_bytes, monkeypatch):
    monkeypatch.setattr(metrics, "_TILE_BYTES", tile_bytes)
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((20, 4)), rng.standard_normal((30, 4))
    pairs = np.column_stack([np.repeat(np.arange(20), 3), rng.integers(30, size=60)])
    np.testing.assert_array_equal(
        retrieval_ranks(queries, candidates, pairs), ranks_by_loop(queries, candidates, pairs)
    )


def test_equal_embeddings_are_not_called_right():
    """A collapsed model, whose embeddings are all the same, must not score."""
    same = np.ones((5, 2)) / np.sqrt(2)
    pairs = np.column_stack([np.arange(5), np.arange(5)])
    assert retrieval_report(same, same, pairs, ks=[1])["image_to_text"][1] == 0.0


def test_nan_is_refused():
    embeddings = np.eye(3)
    broken = embeddings.copy()
    broken[1, 1] = np.nan
    pairs = np.column_stack([np.arange(3), np.arange(3)])
    with pytest.raises(ValueError, match="must be finite"):
        retrieval_ranks(broken, embeddings, pairs)


def test_a_query_without_positive_is_named():
    with pytest.raises(ValueError, match="Query 1 has no positive"):
        retrieval_ranks(np.eye(2), np.eye(2), np.array([[0, 0]]))


def test_recall_counts_ranks_below_k():
    ranks = np.array([0, 1, 4, 9])
    assert [recall_at_k(ranks, k) for k in (1, 2, 5, 10)] == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match="at least 1"):
        recall_at_k(ranks, 0)
