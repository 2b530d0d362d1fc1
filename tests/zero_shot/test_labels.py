"""Names of classes and values of y: what is missing is told, with its place."""

import numpy as np
import pandas as pd
import pytest

from sklearn_ape._labels import captions_of, checked_y, names_of

MISSING = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_a_missing_value_is_no_label(missing):
    for labels in (["cat", missing], [missing], {missing: "cat"}):
        with pytest.raises(ValueError, match=r"is no label \(a missing value\?\)"):
            names_of(labels)


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_missing_values_of_y_are_counted_and_placed(missing):
    with pytest.raises(ValueError, match="y has 2 missing labels, the first in row 1: leave"):
        checked_y(["cat", missing, "dog", missing])
    for y in (np.array(["cat", missing], dtype=object), pd.Series(["cat", missing], dtype=object)):
        with pytest.raises(ValueError, match=r"y holds .* \(row 1\), which is neither"):
            captions_of(checked_y(y), {"cat": ["cat"]}, ("{}",))


def test_what_only_looks_missing_is_a_label():
    words = ["NA", "nan", "None", "NAType", "null"]
    assert list(names_of(words)) == words
    assert checked_y(words) == words
    assert checked_y([0, False, 0.0]) == [0, 0, 0]


def test_numbers_that_are_no_labels_say_what_to_do():
    with pytest.raises(ValueError, match="row 1") as told:
        captions_of(["cat", 3], {"cat": ["cat"]}, ("a {}",))
    assert str(told.value) == (
        "y holds 3 (row 1), which is neither one of the labels nor a caption. For numbered "
        "classes pass labels={0: 'cat', ...}; scikit-learn numbers them itself in "
        "cross_val_predict(method='predict_proba') and CalibratedClassifierCV(ensemble=False): "
        "wrap a fitted aligner in FrozenEstimator there."
    )
