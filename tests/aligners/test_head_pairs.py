"""Pairs of a classification head among the training pairs of an aligner."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer

from sklearn_ape import CCAAligner
from sklearn_ape.aligners.pairs import compute_prototypes
from sklearn_ape.encoders import HeadPairs, TimmImageEncoder


def make_head_pairs(n_image=32, n_text=16, n_classes=5, **parts):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((n_classes, n_image))
    texts = rng.standard_normal((n_classes, n_text)).astype(np.float32)
    return HeadPairs(**({"weights": weights, "texts": texts} | parts))


def test_prototypes_equal_the_formula():
    """The formula is mean + B mean|X - mean| / mean|B|, with B = W covariance^(1/2)."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 4)) @ rng.standard_normal((4, 6)) + 3  # of rank 4
    W = rng.standard_normal((9, 6))
    values, vectors = np.linalg.eigh(np.cov(X.T))
    values = np.maximum(values / values.max(), 1e-6)
    B = (W - W.mean(axis=0)) @ vectors @ np.diag(values**0.5) @ vectors.T
    radius = np.linalg.norm(X - X.mean(axis=0), axis=1).mean()
    expected = X.mean(axis=0) + B * radius / np.linalg.norm(B, axis=1).mean()
    np.testing.assert_allclose(compute_prototypes(X.astype(np.float32), W), expected, atol=1e-4)


def test_prototypes_of_real_head_are_near_images_of_their_class(
    features, captioned_images, image_encoder
):
    """With wrong prototypes an aligner would be trained on wrong pairs."""
    from sklearn_ape.encoders import classifier_head_pairs

    head = classifier_head_pairs(image_encoder)
    directions = compute_prototypes(features.image, head.weights) - features.image.mean(axis=0)
    classes = {texts[0]: i for i, texts in enumerate(head.texts)}
    rows = [i for i, caption in enumerate(captioned_images.captions) if caption in classes]
    assert len(rows) >= 5
    cosine = (features.image[rows] - features.image.mean(axis=0)) @ directions.T
    cosine /= np.linalg.norm(directions, axis=1)
    correct = [cosine[row, classes[captioned_images.captions[i]]] for row, i in enumerate(rows)]
    rank = (cosine > np.array(correct)[:, None]).sum(axis=1)
    assert np.median(rank) < 200  # chance is 500 of 1000; the logits of the head give 50 to 100


def test_head_pairs_are_appended_to_the_training_pairs(concepts):
    data = CCAAligner()._fit_pairs(concepts.image, concepts.text)
    head = make_head_pairs()
    more = CCAAligner(head_pairs=head)._fit_pairs(concepts.image, concepts.text)
    assert data.n_images == more.n_images == 300
    assert (data.n_prototypes, more.n_prototypes) == (0, 5)
    np.testing.assert_array_equal(more.image[:300], data.image)
    np.testing.assert_array_equal(more.pairs[:300], data.pairs)
    for image, text in more.pairs[300:]:
        np.testing.assert_array_equal(more.text[text], head.texts[image - 300])


def test_class_with_several_texts_has_one_prototype(concepts):
    head = make_head_pairs(
        texts=np.random.default_rng(0).standard_normal((4, 16)), owners=np.array([3, 0, 3, 3])
    )
    data = CCAAligner(head_pairs=head)._fit_pairs(concepts.image, concepts.text)
    assert data.n_prototypes == 2  # classes without a text give no pairs
    np.testing.assert_array_equal(np.bincount(data.pairs[300:, 0])[300:], [1, 3])


def test_text_that_failed_to_encode_is_left_out(concepts):
    head = make_head_pairs()
    head.texts[2] = np.nan
    data = CCAAligner(head_pairs=head)._fit_pairs(concepts.image, concepts.text)
    assert data.n_prototypes == 4
    assert np.isfinite(data.text).all()


def test_texts_that_are_captions_are_shared(concepts):
    """Otherwise a caption would be a negative for the prototype of the same name."""
    # Features of an encoder depend on the batch size in the last bits.
    texts = np.vstack([concepts.text[7] * (1 + 1e-6), np.ones((2, 16)), np.ones((2, 16))])
    head = make_head_pairs(texts=texts)
    data = CCAAligner(head_pairs=head)._fit_pairs(concepts.image, concepts.text)
    assert len(data.text) == 301
    assert data.pairs[300:].tolist() == [[300, 7]] + [[300 + i, 300] for i in range(1, 5)]


def test_texts_of_an_encoder_with_a_head(features, captioned_images, image_encoder):
    """Names, synonyms and definitions of an encoder parameter are encoded like captions."""
    text_encoder = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))  # faster than MiniLM
    aligner = CCAAligner(text_encoder=text_encoder, head_pairs=image_encoder)
    assert clone(aligner).head_pairs is not image_encoder
    data = aligner._fit_pairs(features.image, captioned_images.captions)
    assert data.n_prototypes == 1000
    assert len(data.pairs) > 2800 + 300
    shared = set(data.pairs[: data.n_images, 1]) & set(data.pairs[data.n_images :, 1])
    assert len(shared) >= 5
    zebra = aligner.text_encoder_.transform(["zebra"]).toarray()
    rows = np.flatnonzero(np.abs(data.text - zebra).max(axis=1) < 1e-5)
    assert len(rows) == 1
    assert 300 + 340 in data.pairs[data.pairs[:, 1] == rows[0], 0]


@pytest.mark.exhaustive
def test_user_defined_texts(features, captioned_images, text_encoder):
    head = make_head_pairs(1280, texts=[["hen"], ["duck", "drake"], "cock", ["hen"], ["goose"]])
    aligner = CCAAligner(text_encoder=text_encoder, head_pairs=head)
    data = aligner._fit_pairs(features.image, captioned_images.captions)
    pairs = data.pairs[300:]
    assert np.bincount(pairs[:, 0])[300:].tolist() == [1, 2, 1, 1, 1]
    assert pairs[0, 1] == pairs[pairs[:, 0] == 303, 1]
    assert np.isfinite(
        aligner.fit(features.image, captioned_images.captions).transform_text(["hen"])
    ).all()


@pytest.mark.parametrize(
    "texts",
    [
        np.array(["hen", "duck"]),
        np.array([["hen"], ["duck"]], dtype=object),
        pd.Series(["hen", "duck"]),
    ],
)
def test_texts_in_arrays(concepts, texts):
    """An error named the number of their features."""
    captions = ["hen duck", *(f"word{number}" for number in range(299))]
    heads = [make_head_pairs(n_classes=2, texts=t) for t in (texts, [["hen"], ["duck"]])]
    actual, expected = (
        CCAAligner(text_encoder=TfidfVectorizer(), head_pairs=head).fit(concepts.image, captions)
        for head in heads
    )
    assert actual.fingerprint_ == expected.fingerprint_


class TestRefused:
    @pytest.mark.parametrize(
        ("parts", "message"),
        [({"weights": np.ones((5, 31))}, "have 31 features, and X has 32. Pass the head of"),
         ({"weights": np.ones((1, 32))}, "have shape \\(1, 32\\) or contain NaN"),
         ({"weights": np.full((5, 32), np.nan)}, "Pass finite numbers"),
         ({"weights": np.ones((5, 32))}, "are the same for all classes"),
         ({"texts": np.ones((4, 16))}, "owners of head_pairs must be 4 integers"),
         ({"owners": np.arange(5.0)}, "owners of head_pairs must be 5 integers"),
         ({"owners": np.arange(1, 6)}, "owners of head_pairs must be from 0 to 4"),
         ({"texts": np.ones((5, 15))}, "texts of head_pairs have 15 features, and y has 16"),
         ({"texts": np.full((5, 16), np.nan)}, "texts of head_pairs could not be encoded"),
         ({"texts": [["hen"]] * 4}, "weights of 5 classes and texts of 4. Pass one list"),
         ({"texts": [["hen"]] * 5, "owners": np.arange(5)}, "texts of 5 with owners. Pass one"),
         ({"texts": [["hen"]] * 5}, "head_pairs has texts, and y holds features")],
    )  # fmt: skip
    def test_inconsistent_head_pairs_raise(self, concepts, parts, message):
        with pytest.raises(ValueError, match=message):
            CCAAligner(head_pairs=make_head_pairs(**parts)).fit(concepts.image, concepts.text)

    def test_empty_texts_raise(self, features, captioned_images, text_encoder):
        aligner = CCAAligner(
            text_encoder=text_encoder, head_pairs=make_head_pairs(1280, texts=[[]] * 5)
        )
        with pytest.raises(ValueError, match="head_pairs has no texts"):
            aligner.fit(features.image, captioned_images.captions)
        head = make_head_pairs(1280, texts=[["hen"], ["duck", " "], ["a"], ["b"], ["c"]])
        aligner = CCAAligner(text_encoder=text_encoder, head_pairs=head)
        with pytest.raises(ValueError, match="head_pairs has the text ' ' for class 1"):
            aligner.fit(features.image, captioned_images.captions)

    def test_equal_images_raise(self, concepts):
        with (
            pytest.warns(UserWarning, match="All images have the same features"),
            pytest.raises(ValueError, match="X has the same features for all images"),
        ):
            CCAAligner(head_pairs=make_head_pairs(4)).fit(np.full((300, 4), 0.1), concepts.text)

    def test_missing_head_raises_before_images_are_encoded(self, captioned_images, text_encoder):
        class MustNotRun:
            def fit(self, X, y=None):
                raise AssertionError("images were encoded before head_pairs was checked")

        for bad, message in (
            ("all-MiniLM-L6-v2", "head_pairs='all-MiniLM-L6-v2' encodes texts"),
            (text_encoder, "has no supported classification head"),
        ):
            aligner = CCAAligner(
                image_encoder=MustNotRun(), text_encoder=text_encoder, head_pairs=bad
            )
            with pytest.raises(ValueError, match=message):
                aligner.fit(captioned_images.images[:6], captioned_images.captions[:6])

    def test_logits_as_features_raise(self, concepts, image_encoder):
        encoder = TimmImageEncoder(output="logits")
        with pytest.raises(ValueError, match=r"returns 1000 features, .* takes 1280"):
            CCAAligner(head_pairs=encoder).fit(concepts.image, concepts.text)
