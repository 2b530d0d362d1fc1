"""Names of classes and values of y: what is missing is told, with its place."""

import numpy as np
import pandas as pd
import pytest

from sklearn_ape import APEAligner, CCAAligner, ZeroShotClassifier
from sklearn_ape._labels import captions_of, checked_y, names_of
from sklearn_ape.encoders import TimmImageEncoder

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


def test_no_y_says_what_y_may_be():
    with pytest.raises(ValueError, match="requires y") as told:
        checked_y(None)
    assert str(told.value) == (
        "ZeroShotClassifier requires y to be passed, but the target y is None: pass labels or "
        "captions (or a fitted aligner in FrozenEstimator, with labels)."
    )
    with pytest.raises(ValueError, match=r"the first in row 0: leave these rows out\.$"):
        checked_y([None])


@pytest.mark.filterwarnings("error")  # such as numpy's of a cast
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=repr)
def test_numbers_that_are_not_finite_are_no_labels(bad):
    with pytest.raises(ValueError, match=r"Input y contains (NaN|infinity)"):
        checked_y(np.array([1.0, bad]))


def test_without_an_aligner_the_default_is_trained():
    default = ZeroShotClassifier()._new_aligner()
    assert isinstance(default, APEAligner)
    assert isinstance(default.image_encoder, TimmImageEncoder)
    assert isinstance(ZeroShotClassifier(aligner=CCAAligner())._new_aligner(), CCAAligner)


def test_a_name_with_a_place_is_a_template_of_its_own_class():
    names = {"cat": ["a {} on a mat"], "dog": ["dog"]}
    captions = captions_of(["dog", "cat", "a bird"], names, ("this is {}",))
    assert captions == [["this is dog"], ["a cat on a mat"], "a bird"]
