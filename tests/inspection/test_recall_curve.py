"""RecallCurveDisplay: recall and the chance level."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_ape import CCAAligner
from sklearn_ape.inspection import RecallCurveDisplay
from sklearn_ape.inspection._curves import _compute_chance


class TestRecallCurveDisplay:
    def test_shows_the_recall_of_the_report(self, model, held_out, image_encoder):
        images, captions, _ = held_out
        display = RecallCurveDisplay.from_estimator(model, images, captions)
        report = model[-1].retrieval_report(
            image_encoder.transform(images), captions, ks=tuple(display.ks.tolist())
        )
        for direction, line in display.lines_.items():
            assert line.get_xdata().tolist() == list(report[direction])
            np.testing.assert_allclose(line.get_ydata(), list(report[direction].values()))
        assert display.ks[0] == 1
        assert display.recall["image_to_text"][-1] == 1.0
        assert display.lines_["text_to_image"].get_label().startswith("KernelAligner: ")

    def test_estimators_share_axes_and_chance_level(
        self, model, held_out, captioned_images, image_encoder, text_encoder
    ):
        images, captions, _ = held_out
        other = make_pipeline(image_encoder, CCAAligner(text_encoder=text_encoder))
        other.fit(captioned_images.images[:200], captioned_images.captions[:200])
        first = RecallCurveDisplay.from_estimator(model, images, captions, ks=[1, 5, 10])
        second = RecallCurveDisplay.from_estimator(
            other, images, captions, ks=[10, 5, 1], ax=first.ax_, name="$a_b$"
        )
        assert second.ax_ is first.ax_
        assert len(first.chance_lines_) == 1
        assert second.chance_lines_ == {}
        names = [text.get_text() for text in first.ax_.get_legend().get_texts()]
        assert names == [
            "KernelAligner: image → caption",
            "KernelAligner: caption → image",
            "chance",
            r"\$a_b\$: image → caption",
            r"\$a_b\$: caption → image",
        ]
        colors = {line.get_color() for line in first.lines_.values()}
        assert len(colors) == 1
        assert colors != {line.get_color() for line in second.lines_.values()}

    def test_plot_draws_stored_results(self, model, held_out, ax, forbid_computation):
        display = RecallCurveDisplay.from_estimator(model, *held_out[:2], ks=[1, 2, 3])
        forbid_computation()
        display.plot(ax=ax, name="again", plot_chance_level=False, linewidth=3)
        assert display.ax_ is ax
        assert display.chance_lines_ == {}
        assert display.lines_["image_to_text"].get_linewidth() == 3

    def test_several_captions_per_image_raise_chance_level(self):
        rng = np.random.default_rng(0)
        image, text = rng.normal(size=(4, 3)), rng.normal(size=(8, 3))
        pairs = np.column_stack([np.repeat(np.arange(4), 2), np.arange(8)])
        display = RecallCurveDisplay.from_predictions(image, text, pairs=pairs, ks=[1, 2])
        assert display.chance["image_to_text"] == pytest.approx([2 / 8, 1 - 6 / 8 * 5 / 7])
        assert display.chance["text_to_image"] == pytest.approx([1 / 4, 2 / 4])
        assert len(display.chance_lines_) == 2

    def test_chance_level_equals_recall_of_random_orders(self):
        rng = np.random.default_rng(0)
        n_positives, n = np.array([1, 3]), 10
        hits = [
            [min(rng.permutation(n)[:count]) < k for k in (1, 4, 9)]
            for count in np.repeat(n_positives, 4000)
        ]
        np.testing.assert_allclose(
            _compute_chance(n_positives, n, np.array([1, 4, 9])), np.mean(hits, axis=0), atol=0.02
        )
        assert _compute_chance(n_positives, n, np.array([10, 50])).tolist() == [1, 1]

    @pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, np.ndarray.tolist])
    def test_embeddings_may_be_tables(self, kind):
        """Columns of a DataFrame, which set_output gives, were taken for its rows."""
        image, text = np.random.default_rng(0).normal(size=(2, 4, 4))
        expected = RecallCurveDisplay.from_predictions(image, text).recall
        recall = RecallCurveDisplay.from_predictions(kind(image), kind(text)).recall
        assert str(recall) == str(expected)

    @pytest.mark.parametrize("ks", [[], [0, 1], [1.5], ["a"]])
    def test_invalid_ks_raise(self, ks):
        with pytest.raises(ValueError, match="ks must be integers of at least 1"):
            RecallCurveDisplay.from_predictions(np.eye(3), np.eye(3), ks=ks)
