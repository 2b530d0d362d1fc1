"""Collections of `CrossModalRetriever`: adding, input and unreadable images."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sklearn_ape import (
    APEAligner,
    CrossModalRetriever,
    KernelAligner,
    load_pretrained,
)
from sklearn_ape.retrieval import SearchResult
from tests.retrieval.conftest import assert_equal


class TestAdd:
    @pytest.mark.parametrize("index", ["exact", "faiss", "usearch"])
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_add_equals_fit_on_all_images(self, aligner, concepts, index, dtype):
        X, ids = concepts.image, [f"image {row}" for row in range(300)]
        reference = CrossModalRetriever(aligner, index=index, dtype=dtype).fit(X, ids)
        grown = CrossModalRetriever(aligner, index=index, dtype=dtype).fit(X[:100], ids[:100])
        before = grown.search(X[:5], k=3)
        grown.add(X[100:101], ids[100:101]).add(X[101:], np.array(ids[101:]))
        actual, expected = (retriever.search(X[200:210], k=5) for retriever in (grown, reference))
        if index == "usearch":  # an approximate graph, which depends on the order of its threads
            shared = [set(a) & set(b) for a, b in zip(actual.items, expected.items, strict=True)]
            assert sum(map(len, shared)) >= 40
        else:
            assert_equal(actual, expected)
        assert grown.n_samples_fit_ == 300
        assert grown.items_ == ids
        assert before.items == [[ids[row] for row in rows] for rows in before.indices]

    def test_standardized_by_all_images_after_add(self, aligner, concepts):
        X, y = concepts.image, concepts.text[:20]
        reference = CrossModalRetriever(aligner, standardize=True).fit(X)
        grown = CrossModalRetriever(aligner, standardize=True).fit(X[:100])
        grown.search(y, modality="text")
        grown.add(X[100:])
        assert_equal(grown.search(y, modality="text"), reference.search(y, modality="text"))

    def test_failed_add_changes_nothing(self, aligner, concepts):
        retriever = CrossModalRetriever(aligner).fit(concepts.image)
        bad = concepts.image[:3].copy()
        bad[1, 4] = np.nan
        with pytest.raises(ValueError, match="row"):
            retriever.add(bad)
        with pytest.raises(ValueError, match="fit was called without y"):
            retriever.add(concepts.image[:3], ["a", "b", "c"])
        assert retriever.n_samples_fit_ == 300

    def test_add_requires_ids_if_fit_had_ids(self, aligner, concepts):
        retriever = CrossModalRetriever(aligner).fit(concepts.image, range(300))
        with pytest.raises(ValueError, match="fit was called with y"):
            retriever.add(concepts.image[:3])
        with pytest.raises(ValueError, match="y has 2 entries, and there are 3 images"):
            retriever.add(concepts.image[:3], ["a", "b"])

    def test_copies_are_reported(self, aligner, concepts):
        """Images with equal captions are copies only if their embeddings are equal."""
        X, captions = concepts.image, ["a cat", "a dog", "a cat", "a bird"]
        retriever = CrossModalRetriever(aligner).fit(X[:4], captions)
        with pytest.warns(UserWarning, match=r"^2 of 3 images were already .*: 'a cat', 'a bird'"):
            retriever.add(X[[0, 3, 5]], ["a cat", "a bird", "a dog"])
        retriever.add(X[6:8], ["a cat", "a bird"])
        retriever.remove(["a cat", "a bird"]).add(X[:1], ["a cat"])
        assert retriever.items_ == ["a dog", "a dog", "a cat"]
        retriever.fit(X[[0, 0]], ["a cat", "a bird"])
        with pytest.warns(UserWarning, match=r"^1 of 2 images were already .*: 'a bird'\."):
            retriever.add(X[:2], ["a bird", "a bird"])

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_all_copies_with_the_same_label_are_reported(self, aligner, concepts, dtype):
        """The items are class labels, which many images share."""
        X, labels = concepts.image, np.array(["cat", "dog"] * 150)
        retriever = CrossModalRetriever(aligner, dtype=dtype).fit(X[:40], labels[:40])
        message = r"^20 of 30 images were already .* now: 'cat', 'dog'\. .* removes all images"
        with pytest.warns(UserWarning, match=message):
            retriever.add(X[20:50], labels[20:50])

    def test_unreadable_images_are_not_copies(self, aligner, concepts):
        """The row that follows an unreadable image is that of another image."""
        X = concepts.image[:3].copy()
        X[0] = np.nan
        with pytest.warns(UserWarning, match="1 of 3 images could not be read"):
            retriever = CrossModalRetriever(aligner).fit(X, ["a", "b", "c"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            retriever.add(X[1:2], ["a"])

    def test_mask_is_not_a_list_of_row_numbers(self, aligner, concepts):
        """True and False are equal to 1 and 0, the numbers of the first rows."""
        retriever = CrossModalRetriever(aligner).fit(concepts.image[:4])
        with pytest.raises(ValueError, match=r"^items has .*True.* Pass members of items_"):
            retriever.remove(np.array([False, True, True, False]))
        assert retriever.items_ == [0, 1, 2, 3]
        retriever.fit(concepts.image[:3], [True, False, True]).remove([True])
        assert retriever.items_ == [False]

    def test_paths_of_any_type_are_the_same_item(self, real_aligner, captioned_images, tmp_path):
        """Saved paths are loaded as str."""
        paths = [Path(image) for image in captioned_images.images[:3]]
        CrossModalRetriever(real_aligner).fit(paths).save_pretrained(tmp_path / "index")
        retriever = load_pretrained(tmp_path / "index")
        assert retriever.remove(paths[:2]).items_ == captioned_images.images[2:3]
        with pytest.warns(UserWarning, match="1 of 2 images were already in the collection"):
            retriever.add(paths[1:])
        records = [{"path": path} for path in paths]
        CrossModalRetriever(real_aligner).fit(paths, records).save_pretrained(tmp_path / "records")
        retriever = load_pretrained(tmp_path / "records")
        assert len(retriever.remove(records[:2]).items_) == 1

    def test_copied_paths_are_reported(self, real_aligner, captioned_images, tmp_path):
        """A file that has changed has the same path, but another embedding."""
        file = tmp_path / "a.png"
        file.write_bytes(Path(captioned_images.images[0]).read_bytes())
        retriever = CrossModalRetriever(real_aligner).fit([file, captioned_images.images[1]])
        file.write_bytes(Path(captioned_images.images[2]).read_bytes())
        with pytest.warns(UserWarning, match=r"^1 of 1 images were already .*a\.png"):
            retriever.add([file])


class TestUnreadableImages:
    def test_rows_of_nan_are_not_in_results(self, aligner, concepts):
        X = concepts.image.copy()
        X[[2, 250]] = np.nan
        with pytest.warns(UserWarning, match=r"2 of 300 images could not be read .* 2, 250\."):
            retriever = CrossModalRetriever(aligner).fit(X)
        assert (retriever.n_samples_fit_, retriever.n_unread_) == (300, 2)
        result = retriever.search(X[[251, 0]], k=298)
        assert result.indices[:, 0].tolist() == [251, 0]
        assert not np.isin(result.indices, [2, 250]).any()
        with pytest.warns(UserWarning, match=r"1 of 3 images .* rows 301\."):
            retriever.add(X[1:4])
        assert retriever.n_unread_ == 3
        assert retriever.search(X[3:4], k=2).indices.tolist() == [[3, 302]]

    def test_broken_file_is_counted_and_broken_query_has_no_results(
        self, captioned_images, features, text_encoder, image_encoder, tmp_path
    ):
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"not an image")
        forgiving = clone(image_encoder).set_params(on_error="nan")
        aligner = KernelAligner(image_encoder=forgiving, text_encoder=text_encoder)
        aligner.fit(captioned_images.images[:60], captioned_images.captions[:60])
        with pytest.warns(UserWarning, match="cannot be found: rows 1"):
            retriever = CrossModalRetriever(aligner).fit(
                [captioned_images.images[0], broken, captioned_images.images[1]]
            )
        assert retriever.n_unread_ == 1
        pairs = [(broken, "a cat"), (captioned_images.images[1], "a cat")]
        with pytest.warns(UserWarning, match="1 of 2 queries could not be read .*: rows 0"):
            assert retriever.search(pairs, k=1).indices[0] == [-1]
        queries = [broken, captioned_images.images[1]]
        with pytest.warns(UserWarning, match="1 of 2 queries could not be read .*: rows 0"):
            result = retriever.search(queries, k=2, modality="image")
        assert result.indices.tolist() == [[-1, -1], [2, 0]]
        assert np.isnan(result.scores[0]).all()
        assert result.items == [[], [captioned_images.images[1], captioned_images.images[0]]]
        assert len(result.to_frame()) == 2
        with pytest.warns(UserWarning, match="have no results: rows 0"):
            assert retriever.search([broken], k=1, modality="image").items == [[]]
        with (
            pytest.warns(UserWarning, match="broken"),
            pytest.raises(ValueError, match="1 images that could not be read: rows 0"),
        ):
            retriever.kneighbors(queries, 1)
        broken.write_bytes(Path(captioned_images.images[0]).read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            retriever.add([broken])  # it could not be found so far, so it is not a copy

    @pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
    def test_items_are_paths_if_the_first_image_is_missing(
        self, captioned_images, features, text_encoder, image_encoder, missing
    ):
        """Results were row numbers, and `add` refused images."""
        forgiving = clone(image_encoder).set_params(on_error="nan")
        aligner = KernelAligner(image_encoder=forgiving, text_encoder=text_encoder)
        aligner.fit(captioned_images.images[:60], captioned_images.captions[:60])
        images = captioned_images.images[:2]
        for column in ([missing, *images], pd.Series([missing, *images], dtype=object)):
            with pytest.warns(UserWarning, match="cannot be found: rows 0"):
                retriever = CrossModalRetriever(aligner).fit(column)
            assert retriever.items_[1:] == images
            retriever.add(captioned_images.images[2:3])

    def test_all_images_unreadable_raises(self, aligner, concepts):
        with (
            pytest.warns(UserWarning, match="3 of 3"),
            pytest.raises(ValueError, match="None of the 3 images could be read"),
        ):
            CrossModalRetriever(aligner).fit(np.full_like(concepts.image[:3], np.nan))


class TestInput:
    def test_items_of_an_array_of_paths_are_plain_texts(self, real_aligner, captioned_images):
        """They were np.str_, which results and messages showed as np.str_('cat.png')."""
        paths = [str(path) for path in captioned_images.images[:3]]
        retriever = CrossModalRetriever(real_aligner).fit(np.array(paths))
        assert repr(retriever.items_) == repr(paths)
        with pytest.warns(UserWarning, match=r"paths: 'no\.png'\. They"):
            retriever.search(np.array(["no.png", "a cat"]), k=1)

    def test_memory_map_is_read_in_blocks(self, aligner, concepts, tmp_path, monkeypatch):
        monkeypatch.setattr("sklearn_ape.features.matrix.TILE_BYTES", 4 * 32 * 40)
        np.save(tmp_path / "X.npy", concepts.image)
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        sizes = []

        def transform(X):
            sizes.append(len(X))
            return type(aligner).transform(aligner, X)

        monkeypatch.setattr(aligner, "transform", transform)
        by_map = CrossModalRetriever(aligner).fit(mapped)
        assert max(sizes) <= 40
        monkeypatch.undo()
        in_memory = CrossModalRetriever(aligner).fit(concepts.image)
        y = concepts.text[:9]
        assert_equal(by_map.search(y, modality="text"), in_memory.search(y, modality="text"))

    def test_tables_and_lists_of_features_give_equal_results(self, aligner, concepts):
        expected = CrossModalRetriever(aligner).fit(concepts.image).search(concepts.image[:3])
        for X in (concepts.image.tolist(), concepts.image.astype(np.float64)):
            result = CrossModalRetriever(aligner).fit(X).search(X[:3])
            assert_equal(result, expected)

    def test_columns_of_paths_and_ids_are_accepted(self, real_aligner, captioned_images):
        paths, ids = (
            pd.Series(captioned_images.images[:5], index=range(9, 14)),
            pd.Series(range(5)),
        )
        retriever = CrossModalRetriever(real_aligner).fit(paths, ids)
        assert retriever.search(paths, k=1, modality="image").items == [[0], [1], [2], [3], [4]]

    def test_empty_collection_raises(self, aligner, real_aligner, concepts):
        with pytest.raises(ValueError, match="empty"):
            CrossModalRetriever(real_aligner).fit([])
        with pytest.raises(ValueError, match="0 sample"):
            CrossModalRetriever(aligner).fit(concepts.image[:0])

    def test_number_of_ids_is_checked_before_encoding(self, real_aligner, captioned_images):
        with pytest.raises(ValueError, match="y has 4 entries, and there are 5 images"):
            CrossModalRetriever(real_aligner).fit(
                captioned_images.images[:5], ["a", "b", "c", "d"]
            )

    def test_unfitted_aligner_raises(self, concepts):
        with pytest.raises(NotFittedError, match=r"aligner\.fit\(images, captions\) first"):
            CrossModalRetriever(APEAligner()).fit(concepts.image)
        with pytest.raises(TypeError, match="must be an aligner"):
            CrossModalRetriever(object()).fit(concepts.image)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"index": "annoy"}, "index must be one of exact, faiss, usearch, not 'annoy'"),
            ({"dtype": "int8"}, "dtype must be one of float32, float16, not 'int8'"),
            ({"standardize": "yes"}, "standardize must be True, False or a collection"),
            ({"standardize": True, "index": "faiss"}, "Pass index='exact'"),
        ],
    )
    def test_invalid_parameters_raise(self, aligner, concepts, parameters, message):
        with pytest.raises(ValueError, match=message):
            CrossModalRetriever(aligner, **parameters).fit(concepts.image)


class TestEstimator:
    @pytest.mark.parametrize("index", ["exact", "faiss", "usearch"])
    def test_pickle_gives_equal_results(self, aligner, concepts, index):
        retriever = CrossModalRetriever(aligner, index=index).fit(concepts.image)
        copied = pickle.loads(pickle.dumps(retriever))
        queries = concepts.text[:8]
        expected = retriever.search(queries, modality="text")
        assert_equal(copied.search(queries, modality="text"), expected)
        copied.add(concepts.image[:1])
        assert (copied.n_samples_fit_, retriever.n_samples_fit_) == (301, 300)

    def test_unfitted_retriever_raises(self, aligner, concepts):
        retriever = clone(CrossModalRetriever(aligner, dtype="float16"))
        assert retriever.get_params(deep=False)["dtype"] == "float16"
        assert not hasattr(retriever, "items_")
        for ask in (retriever.search, retriever.kneighbors, retriever.add):
            with pytest.raises(NotFittedError):
                ask(concepts.image)

    def test_html_repr(self, aligner, concepts):
        retriever = CrossModalRetriever(aligner).fit(concepts.image)
        assert "CCAAligner" in retriever._repr_html_()
        assert retriever.n_features_in_ == 32

    @pytest.mark.parametrize("index", ["exact", "faiss", "usearch"])
    def test_threads_can_search_during_add(self, aligner, concepts, index):
        retriever = CrossModalRetriever(aligner, index=index).fit(concepts.image)
        expected = retriever.search(concepts.image, k=1).indices
        with ThreadPoolExecutor(8) as pool:
            running = [
                pool.submit(retriever.search, concepts.image[row : row + 30], 1)
                for row in range(0, 270, 10)
            ]
            for _ in range(3):
                retriever.add(concepts.image[:50])
            for row, future in zip(range(0, 270, 10), running, strict=True):
                np.testing.assert_array_equal(future.result().indices, expected[row : row + 30])


def test_result_becomes_a_table():
    result = SearchResult(np.array([[0.5], [0.25]]), np.array([[3], [0]]), [["c"], ["a"]])
    assert result.to_frame().query("query == 1").item.tolist() == ["a"]
    with pytest.raises(ValueError, match="1 entries, and this is the result of 2"):
        result.to_frame(["one"])
    for queries in ("ab", (name for name in "ab")):
        with pytest.raises(ValueError, match=r"queries .*Pass a list"):
            result.to_frame(queries)
