"""Search indexes and the interpretation of queries."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.sparse import coo_matrix, csc_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.pipeline import make_pipeline

from sklearn_ape import CCAAligner, CrossModalRetriever
from sklearn_ape.retrieval._index import find_nearest, make_index, resolve_queries
from sklearn_ape.utils.linalg import normalize_rows

LEAST_RECALL = 0.97


@pytest.fixture(scope="session")
def exact(real_aligner, captioned_images):
    return CrossModalRetriever(real_aligner).fit(captioned_images.images)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
class TestIndexes:
    def test_faiss_is_exact(self, real_aligner, exact, captioned_images, dtype):
        retriever = CrossModalRetriever(real_aligner, index="faiss", dtype=dtype)
        result = retriever.fit(captioned_images.images).search(captioned_images.captions, k=10)
        expected = exact.search(captioned_images.captions, k=10)
        if dtype == "float32":
            np.testing.assert_array_equal(result.indices, expected.indices)
        np.testing.assert_allclose(result.scores, expected.scores, atol=5e-4)

    def test_usearch_recall_is_high(self, real_aligner, exact, captioned_images, dtype):
        retriever = CrossModalRetriever(real_aligner, index="usearch", dtype=dtype)
        result = retriever.fit(captioned_images.images).search(captioned_images.captions, k=10)
        expected = exact.search(captioned_images.captions, k=10)
        common = [
            np.intersect1d(rows, expected_rows)
            for rows, expected_rows in zip(result.indices, expected.indices, strict=True)
        ]
        assert np.mean([len(rows) for rows in common]) / 10 > LEAST_RECALL
        for query, rows in enumerate(common):  # scores are exact cosines, not those of the graph
            score = dict(zip(expected.indices[query], expected.scores[query], strict=True))
            is_common = np.isin(result.indices[query], rows)
            np.testing.assert_allclose(
                result.scores[query][is_common],
                [score[row] for row in result.indices[query][is_common]],
                atol=5e-4,
            )

    def test_approximate_indexes_return_k_results(self, real_aligner, captioned_images, dtype):
        for index in ("faiss", "usearch"):
            retriever = CrossModalRetriever(real_aligner, index=index, dtype=dtype)
            retriever.fit(captioned_images.images)
            for queries in (captioned_images.captions[:1], captioned_images.captions[:3]):
                result = retriever.search(queries, k=300)
                assert (np.sort(result.indices, axis=1) == np.arange(300)).all()


def test_small_usearch_graph_is_reproducible_and_complete():
    # Threads that fill an empty graph together leave some embeddings without neighbors.
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(300, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    graphs = [make_index("usearch", embeddings) for _ in range(10)]
    expected = find_nearest(embeddings, embeddings, 10)
    rows = [graph.search(embeddings, embeddings, 10) for graph in graphs]
    for found in rows[1:]:
        np.testing.assert_array_equal(found, rows[0])
    assert (np.sort(rows[0]) == np.sort(expected)).mean() > 0.995


def test_usearch_finds_neighbors_of_queries_that_are_far_from_all_embeddings():
    """Texts are such queries: a tenth of the nearest images were missed in a real collection."""
    rng = np.random.default_rng(0)
    spread = np.linspace(1, 0.2, 64)
    embeddings = normalize_rows((spread * rng.standard_normal((1500, 64))).astype(np.float32))
    queries = normalize_rows(rng.standard_normal((200, 64)).astype(np.float32))
    graph = make_index("usearch", embeddings)
    expected = find_nearest(embeddings, queries, 30)
    for index in (graph, pickle.loads(pickle.dumps(graph))):
        nearest = index.search(embeddings, queries, 30)
        assert (np.sort(nearest) == np.sort(expected)).all(axis=1).mean() > 0.95


@pytest.fixture(scope="session")
def retriever(real_aligner, captioned_images):
    return CrossModalRetriever(real_aligner).fit(captioned_images.images[:40])


class TestResolveQueries:
    def test_str_is_text_and_other_types_are_images(self, captioned_images):
        path = Path(captioned_images.images[0])
        for texts in (["a cat"], np.array(["a cat"]), ("a cat", "a dog")):
            assert resolve_queries(texts, "auto")[1]
        for images in ([path], [path.read_bytes()], [np.zeros((4, 4, 3))], np.zeros((2, 8))):
            assert not resolve_queries(images, "auto")[1]
        assert not resolve_queries([str(path)], "image")[1]
        assert resolve_queries(np.zeros((2, 8)), "text")[1]

    @pytest.mark.parametrize(
        ("queries", "modality", "message"),
        [
            ("a cat", "auto", r"single query.*Pass a list: \[\'a cat\'\]"),
            (Path("a.png"), "auto", "single query"),
            ([], "auto", "queries is empty"),
            (np.zeros((0, 3)), "auto", "queries is empty"),
            (None, "auto", "must be a sequence"),
            ({"a cat"}, "auto", "must be a sequence"),
            (["a cat", "  "], "auto", "an empty text in row 1"),
            (["a cat", None], "auto", r"queries has a missing query in row 1"),
            (["a cat", float("nan")], "text", r"queries has a missing query in row 1"),
            (["a cat", Path("b.png")], "auto", r"mixes texts \(query 0\) with images \(query 1"),
            (["a cat", 3], "text", "an object of type int in row 1"),
            (["a cat"], "sound", "modality must be one of auto, image, text"),
        ],
    )
    def test_invalid_queries_raise(self, queries, modality, message):
        with pytest.raises(ValueError, match=message):
            resolve_queries(queries, modality)

    def test_texts_that_look_like_paths_warn(self, tmp_path):
        (tmp_path / "cat").write_text("")
        for text in (str(tmp_path / "cat"), "photos/missing.JPG"):
            with pytest.warns(UserWarning, match="look like paths.*modality='image'"):
                resolve_queries(["a cat", text], "auto")
            # The filterwarnings mark turns a warning into an error.
            resolve_queries([text], "text")


@pytest.mark.filterwarnings("error")
class TestQueries:
    def test_texts_in_any_container_give_equal_results(self, retriever):
        expected = retriever.search(["a bird", "a cake"]).indices
        for texts in (("a bird", "a cake"), np.array(["a bird", "a cake"])):
            np.testing.assert_array_equal(retriever.search(texts).indices, expected)

    @pytest.mark.parametrize("k", [0, -1, 41, 2.0, True, None])
    def test_invalid_k_raises(self, retriever, k):
        with pytest.raises(ValueError, match=r"k must be an integer from 1 to .* 40, not"):
            retriever.search(["a bird"], k=k)
        with pytest.raises(ValueError, match="n_neighbors must be an integer from 1"):
            retriever.kneighbors([Path("x.png")], n_neighbors=k)

    @pytest.mark.parametrize("from_pandas", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas])
    def test_tables_must_have_the_columns_of_the_fit(self, concepts, from_pandas):
        """Tables of polars lost the names of their columns, whose order was not checked."""
        image, text = pd.DataFrame(concepts.image), pd.DataFrame(concepts.text)
        for side in (image, text):
            side.columns = [f"feature{number}" for number in side.columns]
        aligner = CCAAligner().fit(from_pandas(image), from_pandas(text))
        retriever = CrossModalRetriever(aligner).fit(from_pandas(image))
        for table, modality in ((image, "image"), (text, "text")):
            found = retriever.search(from_pandas(table[:3]), k=2, modality=modality).indices
            by_name = retriever.search(table[:3], k=2, modality=modality).indices
            np.testing.assert_array_equal(found, by_name)
            with pytest.raises(ValueError, match="in the same order"):
                retriever.search(from_pandas(table.iloc[:3, ::-1]), modality=modality)

    def test_texts_for_an_aligner_of_features_raise(self, aligner, concepts):
        retriever = CrossModalRetriever(aligner).fit(concepts.image)
        with pytest.raises(ValueError, match="fitted on features of texts"):
            retriever.search(["a bird"])


@pytest.mark.parametrize("kind", [pa.table, csc_matrix, coo_matrix])
def test_items_of_features_are_row_numbers(concepts, kind):
    """The rows of pyarrow tables and of most sparse matrices were taken for images."""
    model = make_pipeline(TruncatedSVD(8, random_state=0), CCAAligner())
    model.fit(concepts.image, concepts.text)
    columns = {f"feature{number}": column for number, column in enumerate(concepts.image.T)}
    retriever = CrossModalRetriever(model).fit(
        kind(columns if kind is pa.table else concepts.image)
    )
    assert retriever.items_ == list(range(300))
    assert retriever.remove([0]).search(concepts.image[1:2], k=1).items == [[0]]


@pytest.mark.parametrize("index", ["faiss", "usearch"])
def test_missing_package_of_an_index_is_reported(aligner, concepts, index, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    message = rf"^index='{index}', unlike 'exact', needs .* pip install \"sklearn-ape\[index\]\""
    with pytest.raises(ImportError, match=message):
        CrossModalRetriever(aligner, index=index).fit(concepts.image)
