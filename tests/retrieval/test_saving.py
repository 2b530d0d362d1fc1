"""Saved retrievers give equal results, and tampered files raise."""

import warnings
from datetime import date
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_ape import CrossModalRetriever, KernelAligner, ZeroShotClassifier, load_pretrained
from sklearn_ape.persistence import FittedState
from tests.retrieval.test_collection import assert_equal


def again(retriever, folder):
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
        back = again(retriever, tmp_path)
        assert (back.index, back.dtype, back.n_unread_) == (index, dtype, 1)
        for one, other in ((y, "text"), (X[20:40], "image")):
            expected = retriever.search(one, k=5, modality=other)
            found = back.search(one, k=5, modality=other)
            if index == "usearch":  # threads build its graph anew, each time in another order
                assert np.mean(found.indices == expected.indices) > 0.8
            else:
                assert_equal(found, expected)
        back.add(X[:1])
        assert back.n_samples_fit_ == 301

    def test_loaded_retriever_standardizes_equally(self, aligner, concepts, tmp_path):
        retriever = CrossModalRetriever(aligner, standardize=True).fit(concepts.image)
        back, y = again(retriever, tmp_path), concepts.text[:30]
        assert_equal(back.search(y, modality="text"), retriever.search(y, modality="text"))

    @pytest.mark.parametrize(
        "items",
        [
            [f"naïve {row}\n日本" for row in range(300)],
            [Path("photos") / f"{row}.jpg" for row in range(300)],
            list(range(1000, 1300)),
            [row / 7 for row in range(300)],
            ["", *["a"] * 298, "b\udcff"],  # a name of a file that is no UTF-8
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
            *["texts", "paths", "ids", "numbers", "odd", "surrogate", "huge", "beyond int64"],
            *["mixed numbers", "mixed", "scalars", "bools", "enum"],
        ],
    )
    def test_items_are_saved(self, aligner, concepts, tmp_path, items):
        back = again(CrossModalRetriever(aligner).fit(concepts.image, items), tmp_path)
        expected = [str(item) if isinstance(item, Path) else item for item in items]
        assert back.items_ == expected
        assert [type(item) is bool for item in back.items_] == [
            isinstance(item, bool | np.bool_) for item in expected
        ]
        back.add(concepts.image[:1], items[:1])

    def test_numpy_strings_are_saved(self, aligner, concepts, tmp_path):
        dtypes = pytest.importorskip("numpy.dtypes")
        items = np.array([f"{row}\0" for row in range(300)], dtype=dtypes.StringDType())
        back = again(CrossModalRetriever(aligner).fit(concepts.image, items), tmp_path)
        assert back.items_ == items.tolist()

    def test_numpy_dates_are_dates_in_results(self, aligner, concepts):
        items = np.arange(300).astype("datetime64[ns]")
        retriever = CrossModalRetriever(aligner).fit(concepts.image, items)
        assert retriever.search(concepts.image[4:5], k=1).items == [[items[4]]]
        assert isinstance(retriever.items_[0], np.datetime64)

    @pytest.mark.parametrize(
        "items",
        [
            [{"id": 1}] * 300,
            [b"a"] * 300,
            np.arange(300).astype("datetime64[ns]"),
            [date(2020, 1, 1)] * 300,
            [np.nan, "a", date(2020, 1, 1)] * 100,
            [10**5000] * 300,
        ],
        ids=["dicts", "bytes", "dates of numpy", "dates", "mixed", "endless"],
    )
    def test_other_items_become_row_numbers(self, aligner, concepts, tmp_path, items):
        retriever = CrossModalRetriever(aligner).fit(concepts.image, items)
        with pytest.warns(UserWarning, match="After loading the items are row numbers"):
            back = again(retriever, tmp_path)
        assert back.search(concepts.image[4:5], k=1).items == [[4]]

    def test_images_and_texts(
        self, captioned_images, features, image_encoder, text_encoder, tmp_path
    ):
        inner = KernelAligner(text_encoder=text_encoder)
        model = make_pipeline(image_encoder, inner).fit(
            captioned_images.images[:60], captioned_images.captions[:60]
        )
        retriever = CrossModalRetriever(model).fit(captioned_images.images[:60])
        retriever.save_pretrained(tmp_path / "model", scores={"recall@1": 0.5})
        back = load_pretrained(tmp_path / "model", cache=image_encoder.cache)
        assert isinstance(back, CrossModalRetriever)
        assert_equal(back.search(["a bird", "cake"]), retriever.search(["a bird", "cake"]))
        query = [Path(captioned_images.images[3])]
        assert_equal(back.search(query, k=2), retriever.search(query, k=2))
        card = (tmp_path / "model" / "README.md").read_text()
        assert "| images indexed | 60 |" in card
        with pytest.raises(ValueError, match="holds a CrossModalRetriever"):
            ZeroShotClassifier.from_pretrained(tmp_path / "model")

    def test_retriever_with_starter_model(self, captioned_images, tmp_path):
        retriever = CrossModalRetriever().fit(
            captioned_images.images[:3], captioned_images.captions[:3]
        )
        back = again(retriever, tmp_path)
        assert back.aligner is None
        words = captioned_images.captions[:2]
        assert_equal(back.search(words, k=2), retriever.search(words, k=2))


class TestTampered:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"embeddings": np.zeros((0, 8), np.float32)}, "at least one row"),
            ({"embeddings": np.zeros((5, 8), np.float64)}, "at least one row of float32"),
            ({"embeddings": np.zeros((5, 3), np.float32)}, "shape"),
            ({"embeddings": np.full((5, 8), np.nan, np.float32)}, "not finite"),
            ({"unread": np.array([-1])}, "ascending"),
            ({"unread": np.array([2, 2])}, "ascending"),
            ({"unread": np.array([2**40])}, "ascending"),
            ({"items": {"numbers": np.arange(3)}}, "items must hold 300"),
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
    def test_tampered_state_raises(self, aligner, concepts, change, message):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            retriever = CrossModalRetriever(aligner).fit(concepts.image)
            fresh = CrossModalRetriever(aligner)
        state = retriever._get_state() | change
        with pytest.raises(ValueError, match=message):
            fresh._set_state(FittedState(state, "CrossModalRetriever"))
        assert not hasattr(fresh, "_collection")
