"""RetrievalGridDisplay: images found, scores and relevance."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.data import Dataset

from sklearn_ape import CrossModalRetriever
from sklearn_ape.inspection import RetrievalGridDisplay
from sklearn_ape.inspection._plotting import make_thumbnail

QUERIES = ["an animal", "a red fruit"]


class TestRetrievalGridDisplay:
    def test_shows_the_nearest_images(self, model, held_out, ax, forbid_computation):
        images, captions, _ = held_out
        display = RetrievalGridDisplay.from_estimator(
            model, QUERIES, images, k=3, captions=captions, relevant=[[0], range(100)]
        )
        similarity = model[-1].similarity(model[:-1].transform(images), QUERIES).T
        best = np.argsort(-similarity, axis=1)[:, :3]
        assert display.images == [[images[i] for i in row] for row in best]
        np.testing.assert_array_equal(display.scores, np.take_along_axis(similarity, best, axis=1))
        np.testing.assert_array_equal(
            display.thumbnails_[1][2].get_array(), make_thumbnail(images[best[1, 2]])
        )
        assert display.text_[0][0].get_text().startswith(f"{similarity[0].max():.2f}\n")
        assert display.relevant.tolist() == [(best[0] == 0).tolist(), [True] * 3]
        forbid_computation()
        assert display.plot(ax=ax, max_queries=1, scores_format=None).ax_ is ax
        assert len(display.thumbnails_) == 1
        assert ax.get_title() == "the first 1 of 2 queries"

    def test_torch_dataset_is_read_up_to_its_length(self, held_out):
        """It does not have to raise IndexError at its end."""

        class Images(Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, row):
                assert row < 3
                return held_out[0][row]

        result = np.array([[0.9, 0.8, 0.7]] * 3), np.array([[2, 1, 0]] * 3)
        display = RetrievalGridDisplay.from_predictions(result, Images(), images=Images())
        assert display.images == [list(held_out[0][2::-1])] * 3

    def test_results_of_a_retriever_are_shown(self, held_out):
        images = held_out[0]
        found = (np.array([[0.9, 0.8]]), np.array([[4, 2]]), [[images[4], images[2]]])
        retriever = SimpleNamespace(search=lambda queries, k, modality: found)
        display = RetrievalGridDisplay.from_estimator(retriever, [images[4]], relevant=[2])
        assert display.images == [[images[4], images[2]]]
        assert display.relevant.tolist() == [[False, True]]
        np.testing.assert_array_equal(display.query_[0].get_array(), make_thumbnail(images[4]))
        named = (*found[:2], [["a tiger", "a $_$"]])
        with pytest.raises(ValueError, match="'a tiger', which are not files"):
            RetrievalGridDisplay.from_predictions(named, [images[4]])
        with pytest.raises(ValueError, match="such as 4, which are not files"):
            RetrievalGridDisplay.from_predictions((*found[:2], [[4, 2]]), [images[4]])
        display = RetrievalGridDisplay.from_predictions(named, [images[4]], images=images)
        assert display.images == [[images[4], images[2]]]
        assert display.text_[0][0].get_text() == "0.90\na tiger"
        display.figure_.canvas.draw()

    def test_captions_of_retriever_are_below_its_images(self, model, held_out):
        images, captions, _ = held_out
        retriever = CrossModalRetriever(model).fit(images, captions)
        display = RetrievalGridDisplay.from_estimator(retriever, QUERIES, images, k=4)
        found = retriever.search(QUERIES, k=4)
        np.testing.assert_array_equal(display.scores, found.scores)
        assert display.captions == found.items
        assert display.images == [[images[i] for i in row] for row in found.indices]
        by_image = RetrievalGridDisplay.from_estimator(
            retriever, images[:1], images, k=1, modality="image"
        )
        assert by_image.images == [[images[0]]]

    def test_missing_results_and_unreadable_images_are_grey(self):
        result = np.array([[0.9, -np.inf]]), np.array([[0, -1]])
        display = RetrievalGridDisplay.from_predictions(result, ["x"], images=["nowhere.png"])
        for drawn in display.thumbnails_[0]:
            assert (drawn.get_array() == 200).all()

    def test_invalid_input_raises(self, model, held_out):
        images = held_out[0]
        result = np.zeros((1, 2)), np.array([[0, 5]])
        with pytest.raises(ValueError, match="a single query"):
            RetrievalGridDisplay.from_estimator(model, "a cat", images)
        with pytest.raises(ValueError, match="has no images of its own"):
            RetrievalGridDisplay.from_estimator(model, QUERIES)
        with pytest.raises(ValueError, match="images is None"):
            RetrievalGridDisplay.from_predictions(result, ["x"])
        with pytest.raises(ValueError, match="images has 3 items, and the indices go up to 5"):
            RetrievalGridDisplay.from_predictions(result, ["x"], images=images[:3])
        with pytest.raises(ValueError, match="2 queries"):
            RetrievalGridDisplay.from_predictions(result, QUERIES, images=images)
        with pytest.raises(ValueError, match="relevant has 2 items for 1 queries"):
            RetrievalGridDisplay.from_predictions(result, ["x"], images=images, relevant=[[], []])
        for relevant in ([[True, False]], [np.array([True])], ["row 1"]):
            with pytest.raises(ValueError, match="relevant must hold row numbers of images"):
                RetrievalGridDisplay.from_predictions(
                    result, ["x"], images=images, relevant=relevant
                )
        for k in (0, -1, 2.5):
            with pytest.raises(ValueError, match=f"k must be an integer >= 1, not {k}"):
                RetrievalGridDisplay.from_estimator(model, QUERIES, images, k=k)

    def test_images_must_be_those_of_the_collection(self, model, held_out):
        """After `remove`, the rows of the images passed to `fit` are those of other images."""
        images, captions, _ = held_out
        retriever = CrossModalRetriever(model).fit(images, captions).remove(captions[:1])
        n_left = retriever.n_samples_fit_
        with pytest.raises(ValueError, match=f"{len(images)} items for {n_left} indexed images"):
            RetrievalGridDisplay.from_estimator(retriever, QUERIES, images)
        with pytest.raises(ValueError, match=f"{len(images)} items for {n_left} indexed images"):
            RetrievalGridDisplay.from_estimator(retriever, QUERIES, captions=captions)


def test_missing_results_have_no_text_and_no_frame(held_out):
    """A search with a minimum score finds fewer images than k."""
    result = np.array([[0.9, np.nan]]), np.array([[0, -1]]), [["a tiger"]]
    display = RetrievalGridDisplay.from_predictions(
        result, ["x"], images=held_out[0][:1], relevant=[[0]]
    )
    assert [text.get_text() for text in display.text_[0]] == ["0.90\na tiger", ""]
    display.figure_.canvas.draw()


def test_search_without_results_is_drawn():
    """The error said that items such as None are not files."""
    result = np.full((1, 2), np.nan), np.full((1, 2), -1), [[]]
    display = RetrievalGridDisplay.from_predictions(result, ["x"])
    assert display.thumbnails_ == [[]]
    display.figure_.canvas.draw()


def test_scores_are_legible_on_dark_backgrounds():
    from matplotlib import pyplot

    result = np.array([[0.9]]), np.array([[0]]), [[np.zeros((8, 8, 3), np.uint8)]]
    with pyplot.style.context("dark_background"):
        display = RetrievalGridDisplay.from_predictions(result, ["x"])
    assert display.text_[0][0].get_color() == "white"


def test_table_in_place_of_a_result_raises(held_out):
    pytest.importorskip("pandas")
    images = held_out[0][:2]
    result = CrossModalRetriever().fit(images).search(["x"], k=1)
    with pytest.raises(ValueError, match="result is a table"):
        RetrievalGridDisplay.from_predictions(result.to_frame(), ["x"], images=images)
