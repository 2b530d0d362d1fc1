"""ASIFAligner against a plain loop over rows."""

import tracemalloc

import numpy as np
import pytest

from sklearn_ape import ASIFAligner
from sklearn_ape.aligners import asif
from sklearn_ape.metrics import retrieval_report


def by_loop(features, anchors, k, power, center):
    """Embed one row after the other, as in the paper."""
    unit = anchors / np.linalg.norm(anchors, axis=1, keepdims=True)
    mean = unit.mean(axis=0) if center else 0
    rows = []
    for feature in features:
        feature = feature / np.linalg.norm(feature) - mean
        cosines = []
        for anchor in unit:
            anchor = anchor - mean
            cosines.append(feature @ anchor / np.linalg.norm(feature) / np.linalg.norm(anchor))
        largest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        row = [max(c, 0) ** power if i in largest else 0 for i, c in enumerate(cosines)]
        rows.append(np.array(row) / np.linalg.norm(row))
    return np.array(rows)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("k", "power"), [(5, 6), (5, 3), (40, 2), (1000, 2), (1000, 3), (1, 1)])
def test_similarity_equals_plain_loop(concepts, k, power, center):
    """k above the number of anchors, and negative similarities among the k largest."""
    train, test = slice(0, 40), slice(40, 60)
    aligner = ASIFAligner(k=k, power=power, center=center)
    aligner.fit(concepts.image[train], concepts.text[train])
    for features, embed in (
        (concepts.image, aligner.transform),
        (concepts.text, aligner.transform_text),
    ):
        expected = by_loop(features[test], features[train], k, power, center)
        np.testing.assert_allclose(embed(features[test]), expected, atol=1e-4)


def test_first_anchors_of_repeated_captions_are_kept(concepts):
    """A choice by the processor changed cosines of a saved model by up to 0.18."""
    image, text = concepts.image[:40], np.tile(concepts.text[:4], (10, 1))
    aligner = ASIFAligner(k=15).fit(image, text)
    expected = by_loop(text[:4], text, 15, 6, True)
    np.testing.assert_allclose(aligner.transform_text(text[:4]), expected, atol=1e-4)


def test_negative_similarities_are_zero_with_even_power():
    """An even power must not make negative similarities positive."""
    image = np.array([[1.0, 0], [0, 1]])
    aligner = ASIFAligner(center=False, power=2).fit(image, image)
    np.testing.assert_allclose(aligner.transform([[1, -1]]), [[1, 0]], atol=1e-6)
    np.testing.assert_array_equal(aligner.transform([[-1, -1]]), [[0, 0]])


def test_high_powers_of_small_similarities_do_not_underflow():
    """Powers are relative to the largest: 1e-4 ** 12 is zero in single precision."""
    rng = np.random.default_rng(0)
    anchors = np.hstack([1e-4 * np.abs(rng.standard_normal((30, 3))), np.ones((30, 1))])
    aligner = ASIFAligner(power=12, center=False).fit(anchors, anchors)
    norms = np.linalg.norm(aligner.transform([[1, 1, 1, 0]]), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_each_pair_is_an_anchor(concepts):
    """An image with two captions gives two anchors with equal image features."""
    image = np.vstack([concepts.image[:30], concepts.image[:1]])
    text = np.vstack([concepts.text[:30], concepts.text[50:51]])
    aligner = ASIFAligner().fit(image, text)
    assert aligner.n_components_ == 31
    embeddings = aligner.transform(image)
    np.testing.assert_array_equal(embeddings[:, 0], embeddings[:, 1])
    assert np.any(aligner.transform_text(text)[:, 0] != aligner.transform_text(text)[:, 1])


def test_sparse_and_dense_scores_are_equal(concepts, monkeypatch):
    """For tiles of any size."""
    aligner = ASIFAligner(k=10).fit(concepts.image[:200], concepts.text[:200])
    image, text = concepts.image[200:], concepts.text[200:]
    pairs = np.column_stack([np.arange(100)] * 2)
    dense = retrieval_report(aligner.transform(image), aligner.transform_text(text), pairs)
    monkeypatch.setattr(asif, "_TILE_BYTES", 8 * 200 * 7)
    assert aligner.retrieval_report(image, text) == dense
    np.testing.assert_allclose(
        aligner.similarity(image, text),
        aligner.transform(image) @ aligner.transform_text(text).T,
        atol=1e-6,
    )


@pytest.mark.exhaustive
def test_score_memory_is_less_than_dense_embeddings(monkeypatch):
    """1,500 images and captions on 8,000 anchors would take 96 MB."""
    monkeypatch.setattr(asif, "_TILE_BYTES", 2**22)
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 9_500, 4)).astype(np.float32)
    aligner = ASIFAligner(k=10).fit(image[:8_000], text[:8_000])
    tracemalloc.start()
    aligner.score(image[8_000:], text[8_000:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_fingerprint_depends_on_parameters_at_fit(concepts):
    """Label embeddings are cached by fingerprint, so it must differ if embeddings differ."""
    fingerprints = set()
    for parameters in ({}, {"k": 5}, {"power": 3}, {"center": False}):
        aligner = ASIFAligner(**parameters).fit(concepts.image, concepts.text)
        fingerprints.add(aligner.fingerprint_)
        before = aligner.transform(concepts.image)
        np.testing.assert_array_equal(aligner.set_params(k=1).transform(concepts.image), before)
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [("k", 0, "k must be an integer >= 1, not 0"),
     ("power", 0, r"power must be a number in \(0, inf\)"),
     ("center", "yes", "center must be True or False, not 'yes'")],
)  # fmt: skip
def test_invalid_parameter_raises(concepts, parameter, value, message):
    with pytest.raises(ValueError, match=message):
        ASIFAligner(**{parameter: value}).fit(concepts.image, concepts.text)
