"""Retrieval ranks against a plain loop."""

import numpy as np
import pandas as pd
import pytest

from sklearn_ape.metrics import (
    rank_report,
    recall_at_k,
    retrieval_ranks,
    retrieval_report,
)
from sklearn_ape.metrics import (
    retrieval as _ranks,
)


def ranks_by_loop(queries, candidates, pairs):
    ranks = []
    for row, query in enumerate(queries):
        positives = {c for q, c in pairs.tolist() if q == row}
        scores = candidates @ query
        best = max(scores[c] for c in positives)
        others = [c for c in range(len(candidates)) if c not in positives]
        ranks.append(sum(scores[c] >= best for c in others))
    return np.array(ranks)


@pytest.mark.parametrize("side", [3, 240])
def test_ranks_equal_a_loops_with_several_positives_and_in_tiles(side, monkeypatch):
    monkeypatch.setattr(_ranks, "_TILE_ROWS", side)
    monkeypatch.setattr(_ranks, "_TILE_COLUMNS", side)
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((20, 4)), rng.standard_normal((30, 4))
    pairs = np.column_stack([np.repeat(np.arange(20), 3), rng.integers(30, size=60)])
    np.testing.assert_array_equal(
        retrieval_ranks(queries, candidates, pairs), ranks_by_loop(queries, candidates, pairs)
    )


def test_equal_embeddings_are_not_hits():
    """A collapsed model, whose embeddings are all the same, must not score."""
    same = np.ones((5, 2)) / np.sqrt(2)
    pairs = np.column_stack([np.arange(5), np.arange(5)])
    assert retrieval_report(same, same, pairs, ks=[1])["image_to_text"][1] == 0.0


def test_nan_raises():
    embeddings = np.eye(3)
    broken = embeddings.copy()
    broken[1, 1] = np.nan
    pairs = np.column_stack([np.arange(3), np.arange(3)])
    with pytest.raises(ValueError, match="must be finite"):
        retrieval_ranks(broken, embeddings, pairs)


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


@pytest.mark.parametrize("kind", [list, tuple, np.uint8, np.float32, pd.Series])
def test_ranks_may_be_any_sequence_of_whole_numbers(kind):
    ranks = np.array([0, 1, 4, 9])
    ranks = ranks.astype(kind) if kind in (np.uint8, np.float32) else kind(ranks.tolist())
    assert recall_at_k(ranks, np.int64(2)) == 0.5


@pytest.mark.parametrize(
    ("ranks", "said"),
    [([], "ranks is empty"),
     (np.empty(0, int), "ranks is empty"),
     ([0, -1], "the rank of query 1 is -1"),
     ([0.5, 0.0], "the rank of query 0 is 0.5"),
     ([0, np.nan], "the rank of query 1 is nan"),
     ([0, np.inf], "the rank of query 1 is inf"),
     ([True, False], "ranks must be numbers, not of type bool"),
     (["0", "1"], "ranks must be numbers, not of type <U1"),
     ([0, None], "ranks must be numbers, not of type object"),
     (np.zeros((2, 3), int), "should be a 1d array"),
     (np.ma.masked_array([0, 1], mask=[0, 1]), "ranks has masked values")],
)  # fmt: skip
def test_invalid_ranks_raise(ranks, said):
    with pytest.raises(ValueError, match=said):
        recall_at_k(ranks, 1)


def test_rank_report_with_several_positives():
    """Images 0 and 1 share caption 0; image 1 has caption 1 as well, and 2 has caption 2."""
    image = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    text = np.array([[0.0, 1.0], [0.8, 0.6], [0.6, -0.8]])
    pairs = np.array([[0, 0], [1, 0], [1, 1], [2, 2]])
    report = rank_report(image, text, pairs, ks=[1, 2])
    # Cosines by image: 0, .8, .6; .8, .96, -.28; 0, -.8, -.6.
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
