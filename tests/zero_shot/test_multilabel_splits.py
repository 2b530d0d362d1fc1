"""Splits of images by `cv`, in which `MultiLabelZeroShotClassifier` fits an aligner."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit

from sklearn_ape import CCAAligner, MultiLabelZeroShotClassifier

LABELS = ["animal", "food", "travel"]
FITTED_ROWS = []


class RecordingAligner(CCAAligner):
    """Aligner that records the rows that it was fitted on."""

    def fit(self, X, y):
        FITTED_ROWS.append({row.tobytes() for row in X})
        return super().fit(X, y)


@pytest.fixture
def new(text_encoder):
    return MultiLabelZeroShotClassifier(
        LABELS, aligner=RecordingAligner(text_encoder=text_encoder)
    )


@pytest.fixture(scope="module")
def data(features, captioned_images):
    return features.image[:60], [{category} for category in captioned_images.categories[:60]]


def test_cv_may_be_a_splitter_or_its_splits(new, data):
    """With the splits of ``cv=3``, the thresholds are those of ``cv=3``."""
    splitter = KFold(3, shuffle=True, random_state=0)
    expected = clone(new).fit(*data).thresholds_
    for cv in (splitter, list(splitter.split(data[0])), splitter.split(data[0])):
        fitted = clone(new)
        fitted.cv = cv  # an iterator cannot be cloned
        np.testing.assert_array_equal(fitted.fit(*data).thresholds_, expected)
        assert fitted.predict(data[0]).shape == (60, 3)


def test_groups_are_held_out_together(new, data):
    X, Y = data
    cv = list(GroupKFold(4).split(X, groups=np.arange(60) // 5))
    FITTED_ROWS.clear()
    new.set_params(cv=cv).fit(X, Y)
    assert len(FITTED_ROWS) == 5
    assert {row.tobytes() for row in X} == FITTED_ROWS[0]
    for rows in FITTED_ROWS[1:]:
        is_fitted = np.array([row.tobytes() in rows for row in X]).reshape(-1, 5)
        assert (is_fitted.all(axis=1) | ~is_fitted.any(axis=1)).all()
        assert is_fitted.sum() == 45


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (ShuffleSplit(2), "cv has 2 splits whose test sets do not contain each of 60 rows once"),
        ([], "cv has 0 splits whose test sets"),
        ([1, 2], "cv has 2 splits whose test sets"),
        (GroupKFold(3), "groups"),
    ],
)
def test_invalid_splits_raise_before_the_first_fit(new, data, cv, message):
    FITTED_ROWS.clear()
    with pytest.raises(ValueError, match=message):
        new.set_params(cv=cv).fit(*data)
    assert not FITTED_ROWS


def test_saving_a_splitter_raises(tmp_path):
    with pytest.raises(TypeError, match=r"cv cannot be saved.* Set cv to an integer before"):
        MultiLabelZeroShotClassifier(LABELS, cv=KFold(3)).save_pretrained(tmp_path / "model")
