"""Logits in tiles, against the full matrix."""

import numpy as np
import pytest
from scipy.special import softmax

from sklearn_ape import CCAAligner
from sklearn_ape.aligners.similarity import (
    UNKNOWN,
    UNREADABLE,
    Bank,
    LogitTiles,
    choose_texts,
    choose_top_texts,
    to_probabilities,
)
from sklearn_ape.features import memmap as _feature_tiles
from tests.aligners.similarities import standardized


@pytest.fixture
def aligner(concepts):
    return CCAAligner(ridge=0.01).fit(concepts.image[:200], concepts.text[:200])


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(_feature_tiles, "TILE_BYTES", 17 * 4 * 100)


@pytest.mark.parametrize("form", [np.asarray, np.ndarray.tolist])
def test_tiles_equal_the_full_product(small_tiles, aligner, concepts, form):
    """For features, which are embedded tile by tile, and for images."""
    texts = aligner.transform_text(concepts.text[200:])
    X = concepts.image.copy()
    X[[3, 250]] = np.nan
    tiles = LogitTiles(aligner, np.arange(100), texts, 20.0, None)
    sizes = [len(tile.logits) for tile in tiles.iter_tiles(form(X))]
    assert max(sizes) == 17
    assert sum(sizes) == 300
    (logits,) = tiles.collect(form(X), lambda some: (some,))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, 20 * aligner.transform(X) @ texts.T, atol=1e-5)


@pytest.mark.parametrize("with_captions", [True, False])
def test_standardized_tiles_equal_the_full_matrix(small_tiles, aligner, concepts, with_captions):
    texts = aligner.transform_text(concepts.text[200:])
    bank = aligner.bank_ if with_captions else Bank.from_embeddings(aligner.bank_.image, None)
    image = aligner.transform(concepts.image)
    (logits,) = LogitTiles(aligner, np.arange(100), texts, 20.0, bank).collect(
        concepts.image, lambda some: (some,)
    )
    np.testing.assert_allclose(
        logits, 20 * standardized(image @ texts.T, image, texts, bank), atol=2e-5
    )


def test_probabilities_equal_softmax():
    logits = (30 * np.random.default_rng(0).standard_normal((20, 7))).astype(np.float32)
    expected = softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(to_probabilities(logits), expected, rtol=1e-5, atol=1e-12)


def test_best_text_unless_below_threshold_or_unreadable():
    logits = np.array([[0, 3, 3], [1, 1, 0.9], [np.nan] * 3, [5, 0, 0]], dtype=np.float32)
    assert choose_texts(logits.copy(), None).tolist() == [1, 0, UNREADABLE, 0]
    assert choose_texts(logits.copy(), 0.45).tolist() == [1, UNKNOWN, UNREADABLE, 0]


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_texts_equal_a_stable_sort(k):
    logits = np.random.default_rng(0).integers(0, 5, (50, 7)).astype(np.float32)
    logits[4] = np.nan
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    proba = np.take_along_axis(softmax(logits, axis=1), expected, axis=1)
    codes, found = choose_top_texts(logits.copy(), k)
    np.testing.assert_allclose(found, proba, rtol=1e-5)
    assert (codes[4] == UNREADABLE).all()
    read = np.arange(50) != 4
    np.testing.assert_array_equal(
        np.take_along_axis(logits, codes.clip(min=0), axis=1)[read],
        np.take_along_axis(logits, expected, axis=1)[read],
    )
