"""Saving of retrievers: equal results, and damaged files."""

import pickle
import warnings
from datetime import date
from enum import IntEnum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_ape import (
    CrossModalRetriever,
    KernelAligner,
    ZeroShotClassifier,
    load_pretrained,
    load_starter,
)
from sklearn_ape.persistence import FittedState
from tests.retrieval.conftest import assert_equal


def save_and_load(retriever, folder):
    retriever.save_pretrained(folder / "model")
    return CrossModalRetriever.from_pretrained(folder / "model")


class TestSaving:
    @pytest.mark.parametrize("index", ["exact", "faiss", "usearch"])
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_loaded_retriever_gives_equal_results(self, aligner, concepts, tmp_path, index, dtype):
        X, y = concepts.image.copy(), concepts.text[:30]
        X[7] = np.nan
        with pytest.warns(UserWarning, match="rows 7"):
            retriever = CrossModalRetriever(aligner, index=index, dtype=dtype).fit(X)
        loaded = save_and_load(retriever, tmp_path)
        assert (loaded.index, loaded.dtype, loaded.n_unread_) == (index, dtype, 1)
        for queries, modality in ((y, "text"), (X[20:40], "image")):
            expected = retriever.search(queries, k=5, modality=modality)
            result = loaded.search(queries, k=5, modality=modality)
            if index == "usearch":  # threads rebuild its graph in a random order
                assert np.mean(result.indices == expected.indices) > 0.8
            else:
                assert_equal(result, expected)
        loaded.add(X[:1])
        assert loaded.n_samples_fit_ == 301

    def test_loaded_retriever_is_standardized(self, aligner, concepts, tmp_path):
        retriever = CrossModalRetriever(aligner, standardize=True).fit(concepts.image)
        loaded, y = save_and_load(retriever, tmp_path), concepts.text[:30]
        assert_equal(loaded.search(y, modality="text"), retriever.search(y, modality="text"))

    @pytest.mark.parametrize(
        "items",
        [
            [f"naïve {row}\n日本" for row in range(300)],
            [Path("photos") / f"{row}.jpg" for row in range(300)],
            list(range(1000, 1300)),
            [row / 7 for row in range(300)],
            ["", *["a"] * 298, "b\udcff"],  # a file name that is not UTF-8
            ["\ud800", *["a"] * 299],  # half a surrogate pair
            [2**70 + row for row in range(300)],
            [2**63, *[-1] * 299],
            [2**60 + 1, *[0.5] * 299],
            [None, True, False, 1, 1.5, "1", float("inf"), Path("a.jpg"), *[-(2**64)] * 292],
            [np.float32(0.1), np.int8(3), np.str_("a"), np.bool_(True)] * 75,
            [True] * 300,
            [IntEnum("Kind", "a b")(1 + row % 2) for row in range(300)],
        ],
        ids=[
            *[
                "texts",
                "paths",
                "ids",
                "numbers",
                "undecodable",
                "surrogate",
                "huge",
                "beyond int64",
            ],
            *["mixed numbers", "mixed", "scalars", "bools", "enum"],
        ],
    )
    def test_items_are_restored(self, aligner, concepts, tmp_path, items):
        loaded = save_and_load(CrossModalRetriever(aligner).fit(concepts.image, items), tmp_path)
        expected = [str(item) if isinstance(item, Path) else item for item in items]
        assert loaded.items_ == expected
        assert [type(item) is bool for item in loaded.items_] == [
            isinstance(item, bool | np.bool_) for item in expected
        ]
        loaded.add(concepts.image[:1], items[:1])

    def test_numpy_strings_become_str(self, aligner, concepts, tmp_path):
        dtypes = pytest.importorskip("numpy.dtypes")
        items = np.array([f"{row}\0" for row in range(300)], dtype=dtypes.StringDType())
        loaded = save_and_load(CrossModalRetriever(aligner).fit(concepts.image, items), tmp_path)
        assert loaded.items_ == items.tolist()

    def test_numpy_dates_are_kept_in_results(self, aligner, concepts):
        items = np.arange(300).astype("datetime64[ns]")
        retriever = CrossModalRetriever(aligner).fit(concepts.image, items)
        assert retriever.search(concepts.image[4:5], k=1).items == [[items[4]]]
        assert isinstance(retriever.items_[0], np.datetime64)

    @pytest.mark.parametrize(
        "items",
        [
            [{"id": date(2020, 1, 1)}] * 300,
            [b"a"] * 300,
            np.arange(300).astype("datetime64[ns]"),
            [date(2020, 1, 1)] * 300,
            [np.nan, "a", date(2020, 1, 1)] * 100,
            [10**5000] * 300,
        ],
        ids=["dicts", "bytes", "numpy dates", "dates", "mixed", "too large"],
    )
    def test_items_that_cannot_be_saved_become_row_numbers(
        self, aligner, concepts, tmp_path, items
    ):
        retriever = CrossModalRetriever(aligner).fit(concepts.image, items)
        with pytest.warns(UserWarning, match="row numbers. Pass ids as y to fit, or convert"):
            loaded = save_and_load(retriever, tmp_path)
        assert loaded.search(concepts.image[4:5], k=1).items == [[4]]

    def test_records_are_saved(self, aligner, concepts, tmp_path):
        table = pd.DataFrame({"id": range(300), "name": [f"image {i}" for i in range(300)]})
        retriever = CrossModalRetriever(aligner).fit(concepts.image, table)
        assert retriever.items_[7] == {"id": 7, "name": "image 7"}
        assert save_and_load(retriever, tmp_path).items_ == retriever.items_

    @pytest.mark.parametrize(
        "items", [[1.0, np.nan, 2.0], ["a", np.nan, None], [1, pd.NA, 2], ["a", None, pd.NA]]
    )
    def test_missing_item_is_removed_after_loading(self, aligner, concepts, tmp_path, items):
        """NaN is not equal to itself; NaN, None and NA of pandas all are missing values."""
        for kind in (list, np.array, pd.Series):
            retriever = CrossModalRetriever(aligner).fit(concepts.image[:3], kind(items))
            expected = [item for item in items if not pd.isna(item)]
            loaded = save_and_load(retriever, tmp_path)
            assert loaded.remove([float("nan")]).items_ == expected
            assert retriever.remove([float("nan")]).items_ == expected

    def test_retriever_with_encoders_is_saved(
        self, captioned_images, features, image_encoder, text_encoder, tmp_path
    ):
        aligner = KernelAligner(text_encoder=text_encoder)
        model = make_pipeline(image_encoder, aligner).fit(
            captioned_images.images[:60], captioned_images.captions[:60]
        )
        retriever = CrossModalRetriever(model).fit(captioned_images.images[:60])
        retriever.save_pretrained(tmp_path / "model", scores={"recall@1": 0.5})
        loaded = load_pretrained(tmp_path / "model", cache=image_encoder.cache)
        assert isinstance(loaded, CrossModalRetriever)
        assert_equal(loaded.search(["a bird", "cake"]), retriever.search(["a bird", "cake"]))
        query = [Path(captioned_images.images[3])]
        assert_equal(loaded.search(query, k=2), retriever.search(query, k=2))
        card = (tmp_path / "model" / "README.md").read_text()
        assert "| images indexed | 60 |" in card
        with pytest.raises(ValueError, match="has a model of the class CrossModalRetriever"):
            ZeroShotClassifier.from_pretrained(tmp_path / "model")


class TestTampered:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"embeddings": np.zeros((0, 8), np.float32)}, "at least one row"),
            ({"embeddings": np.zeros((5, 8), np.float64)}, "at least one row of float32"),
            ({"embeddings": np.zeros((5, 3), np.float32)}, "shape"),
            ({"embeddings": np.full((5, 8), np.nan, np.float32)}, "not finite"),
            ({"unread": np.array([-1])}, "distinct rows"),
            ({"unread": np.array([2, 2])}, "distinct rows"),
            ({"unread": np.array([2**40])}, "distinct rows"),
            ({"items": {"json": np.frombuffer(b"[[1]]", np.uint8)}}, "a JSON list of texts"),
            ({"items": {"json": np.frombuffer(b"[" * 10**5, np.uint8)}}, "a JSON list of"),
            ({"items": {"json": np.frombuffer(b"[1]", np.uint8)}}, "items must hold 300"),
            ({"items": {"texts": np.zeros(9, np.uint8), "ends": np.array([3, 2])}}, "ends must"),
            ({"items": {"texts": np.zeros(9, np.uint8), "ends": np.array([-5, 9])}}, "ends must"),
            ({"items": {"texts": np.zeros(9, np.uint8), "ends": np.array([3, 2**40])}}, "ends"),
            ({"has_y": "no"}, "has_y must be"),
            ({"fingerprint": "another"}, "Index the images again"),
        ],
    )
    def test_tampered_file_is_refused(self, aligner, concepts, change, message):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            retriever = CrossModalRetriever(aligner).fit(concepts.image)
            fresh = CrossModalRetriever(aligner)
        state = retriever._get_state() | change
        with pytest.raises(ValueError, match=message):
            fresh._set_state(FittedState(state, "CrossModalRetriever"))
        assert not hasattr(fresh, "_collection")


def test_starter_is_not_saved(captioned_images, tmp_path):
    """Every installation has its matrices."""
    retriever = CrossModalRetriever().fit(captioned_images.images[:3])
    expected = retriever.search(["an animal"], k=3)
    retriever.save_pretrained(tmp_path / "index")
    pickled = pickle.dumps(retriever)
    n_bytes = sum(file.stat().st_size for file in (tmp_path / "index").iterdir())
    assert max(n_bytes, len(pickled)) < 200_000
    for copy in (load_pretrained(tmp_path / "index"), pickle.loads(pickled)):
        assert copy.aligner is None
        assert copy.aligner_ is load_starter()
        np.testing.assert_array_equal(copy.search(["an animal"], k=3).scores, expected.scores)
