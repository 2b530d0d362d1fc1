"""EmbeddingMapDisplay: points, pairs, colours and missing rows."""

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA, TruncatedSVD

from sklearn_ape.inspection import EmbeddingMapDisplay


class TestEmbeddingMapDisplay:
    def test_points_are_the_first_two_components(self, model, held_out, ax, forbid_computation):
        images, captions, categories = held_out
        display = EmbeddingMapDisplay.from_estimator(
            model, images, captions, labels=categories, random_state=0
        )
        both = np.concatenate([model.transform(images), model[-1].transform_text(captions)])
        expected = PCA(2, random_state=0).fit_transform(both.astype(np.float64))
        np.testing.assert_allclose(
            np.concatenate([display.image_points, display.text_points]), expected, atol=1e-6
        )
        assert sum(len(points.get_offsets()) for points in display.image_points_) == len(images)
        assert len(display.image_points_) == len(display.text_points_) == 3
        assert len(display.lines_.get_segments()) == len(images)
        forbid_computation()
        display.plot(ax=ax, thumbnails=5, lines=False)
        assert display.ax_ is ax
        assert display.lines_ is None
        assert len(display.thumbnails_) == 5
        ax.figure.canvas.draw()

    def test_centering_removes_the_gap(self):
        rng = np.random.default_rng(0)
        common = rng.normal(size=(40, 6))
        apart = common + 20
        gap = EmbeddingMapDisplay.from_predictions(common, apart)
        assert (gap.image_points[:, 0].max() < gap.text_points[:, 0].min()) or (
            gap.image_points[:, 0].min() > gap.text_points[:, 0].max()
        )
        closed = EmbeddingMapDisplay.from_predictions(common, apart, center=True)
        np.testing.assert_allclose(closed.image_points, closed.text_points, atol=1e-9)

    def test_reducers_are_reproducible_and_cloned(self, features):
        image = features.image[:30, :50]
        maps = [
            EmbeddingMapDisplay.from_predictions(image, image[:20], reducer="tsne", random_state=3)
            for _ in range(2)
        ]
        np.testing.assert_array_equal(maps[0].image_points, maps[1].image_points)
        assert maps[0].pairs is None
        svd = TruncatedSVD(2, random_state=0)
        own = EmbeddingMapDisplay.from_predictions(image, image, reducer=svd)
        assert own.image_points.shape == (30, 2)
        assert not hasattr(svd, "components_")  # cloned

    def test_rows_of_nan_warn_and_are_left_out(self):
        image = np.random.default_rng(0).normal(size=(6, 4))
        broken = image.copy()
        broken[2] = np.nan
        with pytest.warns(UserWarning, match=r"leaves out 1 row \(row 2\)"):
            display = EmbeddingMapDisplay.from_predictions(broken, image, images=[None] * 6)
        assert np.isnan(display.image_points[2]).all()
        assert len(display.lines_.get_segments()) == 5
        assert len(display.plot(thumbnails=True).thumbnails_) == 5

    def test_centering_ignores_images_that_are_left_out(self, recwarn):
        texts = np.random.default_rng(0).normal(size=(6, 4))
        missing = np.full((2, 4), np.nan)
        display = EmbeddingMapDisplay.from_predictions(missing, texts, center=True)
        expected = PCA(2).fit_transform(texts)
        np.testing.assert_allclose(display.text_points, expected, atol=1e-9)
        (warning,) = recwarn
        assert "leaves out 2 rows" in str(warning.message)

    def test_rare_labels_share_a_grey(self):
        image = np.random.default_rng(0).normal(size=(60, 4))
        labels = [f"label_{i % 20}$" for i in range(60)]
        display = EmbeddingMapDisplay.from_predictions(image, image, labels=labels)
        assert len(display.image_points_) == 10
        names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
        assert names[-1] == "(others)"
        display.figure_.canvas.draw()

    @pytest.mark.parametrize(
        "text_labels",
        [[0.0, 1.0, np.nan] * 4, pd.Series([0, 1, None] * 4), pd.Series([0, 1, pd.NA] * 4)],
        ids=["list", "Series", "nullable"],
    )
    def test_equal_and_missing_labels_of_other_types_share_a_color(self, text_labels):
        """Captions with the label 0.0 were not drawn, and those with NaN once per NaN."""
        image = np.random.default_rng(0).normal(size=(12, 4))
        display = EmbeddingMapDisplay.from_predictions(
            image, image, labels=[0, 1, None] * 4, text_labels=text_labels
        )
        for drawn in (display.image_points_, display.text_points_):
            assert [len(points.get_offsets()) for points in drawn] == [4, 4, 4]
        names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
        assert names == ["image", "caption", "0", "1", "None"]

    def test_label_with_the_name_of_the_others_has_its_own_color(self):
        image = np.random.default_rng(0).normal(size=(60, 4))
        labels = ["(others)"] * 20 + [f"label {i % 20}" for i in range(40)]
        display = EmbeddingMapDisplay.from_predictions(image, image, labels=labels)
        names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
        assert names[-1] == "((others))"
        assert len(display.image_points_[0].get_offsets()) == 20
        assert sum(len(points.get_offsets()) for points in display.image_points_) == 60

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"reducer": "umap"}, "'pca', 'tsne' or an estimator"),
            ({"reducer": PCA(3)}, "not \\(8, 2\\)"),
            ({"labels": ["a"]}, "labels has 1 items for 4 images"),
            ({"labels": 5}, "labels must be a sequence"),
            ({"labels": "abcd"}, "labels is a single label, not a sequence of labels"),
            ({"labels": ["a", "b", ["c"], "d"]}, r"labels holds \['c'\] in row 2"),
            ({"labels": ["a", (1, ["b"]), "c", "d"]}, r"labels holds \(1, \['b'\]\) in row 1"),
            ({"pairs": [[0, 9]]}, "in pair 0, but there are"),
        ],
    )
    def test_invalid_input_raises(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            EmbeddingMapDisplay.from_predictions(np.eye(4), np.eye(4), **arguments)
        with pytest.raises(ValueError, match="embeddings of one space"):
            EmbeddingMapDisplay.from_predictions(np.eye(4), np.eye(3))
        with pytest.raises(ValueError, match="have 1 component, and reducer='pca' needs"):
            EmbeddingMapDisplay.from_predictions(np.eye(4)[:, :1], np.eye(4)[:, :1])
