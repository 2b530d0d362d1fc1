"""Removal, filters, minimum scores and combined queries of `CrossModalRetriever`."""

import copy
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sklearn_ape import CrossModalRetriever, KernelAligner
from sklearn_ape.datasets import load_openmoji
from tests.retrieval.conftest import assert_equal

RNG = np.random.default_rng(0)
CONCEPTS = RNG.standard_normal((60, 8))
FEATURES = (CONCEPTS @ RNG.standard_normal((8, 32))).astype(np.float32)
ALIGNER = KernelAligner().fit(FEATURES, CONCEPTS @ RNG.standard_normal((8, 16)))


def test_error_of_filter_names_the_item():
    """A record with a missing price cannot be compared."""
    records = pd.DataFrame({"price": pd.array([1, None, 3], dtype="Int64")})
    retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:3], records)
    with pytest.raises(TypeError) as error:
        retriever.search(FEATURES[:1], k=1, where=lambda record: record["price"] < 2)
    assert error.value.__notes__ == ["`where` was called with item 1, {'price': None}."]
    for mask in (records["price"] < 2, pd.Series([True, None, False], dtype=object)):
        with pytest.raises(ValueError, match=r"object\. .* mask\.fillna\(False\)\.astype\(bool\)"):
            retriever.search(FEATURES[:1], k=1, where=mask)
        mask = mask.fillna(False).astype(bool)
        assert retriever.search(FEATURES[:1], k=1, where=mask).indices == [[0]]


class CollectionMachine(RuleBasedStateMachine):
    """Any sequence of additions and removals equals a fit on the images that are left."""

    @initialize(rows=st.lists(st.integers(0, 59), min_size=1, max_size=8))
    def fit(self, rows):
        self.rows = list(rows)
        self.retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[rows], rows)

    @rule(rows=st.lists(st.integers(0, 59), min_size=1, max_size=5))
    def add(self, rows):
        self.rows += rows
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* already in the collection")
            self.retriever.add(FEATURES[rows], rows)

    @precondition(lambda self: len(set(self.rows)) > 1)
    @rule(data=st.data())
    def remove(self, data):
        distinct = sorted(set(self.rows))
        items = data.draw(st.lists(st.sampled_from(distinct), max_size=3, unique=True))
        if len(items) < len(distinct):
            self.retriever.remove(items)
            self.rows = [row for row in self.rows if row not in items]

    @invariant()
    def equals_fit(self):
        reference = CrossModalRetriever(ALIGNER).fit(FEATURES[self.rows], self.rows)
        k = min(3, len(self.rows))
        assert self.retriever.items_ == self.rows
        actual, expected = (r.search(FEATURES[:4], k=k) for r in (self.retriever, reference))
        assert_equal(actual, expected)


TestCollectionMachine = pytest.mark.exhaustive(CollectionMachine.TestCase)
TestCollectionMachine.settings = settings(max_examples=15, stateful_step_count=8, deadline=None)


class TestRemove:
    @pytest.mark.parametrize("index", ["exact", "faiss", "usearch"])
    def test_removed_image_is_not_found(self, index):
        retriever = CrossModalRetriever(ALIGNER, index=index).fit(FEATURES)
        assert retriever.search(FEATURES[5:6], k=1).items == [[5]]
        retriever.remove([5])
        assert retriever.n_samples_fit_ == 59
        assert retriever.search(FEATURES[6:7], k=1).indices.tolist() == [[5]]

    @pytest.mark.parametrize("to_table", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas])
    def test_rows_of_a_table_are_removed(self, to_table):
        """Rows match although one of their values is missing."""
        table = pd.DataFrame({"id": range(4), "note": ["a", None, "b", None]})
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:4], to_table(table))
        retriever.remove(to_table(table[1:3].reset_index(drop=True)))
        assert [item["id"] for item in retriever.items_] == [0, 3]

    def test_names_of_columns_may_be_numbers_and_texts(self):
        """The error said that the rows cannot be compared."""
        table = pd.DataFrame({0: range(3), "note": ["a", None, "b"]})
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:3], table)
        assert [item[0] for item in retriever.remove(table[1:2]).items_] == [0, 2]

    def test_unknown_item_raises_and_keeps_collection(self):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:3], ["a", "b", "c"])
        with pytest.raises(ValueError, match="'d', which are not in the collection"):
            retriever.remove(["a", "d"])
        with pytest.raises(ValueError, match="items has 'd', 'e', which"):
            retriever.remove(np.array(["d", "e", "d"]))
        assert retriever.items_ == ["a", "b", "c"]

    def test_all_images_raise(self):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:2])
        with pytest.raises(ValueError, match="a collection cannot be empty"):
            retriever.remove([0, 1])

    def test_single_item_and_images_raise(self):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:2], ["a", "b"])
        with pytest.raises(ValueError, match="single item"):
            retriever.remove("a")
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:2], [[1], [2]])
        with pytest.raises(ValueError, match="cannot be compared"):
            retriever.remove([[1]])

    def test_copy_is_not_changed(self):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES)
        other = copy.copy(retriever).remove([0])
        assert (retriever.n_samples_fit_, other.n_samples_fit_) == (60, 59)


class TestWhere:
    def test_function_that_returns_a_missing_value_raises(self):
        """NaN is true in Python, so that images with a missing flag were found."""
        flags = pd.DataFrame({"flag": pd.Series([True, np.nan, False], dtype=object)})
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:3], flags)
        with pytest.raises(ValueError, match=r"where returned nan\. Return False"):
            retriever.search(FEATURES[:1], k=3, where=lambda item: item["flag"])
        result = retriever.search(FEATURES[:1], k=1, where=lambda item: item["flag"] is True)
        assert result.indices.tolist() == [[0]]

    @pytest.mark.parametrize("to_table", [pd.DataFrame, pl.DataFrame, pa.Table.from_pydict])
    def test_function_of_records(self, to_table):
        table = to_table({"id": range(60), "group": ["a", "b"] * 30})
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES, table)
        result = retriever.search(FEATURES[:6], k=4, where=lambda item: item["group"] == "b")
        assert {item["group"] for items in result.items for item in items} == {"b"}

    @pytest.mark.parametrize("index", ["exact", "faiss"])
    @pytest.mark.parametrize("standardize", [False, True])
    def test_mask_equals_collection_of_selected_images(self, index, standardize):
        if index == "faiss" and standardize:
            pytest.skip("not supported together")
        mask = np.arange(60) % 3 == 0
        bank = FEATURES if standardize else False
        retriever = CrossModalRetriever(ALIGNER, index=index, standardize=bank).fit(FEATURES)
        part = CrossModalRetriever(ALIGNER, index=index, standardize=bank).fit(
            FEATURES[mask], np.flatnonzero(mask)
        )
        y = RNG.standard_normal((5, 16))
        actual = retriever.search(y, k=4, modality="text", where=mask)
        expected = part.search(y, k=4, modality="text")
        assert actual.items == expected.items
        np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-5)

    def test_fewer_or_no_images(self):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES)
        result = retriever.search(FEATURES[:2], k=3, where=np.arange(60) < 2)
        assert list(map(len, result.items)) == [2, 2]
        assert np.isnan(result.scores[:, 2]).all()
        assert (result.indices[:, 2] == -1).all()
        assert len(result.to_frame()) == 4
        nothing = retriever.search(FEATURES[:2], k=3, where=lambda item: False)
        assert nothing.items == [[], []]

    @pytest.mark.parametrize("where", [[True], np.zeros(60), np.ones((60, 1), bool), "a"])
    def test_invalid_mask_raises(self, where):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES)
        with pytest.raises(ValueError, match="a mask of 60 booleans"):
            retriever.search(FEATURES[:2], where=where)


@pytest.fixture(scope="module")
def emoji():
    data = load_openmoji()
    rows = [row for row, group in enumerate(data.categories) if group == "Food & Drink"]
    names = [data.captions[row] for row in rows]
    return CrossModalRetriever().fit([data.images[row] for row in rows], names)


class TestMinScore:
    def test_number_is_lowest_score(self):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES)
        result = retriever.search(FEATURES[:5], k=10, min_score=0.5)
        everything = retriever.search(FEATURES[:5], k=10)
        assert np.nanmin(result.scores) >= 0.5
        kept = everything.scores >= 0.5
        assert 0 < kept.sum() < 50
        np.testing.assert_array_equal(result.indices[kept], everything.indices[kept])
        assert (result.indices[~kept] == -1).all()

    def test_auto_returns_nothing_for_absent_concepts(self, emoji):
        """Names of food and of animals among drawings of food."""
        data = load_openmoji()
        absent = [
            caption
            for caption, category in zip(data.captions, data.categories, strict=True)
            if category == "Animals & Nature"
        ]
        found, found_absent = (
            np.mean([len(items) > 0 for items in emoji.search(queries, min_score="auto").items])
            for queries in (emoji.items_, absent)
        )
        assert found > 0.75
        assert found > found_absent + 0.35

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_auto_in_tiny_collections(self, n):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:n])
        result = retriever.search(FEATURES[:1], k=1, min_score="auto")
        assert result.items == [[0]]

    def test_auto_with_standardized_scores(self, emoji):
        standardized = copy.copy(emoji).set_params(standardize=True)
        result = standardized.search(["pizza", "a bicycle"], min_score="auto")
        assert result.items[0][0] == "pizza"
        assert len(result.items[0]) >= len(result.items[1])

    @pytest.mark.parametrize("min_score", ["high", np.nan, True, np.ones(2), pd.NA])
    def test_invalid_score_raises(self, min_score):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES)
        with pytest.raises(ValueError, match="min_score, if not 'auto', must be None or a number"):
            retriever.search(FEATURES[:2], min_score=min_score)


class TestPairs:
    def test_image_and_text_both_count(self, emoji):
        """An image of beer with the word "milk" finds other images than the image alone."""
        data = load_openmoji()
        image = data.images[data.captions.index("clinking beer mugs")]
        both = emoji.search([(image, "milk")], k=3).items[0]
        text = emoji.search(["milk"], k=1).items[0]
        assert both != emoji.search([image], k=3, modality="image").items[0]
        assert text[0] in emoji.search([(image, "milk")], k=8).items[0]

    def test_scores_are_those_of_the_definition(self, emoji):
        """Images and texts count equally, although images differ more from each other."""
        image, text = load_openmoji().images[7], "a red fruit"
        embeddings = emoji._collection.embeddings
        combined = np.zeros(embeddings.shape[1])
        aligner = emoji.aligner_
        for query in (*aligner.transform([image]), *aligner.transform_text([text])):
            combined += query / np.std(embeddings @ query)
        scores = embeddings @ (combined / np.linalg.norm(combined))
        result = emoji.search([(image, text)], k=5)
        np.testing.assert_array_equal(result.indices[0], np.argsort(-scores)[:5])
        np.testing.assert_allclose(result.scores[0], np.sort(scores)[::-1][:5], rtol=1e-4)

    def test_scores_are_cosines(self):
        retriever = CrossModalRetriever(ALIGNER).fit(FEATURES)
        collection = retriever._collection
        combined = collection.combine_queries(
            collection.embeddings[:3], ALIGNER.transform_text(RNG.standard_normal((3, 16)))
        )
        np.testing.assert_allclose(np.linalg.norm(combined, axis=1), 1, rtol=1e-5)

    @pytest.mark.parametrize(
        ("queries", "message"),
        [
            ([["a.png", "red"]], r"list with a text in row 0.*as a tuple: \(image, text\)"),
            ([("a.png", "red"), "blue"], "mixes pairs of an image and a text with other queries"),
            ([("a.png", " ")], "an empty text in row 0"),
            ([("red", b"")], r"row 0 whose text is of type bytes\. Pass the image first"),
            ([("a.png", "red"), ("b.png", np.nan)], r"pair in row 1 whose text is of type float"),
            ([(FEATURES[0], FEATURES[1])], r"pair in row 0 whose text is of type ndarray\. Pass"),
        ],
    )
    def test_invalid_pairs_raise(self, emoji, queries, message):
        with pytest.raises(ValueError, match=message):
            emoji.search(queries)

    def test_modality_of_pairs_raises(self, emoji):
        with pytest.raises(ValueError, match="pairs of an image and a text, and modality is 'im"):
            emoji.search([("a.png", "red")], modality="image")
        with pytest.raises(ValueError, match="modality must be one of auto, image, text"):
            emoji.search([("a.png", "red")], modality="images")


def test_types_of_items_that_are_not_saved_are_named(tmp_path):
    records = pd.DataFrame({"id": [1, 2], "when": pd.to_datetime(["2020-01-01", "2021-01-01"])})
    retriever = CrossModalRetriever(ALIGNER).fit(FEATURES[:2], records)
    with pytest.warns(UserWarning, match=r"record of these \(Timestamp\)\. After loading"):
        retriever.save_pretrained(tmp_path / "index")
