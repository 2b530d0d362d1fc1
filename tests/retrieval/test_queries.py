"""Queries: words or images, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from sklearn_ape import CrossModalRetriever
from sklearn_ape.retrieval._index import told_apart


@pytest.fixture(scope="session")
def retriever(real_aligner, captioned_images):
    return CrossModalRetriever(real_aligner).fit(captioned_images.images[:40])


class TestToldApart:
    def test_str_is_text_and_all_else_is_an_image(self, captioned_images):
        path = Path(captioned_images.images[0])
        for texts in (["a cat"], np.array(["a cat"]), ("a cat", "a dog")):
            assert told_apart(texts, "auto")[1]
        for images in ([path], [path.read_bytes()], [np.zeros((4, 4, 3))], np.zeros((2, 8))):
            assert not told_apart(images, "auto")[1]
        assert not told_apart([str(path)], "image")[1]
        assert told_apart(np.zeros((2, 8)), "text")[1]

    @pytest.mark.parametrize(
        ("queries", "modality", "message"),
        [
            ("a cat", "auto", r"single query.*Pass a list: \[\'a cat\'\]"),
            (Path("a.png"), "auto", "single query"),
            ([], "auto", "queries is empty"),
            (np.zeros((0, 3)), "auto", "queries is empty"),
            (None, "auto", "must be a sequence"),
            ({"a cat"}, "auto", "must be a sequence"),
            (["a cat", "  "], "auto", "Query 1 is an empty text"),
            (["a cat", Path("b.png")], "auto", r"mixes texts \(query 0\) with images \(query 1"),
            (["a cat", 3], "text", "takes str, and query 1 is of type int"),
            (["a cat"], "sound", "modality must be one of auto, image, text"),
        ],
    )
    def test_refused(self, queries, modality, message):
        with pytest.raises(ValueError, match=message):
            told_apart(queries, modality)

    def test_words_that_look_like_a_path(self, tmp_path):
        (tmp_path / "cat").write_text("")
        for text in (str(tmp_path / "cat"), "photos/missing.JPG"):
            with pytest.warns(UserWarning, match="look like paths.*modality='image'"):
                told_apart(["a cat", text], "auto")
            told_apart([text], "text")  # no warning: filterwarnings would turn it into an error


@pytest.mark.filterwarnings("error")
class TestQueries:
    def test_words_need_no_certain_container(self, retriever):
        expected = retriever.search(["a bird", "a cake"]).indices
        for texts in (("a bird", "a cake"), np.array(["a bird", "a cake"])):
            np.testing.assert_array_equal(retriever.search(texts).indices, expected)

    @pytest.mark.parametrize("k", [0, -1, 41, 2.0, True, None])
    def test_bad_k(self, retriever, k):
        with pytest.raises(ValueError, match=r"k must be an integer from 1 to .* 40, not"):
            retriever.search(["a bird"], k=k)
        with pytest.raises(ValueError, match="n_neighbors must be an integer from 1"):
            retriever.kneighbors([Path("x.png")], n_neighbors=k)

    def test_words_for_an_aligner_that_knows_features_alone(self, aligner, concepts):
        retriever = CrossModalRetriever(aligner).fit(concepts.image)
        with pytest.raises(ValueError, match="fitted on features of texts"):
            retriever.search(["a bird"])
