"""SimilarityMatrixDisplay: values, names and pairs."""

import numpy as np
import pyarrow as pa
import pytest

from sklearn_ape import CCAAligner
from sklearn_ape.inspection import SimilarityMatrixDisplay


class TestSimilarityMatrixDisplay:
    def test_shows_the_similarities_of_the_aligner(self, model, held_out, image_encoder):
        images, captions = held_out[0][:6], held_out[1][:6]
        display = SimilarityMatrixDisplay.from_estimator(model, images, captions)
        expected = model[-1].similarity(image_encoder.transform(images), captions)
        np.testing.assert_array_equal(display.im_.get_array(), expected)
        assert [text.get_text() for text in display.text_[2]] == [f"{v:.2f}" for v in expected[2]]
        assert [t.get_text() for t in display.ax_.get_xticklabels()] == captions
        assert len(display.thumbnails_) == 6
        assert display.pairs.tolist() == [[i, i] for i in range(6)]

    def test_plot_draws_stored_results(self, model, held_out, ax, forbid_computation):
        display = SimilarityMatrixDisplay.from_estimator(model, held_out[0][:3], held_out[1][:4])
        first = display.im_.get_array()
        forbid_computation()
        assert display.plot(ax=ax, colorbar=False, include_values=False) is display
        assert display.ax_ is ax
        assert display.figure_ is ax.figure
        assert display.text_ is None
        np.testing.assert_array_equal(display.im_.get_array(), first)
        assert display.pairs is None  # not as many texts as images

    def test_features_are_shown_with_images_and_captions(self, model, features, captioned_images):
        aligner = model[-1]
        display = SimilarityMatrixDisplay.from_estimator(
            aligner,
            features.image[:3],
            features.text[:3],
            images=captioned_images.images[:3],
            captions=captioned_images.captions[:3],
        )
        assert len(display.thumbnails_) == 3
        bare = SimilarityMatrixDisplay.from_estimator(
            aligner, features.image[:3], features.text[:3]
        )
        assert bare.thumbnails_ == []
        assert bare.ax_.get_ylabel() == "image"

    def test_table_of_features_is_not_shown_as_images(self, features):
        """The rows of a table of pyarrow were drawn as unreadable images."""
        table = pa.table({f"f{i}": side for i, side in enumerate(features.image.T[:3])})
        aligner = CCAAligner().fit(table, features.text)
        display = SimilarityMatrixDisplay.from_estimator(
            aligner, table.slice(0, 4), features.text[:4]
        )
        assert display.thumbnails_ == []

    @pytest.mark.parametrize("size", [1, 4])
    def test_ticks_are_numbers_of_rows(self, size):
        ax = SimilarityMatrixDisplay.from_predictions(np.eye(size)).ax_
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [tick for tick in axis.get_ticklocs() if -0.5 < tick < size - 0.5]
            assert ticks == list(range(size))

    def test_large_matrices_and_unreadable_images_are_drawn(self):
        similarity = np.random.default_rng(0).normal(size=(500, 300))
        similarity[3] = np.nan
        display = SimilarityMatrixDisplay.from_predictions(
            similarity, images=[None] * 500, captions=["caption"] * 300
        )
        display.figure_.canvas.draw()
        assert display.text_ is None
        assert display.thumbnails_ == []
        assert max(display.figure_.get_size_inches()) < 14  # without labels, it fits a screen
        small = SimilarityMatrixDisplay.from_predictions(similarity[:5, :5])
        assert small.text_[3, 0].get_text() == ""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"images": [None]}, "images has 1 items for 2 rows"),
            ({"captions": "ab"}, "captions is a single caption"),
            ({"captions": ["a"]}, "captions has 1 items for 2 columns"),
            ({"pairs": [[0, 2]]}, "pairs has the rows 0 and 2 in pair 0"),
            ({"pairs": "diagonal"}, "'auto'"),
        ],
    )
    def test_invalid_input_raises(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SimilarityMatrixDisplay.from_predictions(np.eye(2), **arguments)

    def test_estimator_that_is_not_an_aligner_raises(self, image_encoder):
        with pytest.raises(TypeError, match="must be an aligner"):
            SimilarityMatrixDisplay.from_estimator(image_encoder, ["a"], ["b"])
