"""Standardized cosines of the collection, against those of the aligner."""

import numpy as np
import pytest

from sklearn_ape import CrossModalRetriever
from sklearn_ape.retrieval import _index as _nearest


def best(similarity, k):
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


class TestStandardize:
    @pytest.mark.parametrize("tile", [2**23, 4 * 16 * 40])
    def test_standardized_by_the_collection(self, aligner, concepts, monkeypatch, tile):
        X, y = concepts.image, concepts.text[:20]
        scores, order = best(aligner.similarity(X, y, standardize=X).T, 8)
        monkeypatch.setattr("sklearn_ape.features.memmap.TILE_BYTES", tile)
        monkeypatch.setattr(_nearest, "_QUERIES_AT_ONCE", 7)
        retriever = CrossModalRetriever(aligner, standardize=True).fit(X)
        for _ in range(2):  # what is kept of the first time serves the second
            found = retriever.search(y, k=8, modality="text")
            np.testing.assert_array_equal(found.indices, order)
            np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        plain = CrossModalRetriever(aligner).fit(X).search(y, k=8, modality="text")
        assert (plain.indices != order).any()

    def test_standardized_by_other_images(self, aligner, concepts):
        X, y, bank = concepts.image[:200], concepts.text[:20], concepts.image[200:]
        scores, order = best(aligner.similarity(X, y, standardize=bank).T, 8)
        found = CrossModalRetriever(aligner, standardize=bank).fit(X).search(y, 8, modality="text")
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)

    def test_standardized_without_captions(self, aligner, concepts):
        del aligner.bank_
        X, y = concepts.image, concepts.text[:20]
        scores, order = best(aligner.similarity(X, y, standardize=X).T, 8)
        found = CrossModalRetriever(aligner, standardize=True).fit(X).search(y, 8, modality="text")
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)

    def test_real_texts(self, real_aligner, captioned_images):
        retriever = CrossModalRetriever(real_aligner, standardize=True).fit(
            captioned_images.images
        )
        expected = real_aligner.similarity(
            captioned_images.images, captioned_images.captions, standardize=captioned_images.images
        )
        found = retriever.search(captioned_images.captions, k=1)
        np.testing.assert_allclose(found.scores[:, 0], expected.max(axis=0), atol=1e-5)

    def test_image_queries_use_plain_cosines(self, aligner, concepts):
        X = concepts.image
        found = CrossModalRetriever(aligner, standardize=True).fit(X).search(X[:9], k=4)
        plain = CrossModalRetriever(aligner).fit(X).search(X[:9], k=4)
        np.testing.assert_array_equal(found.indices, plain.indices)
        np.testing.assert_array_equal(found.scores, plain.scores)

    def test_equal_images_raise(self, aligner, concepts):
        X = np.repeat(concepts.image[:1], 5, axis=0)
        retriever = CrossModalRetriever(aligner, standardize=True).fit(X)
        with pytest.raises(ValueError, match="images that differ"):
            retriever.search(concepts.text[:2], modality="text")
