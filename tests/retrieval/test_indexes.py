"""Index libraries against exact cosines."""

import sys

import numpy as np
import pytest

from sklearn_ape import CrossModalRetriever

LEAST_RECALL = 0.97


@pytest.fixture(scope="session")
def exact(real_aligner, captioned_images):
    return CrossModalRetriever(real_aligner).fit(captioned_images.images)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
class TestIndexes:
    def test_faiss_is_exact(self, real_aligner, exact, captioned_images, dtype):
        retriever = CrossModalRetriever(real_aligner, index="faiss", dtype=dtype)
        found = retriever.fit(captioned_images.images).search(captioned_images.captions, k=10)
        expected = exact.search(captioned_images.captions, k=10)
        if dtype == "float32":
            np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.scores, expected.scores, atol=5e-4)

    def test_usearch_finds_nearly_all(self, real_aligner, exact, captioned_images, dtype):
        retriever = CrossModalRetriever(real_aligner, index="usearch", dtype=dtype)
        found = retriever.fit(captioned_images.images).search(captioned_images.captions, k=10)
        expected = exact.search(captioned_images.captions, k=10)
        both = [
            np.intersect1d(one, other)
            for one, other in zip(found.indices, expected.indices, strict=True)
        ]
        assert np.mean([len(rows) for rows in both]) / 10 > LEAST_RECALL
        for query, rows in enumerate(both):  # scores are cosines, not what the graph says
            score = dict(zip(expected.indices[query], expected.scores[query], strict=True))
            same = np.isin(found.indices[query], rows)
            np.testing.assert_allclose(
                found.scores[query][same],
                [score[row] for row in found.indices[query][same]],
                atol=5e-4,
            )

    def test_usearch_returns_k_results(self, real_aligner, captioned_images, dtype):
        for index in ("faiss", "usearch"):
            retriever = CrossModalRetriever(real_aligner, index=index, dtype=dtype)
            retriever.fit(captioned_images.images)
            for queries in (captioned_images.captions[:1], captioned_images.captions[:3]):
                found = retriever.search(queries, k=300)
                assert (np.sort(found.indices, axis=1) == np.arange(300)).all()


@pytest.mark.parametrize("package", ["faiss", "usearch"])
def test_missing_package_is_named(aligner, concepts, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.index", None)
    with pytest.raises(ImportError, match=r'pip install "sklearn-ape\[index\]"'):
        CrossModalRetriever(aligner, index=package).fit(concepts.image)
