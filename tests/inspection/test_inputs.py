"""What displays take, whatever holds the aligner."""

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import CCAAligner
from sklearn_ape.inspection._plotting import aligner_and_input, check_names, checked_pairs


@pytest.fixture
def pipeline(concepts):
    return make_pipeline(StandardScaler(), CCAAligner()).fit(concepts.image, concepts.text)


def test_steps_before_the_aligner_are_taken(pipeline, concepts):
    X = pipeline[0].transform(concepts.image)
    for holder in (pipeline, FrozenEstimator(pipeline)):
        aligner, given = aligner_and_input(holder, concepts.image)
        assert aligner is pipeline[-1]
        np.testing.assert_array_equal(given, X)


def test_the_best_of_a_search(concepts):
    search = GridSearchCV(CCAAligner(), {"ridge": [0.1, 1.0]}, cv=2)
    search.fit(concepts.image, concepts.text)
    aligner, given = aligner_and_input(search, concepts.image)
    assert aligner is search.best_estimator_
    assert given is concepts.image


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0.5, 1.0]], r"integers of shape \(n_pairs, 2\), not float64"),
        ([[0, 1, 2]], r"not int64 of shape \(1, 3\)"),
        ([[0, 0], [1, 7]], r"Pair 1 is of rows \[1, 7\]"),
        (None, "3 images and 2 texts"),
    ],
)
def test_pairs_that_do_not_fit(pairs, message):
    with pytest.raises(ValueError, match=message):
        checked_pairs(pairs, 3, 2)


def test_no_pairs_are_none():
    assert checked_pairs([], 3, 2).shape == (0, 2)


def test_names_that_do_not_fit():
    with pytest.raises(ValueError, match="captions is a single text, not a sequence"):
        check_names("cat", 3, "captions", "text")
    with pytest.raises(ValueError, match="There are 2 captions for 3 texts"):
        check_names(["a", "b"], 3, "captions", "text")
