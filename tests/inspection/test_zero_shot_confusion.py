"""ZeroShotConfusionDisplay: counts, example images and hidden classes."""

import enum

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import GridSearchCV

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.inspection import ZeroShotConfusionDisplay
from sklearn_ape.inspection._plotting import make_thumbnail

NAMES = {
    "animal": ["an animal", "a bird", "a plant"],
    "food": ["food", "a fruit", "a drink"],
    "travel": ["a vehicle", "a building", "the weather"],
}


class Unknown(str, enum.Enum):  # noqa: UP042 (str() of a member of StrEnum is its value)
    NONE = "none"


class TestZeroShotConfusionDisplay:
    def test_counts_equal_the_confusion_matrix(self, model, held_out, ax, forbid_computation):
        images, _, y = held_out
        classifier = ZeroShotClassifier(NAMES, aligner=model)
        predicted = classifier.predict(images)
        display = ZeroShotConfusionDisplay.from_estimator(classifier, images, y)
        np.testing.assert_array_equal(display.counts, confusion_matrix(y, predicted))
        assert f"{np.mean(predicted == y):.1%}" in display.ax_.get_title()
        for (row, column), image in display.examples.items():
            index = images.index(image)
            assert (y[index], predicted[index]) == (
                classifier.classes_[row],
                classifier.classes_[column],
            )
            pixels = display.thumbnails_[row, column].get_array()
            np.testing.assert_array_equal(pixels, make_thumbnail(image))
        assert len(display.examples) == np.count_nonzero(display.counts)
        forbid_computation()
        assert display.plot(ax=ax, thumbnails=False).thumbnails_ == {}
        assert display.text_[0, 0].get_text() == str(display.counts[0, 0])

    def test_unknown_images_have_a_column(self, model, held_out):
        images, _, y = held_out
        classifier = ZeroShotClassifier(NAMES, aligner=model, threshold=0.6, unknown_label="none")
        display = ZeroShotConfusionDisplay.from_estimator(classifier, images, y)
        assert display.column_labels == [*classifier.classes_, "none"]
        assert display.row_labels == list(classifier.classes_)
        assert display.counts[:, -1].sum() == (classifier.predict(images) == "none").sum() > 0

    def test_unknown_label_of_a_search_is_that_of_its_best_estimator(self, model, held_out):
        images, _, y = held_out
        classifier = ZeroShotClassifier(
            NAMES, aligner=FrozenEstimator(model), unknown_label="(none)"
        )
        search = GridSearchCV(classifier, {"threshold": [0.6]}, cv=2).fit(images, y)
        display = ZeroShotConfusionDisplay.from_estimator(search, images, y)
        assert display.column_labels == [*sorted(NAMES), "(none)"]

    def test_most_confused_of_many_classes_are_shown(self):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 300, 5000)
        predicted = np.where(rng.random(5000) < 0.5, truth, rng.integers(0, 300, 5000))
        predicted[truth == 7] = 8  # by far the most frequent error
        predicted[truth == 200] = 100
        display = ZeroShotConfusionDisplay.from_predictions(truth, predicted, max_classes=6)
        assert {7, 8, 100, 200} <= set(display.row_labels)
        assert len(display.row_labels) <= 6
        assert display.column_labels[-1] == "(others)"
        assert "of 300 classes" in display.ax_.get_title().replace("\n", " ")
        for row, label in enumerate(display.row_labels):
            assert display.counts[row].sum() == (truth == label).sum()
        cell = display.row_labels.index(7), display.column_labels.index(8)
        assert display.counts[cell] == (truth == 7).sum()

    def test_class_with_the_name_of_the_others_has_its_own_column(self):
        truth = ["(others)"] * 3 + ["a", "b", "b"]
        predicted = ["(others)", "b", "c", "a", "(others)", "b"]
        display = ZeroShotConfusionDisplay.from_predictions(truth, predicted, max_classes=2)
        assert display.row_labels == ["(others)", "b"]
        assert display.column_labels == ["(others)", "b", "((others))"]
        assert display.counts.tolist() == [[1, 1, 1], [1, 1, 0]]
        assert len(display.ax_.patches) == 2  # frames of hits

    def test_unknown_label_may_be_none(self):
        display = ZeroShotConfusionDisplay.from_predictions(
            ["a", "b", None], ["a", None, None], unknown_label=None
        )
        assert display.column_labels == ["a", "b", None]
        assert display.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]

    def test_unknown_label_may_be_nan(self):
        display = ZeroShotConfusionDisplay.from_predictions(
            [1.0, 2.0, 2.0], np.array([1.0, np.nan, np.nan]), unknown_label=np.nan
        )
        assert display.column_labels[:2] == [1.0, 2.0]
        assert display.counts.tolist() == [[1, 0, 0], [0, 0, 2]]

    def test_unknown_label_of_an_enum_is_its_value(self):
        display = ZeroShotConfusionDisplay.from_predictions(
            ["cat", "dog"], ["cat", "none"], unknown_label=Unknown.NONE
        )
        names = [label.get_text() for label in display.ax_.get_xticklabels()]
        assert names == display.column_labels == ["cat", "dog", "none"]

    def test_labels_of_several_types_are_drawn(self):
        display = ZeroShotConfusionDisplay.from_predictions(
            [1, 2, 2, "unknown"],
            [1, "unknown", 1, "unknown"],
            images=[None, "nowhere.png", b"", None],
        )
        assert display.row_labels == display.column_labels == [1, 2, "unknown"]
        assert display.counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 1]]
        special = ZeroShotConfusionDisplay.from_predictions(["$a$", "_b"], ["_b", "_b"])
        for figure in (display.figure_, special.figure_):
            figure.canvas.draw()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((["a"], ["a", "b"]), "inconsistent"),
            (([], []), "y_true is empty"),
            ((["a", np.nan, None], ["a"] * 3), r"y_true has 2 missing values \(rows 1, 2\)"),
            (([1, 2], [1.0, np.nan]), r"y_pred has 1 missing value \(row 1\)"),
            ((["a"], ["a"], {"images": []}), "images has 0 items for 1 samples"),
            ((["a"], ["a"], {"max_classes": 1}), "max_classes must be an integer >= 2, not 1"),
            ((["a"], ["a"], {"max_classes": np.nan}), "max_classes must be an integer >= 2"),
        ],
    )
    def test_invalid_input_raises(self, arguments, message):
        *sides, options = arguments if len(arguments) == 3 else (*arguments, {})
        with pytest.raises(ValueError, match=message):
            ZeroShotConfusionDisplay.from_predictions(*sides, **options)

    def test_classes_of_rejected_images_are_shown(self):
        """An image that is predicted as unknown is an error of its class."""
        names = [f"class {number:02}" for number in range(12)]
        predicted = names[:2] + ["unknown"] * 10
        display = ZeroShotConfusionDisplay.from_predictions(names, predicted, max_classes=10)
        assert display.row_labels == names[2:]
        assert display.counts.sum() == 10
