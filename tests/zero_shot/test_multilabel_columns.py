"""Matching of the columns of Y with labels, in each method of the classifier."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from sklearn_ape import MultiLabelZeroShotClassifier


def in_order(labels, order):
    return {label: labels[label] for label in order}


class TestColumnsOfY:
    @pytest.mark.parametrize("kind", [int, np.int64, float])
    def test_numbers_are_matched_by_name_in_every_method(self, numbered, kind):
        classifier = MultiLabelZeroShotClassifier(numbered.labels, aligner=numbered.aligner)
        frame = pd.DataFrame(numbered.Y, columns=[kind(label) for label in numbered.labels])
        shuffled = frame.iloc[:, [2, 0, 3, 1]]
        by_array = clone(classifier).fit(numbered.X, numbered.Y)
        by_name = clone(classifier).fit(numbered.X, shuffled)
        np.testing.assert_array_equal(by_array.thresholds_, by_name.thresholds_)
        score = by_array.score(numbered.X, numbered.Y)
        assert score > 0.5
        assert by_name.score(numbered.X, shuffled) == score
        np.testing.assert_array_equal(
            by_array.fit_thresholds(numbered.X, numbered.Y).thresholds_,
            by_name.fit_thresholds(numbered.X, shuffled).thresholds_,
        )

    def test_unexpected_columns_raise_in_every_method(self, numbered):
        classifier = MultiLabelZeroShotClassifier(numbered.labels, aligner=numbered.aligner)
        frame = pd.DataFrame(numbered.Y)
        message = r"missing columns \[10, 20\], unexpected columns \[2, 3\]"
        with pytest.raises(ValueError, match=message):
            classifier.fit(numbered.X, frame)
        classifier.fit(numbered.X, numbered.Y)
        for method in (classifier.score, classifier.fit_thresholds):
            with pytest.raises(ValueError, match=message):
                method(numbered.X, frame)

    def test_lists_of_zeros_and_ones_are_read_as_table(self, numbered):
        labels = in_order(numbered.labels, [0, 1])
        classifier = MultiLabelZeroShotClassifier(labels, aligner=numbered.aligner)
        Y = numbered.Y[:, 2:]
        fitted = clone(classifier).fit(numbered.X, Y)
        fitted_on_lists = clone(classifier).fit(numbered.X, Y.tolist())
        np.testing.assert_array_equal(fitted.thresholds_, fitted_on_lists.thresholds_)
        score = fitted_on_lists.score(numbered.X, Y.tolist())
        assert score == fitted.score(numbered.X, Y)

    def test_predicted_sets_score_like_predicted_table(self, numbered):
        """Also for the labels 0 and 1, whose sets are tuples of zeros and ones."""
        for labels in (numbered.labels, in_order(numbered.labels, [0, 1])):
            classifier = MultiLabelZeroShotClassifier(labels, aligner=numbered.aligner)
            classifier.fit(numbered.X, numbered.Y[:, -len(labels) :])
            assert classifier.score(numbered.X, classifier.predict_sets(numbered.X)) == 1
            assert classifier.score(numbered.X, classifier.predict(numbered.X)) == 1

    def test_generators_are_read_once(self, numbered):
        sets = [{number for number, one in enumerate(row) if one} for row in numbered.Y.tolist()]
        classifier = MultiLabelZeroShotClassifier(aligner=numbered.aligner)
        with pytest.warns(UserWarning, match="Y has labels that are numbers"):
            classifier.fit(numbered.X, (iter(labels) for labels in sets))
        assert classifier.labels_.tolist() == [0, 1, 2, 3]
        assert classifier.score(numbered.X, iter(sets)) > 0.5
