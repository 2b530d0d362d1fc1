"""Image and text search with `CrossModalRetriever`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline

from sklearn_ape import CrossModalRetriever, KernelAligner
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.persistence import FittedState
from sklearn_ape.retrieval import _index

QUERIES = ["a red fruit", "a small bird", "a boat on the water"]


def best_rows(similarity, k):
    """Return the k largest values per row and their indices; ties are in order of indices."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


@pytest.fixture(scope="session")
def retriever(real_aligner, captioned_images):
    return CrossModalRetriever(real_aligner).fit(captioned_images.images)


class TestSearch:
    def test_text_search_equals_full_matrix(self, retriever, real_aligner, captioned_images):
        result = retriever.search(QUERIES, k=7)
        scores, order = best_rows(real_aligner.similarity(captioned_images.images, QUERIES).T, 7)
        np.testing.assert_allclose(result.scores, scores, atol=1e-6)
        np.testing.assert_array_equal(result.indices, order)
        assert result.items == [[captioned_images.images[row] for row in rows] for rows in order]

    @pytest.mark.filterwarnings("error")  # a warning said that paths are searched as text
    def test_image_files_as_str_raise(self, retriever, captioned_images):
        path = captioned_images.images[0]
        with pytest.raises(
            ValueError, match=r"image files given as str.*modality='image'"
        ) as error:
            retriever.search([path])
        assert path in str(error.value)
        assert "texts separately" not in str(error.value)
        with pytest.raises(ValueError, match=r"Search for the texts separately\.$"):
            retriever.search(["a bird", path])

    def test_image_of_any_type_finds_itself(self, retriever, captioned_images):
        path = Path(captioned_images.images[17])
        for query in (path, path.read_bytes(), Image.open(path), np.asarray(Image.open(path))):
            result = retriever.search([query], k=2)
            assert result.indices[0, 0] == 17
            np.testing.assert_allclose(result.scores[0, 0], 1, atol=1e-5)
        assert retriever.search([str(path)], k=1, modality="image").indices.tolist() == [[17]]

    def test_items_may_be_captions(self, real_aligner, captioned_images):
        retriever = CrossModalRetriever(real_aligner).fit(
            captioned_images.images, captioned_images.captions
        )
        result = retriever.search([Path(captioned_images.images[3])], k=1)
        assert result.items == [[captioned_images.captions[3]]]
        assert retriever.items_ == captioned_images.captions

    @pytest.mark.parametrize("wrap", [FrozenEstimator, lambda model: model])
    def test_pipeline_gives_results_of_its_aligner(
        self, wrap, features, captioned_images, image_encoder
    ):
        aligner = KernelAligner().fit(features.image[:60], features.text[:60])
        model = wrap(make_pipeline(image_encoder, aligner))
        by_images = CrossModalRetriever(model).fit(captioned_images.images[:50])
        by_features = CrossModalRetriever(aligner).fit(features.image[:50])
        queries = features.text[:3]
        result = by_images.search(queries, modality="text")
        expected = by_features.search(queries, modality="text")
        np.testing.assert_array_equal(result.indices, expected.indices)
        assert expected.items == expected.indices.tolist()

    def test_starter_model_is_the_default(self):
        data = load_openmoji()
        rows = [data.captions.index(name) for name in ("red apple", "spider", "bus")]
        retriever = CrossModalRetriever().fit([data.images[row] for row in rows])
        assert retriever.search(["a bus", "an apple"], k=1).indices.tolist() == [[2], [0]]


class TestFeatures:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("tile", [2**23, 4 * 16 * 40])
    def test_tiled_search_is_exact(self, aligner, concepts, monkeypatch, tile, dtype):
        monkeypatch.setattr("sklearn_ape.features.matrix.TILE_BYTES", tile)
        monkeypatch.setattr(_index, "_BLOCK_SIZE", 7)
        retriever = CrossModalRetriever(aligner, dtype=dtype).fit(concepts.image)
        stored = aligner.transform(concepts.image).astype(dtype).astype(np.float64)
        queries = aligner.transform_text(concepts.text[:40])
        scores, order = best_rows((queries @ stored.T).astype(np.float32), 9)
        result = retriever.search(concepts.text[:40], k=9, modality="text")
        np.testing.assert_array_equal(result.indices, order)
        np.testing.assert_allclose(result.scores, scores, atol=1e-6)
        similarity = aligner.similarity(concepts.image, concepts.text[:40]).T
        np.testing.assert_allclose(result.scores, best_rows(similarity, 9)[0], atol=5e-4)

    def test_error_for_features_of_texts_names_the_parameter(self, aligner, concepts):
        retriever = CrossModalRetriever(aligner).fit(concepts.image)
        with pytest.raises(ValueError, match=r"expecting .* pass modality='text'\.$"):
            retriever.search(concepts.text[:2])
        with pytest.raises(ValueError, match=r"expecting \d+ features as input\.$"):
            retriever.search(concepts.text[:2, 1:])

    def test_ties_are_in_order_of_rows(self, aligner, concepts):
        X = np.tile(concepts.image[:10], (30, 1))
        result = CrossModalRetriever(aligner).fit(X).search(X[:10], k=12)
        np.testing.assert_array_equal(result.indices, np.arange(10)[:, None] + 10 * np.arange(12))

    @pytest.mark.parametrize("index", ["exact", "faiss", "usearch"])
    def test_fewer_results_are_the_first_of_more(self, aligner, concepts, index):
        """Products of copies with a query differ by rounding, so they may have another order."""
        for n_images in range(5, 25):
            X = np.tile(concepts.image[:n_images], (2, 1))
            retriever = CrossModalRetriever(aligner, index=index).fit(X)
            every = retriever.search(concepts.text[:20], k=len(X), modality="text")
            for k in (1, 3, 5):
                some = retriever.search(concepts.text[:20], k=k, modality="text")
                np.testing.assert_array_equal(some.indices, every.indices[:, :k])

    @pytest.mark.parametrize("merge_ratio", [1, 16, 10**9])
    @pytest.mark.parametrize("tile", [2**23, 4 * 16 * 40])
    def test_many_ties_are_in_order_of_rows(self, monkeypatch, tile, merge_ratio):
        """Small integers give many equal products, of which the first rows must be returned."""
        monkeypatch.setattr("sklearn_ape.features.matrix.TILE_BYTES", tile)
        monkeypatch.setattr(_index, "_MERGE_RATIO", merge_ratio)
        rng = np.random.default_rng(0)
        embeddings, queries = (
            rng.integers(-2, 3, (n_rows, 6)).astype(np.float32) for n_rows in (400, 30)
        )
        for k in (1, 3, 50, 399, 400):
            order = best_rows(queries @ embeddings.T, k)[1]
            rows = _index.find_nearest(embeddings, queries, k)
            np.testing.assert_array_equal(rows, np.sort(order, axis=1))

    def test_kneighbors_equals_scikit_learn(self, aligner, concepts):
        retriever = CrossModalRetriever(aligner).fit(concepts.image)
        peer = NearestNeighbors(metric="cosine").fit(aligner.transform(concepts.image))
        distances, indices = retriever.kneighbors(concepts.image[:20], n_neighbors=6)
        expected, order = peer.kneighbors(aligner.transform(concepts.image[:20]), 6)
        np.testing.assert_allclose(distances, expected, atol=1e-6)
        np.testing.assert_array_equal(indices, order)
        without_distances = retriever.kneighbors(concepts.image[:20], 6, return_distance=False)
        np.testing.assert_array_equal(without_distances, order)


class TestStandardize:
    @pytest.mark.parametrize("tile", [2**23, 4 * 16 * 40])
    def test_scores_are_standardized_by_the_collection(self, aligner, concepts, monkeypatch, tile):
        X, y = concepts.image, concepts.text[:20]
        scores, order = best_rows(aligner.similarity(X, y, standardize=X).T, 8)
        monkeypatch.setattr("sklearn_ape.features.matrix.TILE_BYTES", tile)
        monkeypatch.setattr(_index, "_BLOCK_SIZE", 7)
        retriever = CrossModalRetriever(aligner, standardize=True).fit(X)
        for _ in range(2):  # the second search uses cached values
            result = retriever.search(y, k=8, modality="text")
            np.testing.assert_array_equal(result.indices, order)
            np.testing.assert_allclose(result.scores, scores, atol=1e-5)
        plain = CrossModalRetriever(aligner).fit(X).search(y, k=8, modality="text")
        assert (plain.indices != order).any()

    def test_scores_are_standardized_by_given_images(self, aligner, concepts):
        X, y, bank = concepts.image[:200], concepts.text[:20], concepts.image[200:]
        scores, order = best_rows(aligner.similarity(X, y, standardize=bank).T, 8)
        result = (
            CrossModalRetriever(aligner, standardize=bank).fit(X).search(y, 8, modality="text")
        )
        np.testing.assert_array_equal(result.indices, order)
        np.testing.assert_allclose(result.scores, scores, atol=1e-5)

    def test_scores_are_standardized_without_captions(self, aligner, concepts):
        del aligner.bank_
        X, y = concepts.image, concepts.text[:20]
        scores, order = best_rows(aligner.similarity(X, y, standardize=X).T, 8)
        result = (
            CrossModalRetriever(aligner, standardize=True).fit(X).search(y, 8, modality="text")
        )
        np.testing.assert_array_equal(result.indices, order)
        np.testing.assert_allclose(result.scores, scores, atol=1e-5)

    def test_image_queries_use_plain_cosines(self, aligner, concepts):
        X = concepts.image
        result = CrossModalRetriever(aligner, standardize=True).fit(X).search(X[:9], k=4)
        plain = CrossModalRetriever(aligner).fit(X).search(X[:9], k=4)
        np.testing.assert_array_equal(result.indices, plain.indices)
        np.testing.assert_array_equal(result.scores, plain.scores)

    def test_equal_images_raise(self, aligner, concepts):
        X = np.repeat(concepts.image[:1], 5, axis=0)
        retriever = CrossModalRetriever(aligner, standardize=True).fit(X)
        with pytest.raises(ValueError, match="images that differ"):
            retriever.search(concepts.text[:2], modality="text")


def test_texts_that_earlier_versions_saved_are_restored(aligner, concepts):
    """They stored texts as an array; now all items are JSON."""
    expected = ["", *["naïve"] * 298, "b\udcff"]  # a file name that is not UTF-8
    texts = [text.encode("utf-8", "surrogateescape") for text in expected]
    ends = np.cumsum([len(text) for text in texts])
    items = {"texts": np.frombuffer(b"".join(texts), np.uint8), "ends": ends}
    state = CrossModalRetriever(aligner).fit(concepts.image)._get_state() | {"items": items}
    restored = CrossModalRetriever(aligner)
    restored._set_state(FittedState(state, "CrossModalRetriever"))
    assert restored.items_ == expected
