"""Per-class accuracy."""

import numpy as np
import pandas as pd
import pytest

from sklearn_ape.metrics import per_class_accuracy


def test_per_class_accuracy_is_fraction_of_correct():
    """Classes are unsorted, one is never predicted, and one prediction is not in y_true."""
    y_true = np.array(["b", "c", "a", "b", "a", "b", "b"])
    y_pred = np.array(["b", "a", "a", "b", "unknown", "a", "b"])
    result = per_class_accuracy(y_true, y_pred)
    assert result.classes.tolist() == ["a", "b", "c"]
    assert result.accuracy.tolist() == [0.5, 0.75, 0.0]
    assert result.support.tolist() == [2, 4, 1]


@pytest.mark.parametrize(
    ("y_true", "y_pred"),
    [
        ([1, 2.0, 2], [1, "x", 2]),
        ([1, 2, 2], np.array([1, "unknown", 2], dtype=object)),
        ([1, 2, 2], [1.0, np.nan, 2.0]),
        ([1, 2, 2], [1, None, 2]),
        ([1, 2, 2], pd.Series([1, None, 2], index=[7, 8, 9], dtype="Int64")),
        (["1", "2", "2"], ["1", 2, "2"]),
        ([False, True, True], [0, 0, 1]),
        (pd.Categorical(["a", "b", "b"]), np.array(["a", "a", "b"])),
        (["a", "a\0", "a\0"], ["a", "a", "a\0"]),  # NumPy would cut off NUL
    ],
)
def test_predictions_of_another_type_count_as_wrong(y_true, y_pred):
    """A number and a text are never equal; equal numbers of different types are."""
    result = per_class_accuracy(y_true, y_pred)
    assert result.classes.tolist() == sorted(set(y_true))
    assert result.accuracy.tolist() == [1.0, 0.5]
    assert result.support.tolist() == [1, 2]


def test_missing_prediction_counts_as_wrong():
    """Comparing the NA of pandas with a label raised an error."""
    for y_pred in (["a", None], pd.Series(["a", None], dtype="string"), [1, pd.NA]):
        y_true = ["a", "b"] if y_pred[0] == "a" else [1, 2]
        assert per_class_accuracy(y_true, y_pred).accuracy.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("dtype", "values"), [("Int64", [2**53, 2**53 + 1]), ("boolean", [False, True])]
)
def test_nullable_columns_of_pandas_are_not_converted(dtype, values):
    """They became floats, which cannot distinguish large integers."""
    classes = per_class_accuracy(pd.Series(values, dtype=dtype), values).classes.tolist()
    assert classes == values
    assert {type(label) for label in classes} == {type(values[0])}


def test_pyarrow_numbers_are_numbers():
    """Scalars of pyarrow cannot be sorted."""
    pa = pytest.importorskip("pyarrow")
    result = per_class_accuracy(pa.array([2, 1, 1]), pa.array([2, 1, 3]))
    assert result.classes.tolist() == [1, 2]
    assert result.accuracy.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("name", ["y_true", "y_pred"])
@pytest.mark.parametrize("labels", [np.zeros((2, 3)), 0, "cat", np.array([["a", "b"]])])
def test_error_names_the_parameter(name, labels):
    arguments = {"y_true": ["a", "b"], "y_pred": ["a", "b"], name: labels}
    with pytest.raises(ValueError, match=f"^{name} (must have one dimension|is a single|must be)"):
        per_class_accuracy(**arguments)


@pytest.mark.parametrize(
    ("y_true", "message"),
    [
        ([1, "a"], "y_true mixes types that cannot be sorted"),
        (["a", None], r"y_true has 1 missing value \(row 1\)"),
        (pd.Series(["a", None], dtype="string"), r"y_true has 1 missing value \(row 1\)"),
        ([np.nan, 1.0], r"y_true has 1 missing value \(row 0\)"),
        ([["a"], ["b", "c"]], "y_true must hold one label per image, not lists of labels"),
        ([1, 2, 3], "inconsistent numbers of samples"),
    ],
)
def test_invalid_classes_raise(y_true, message):
    with pytest.raises(ValueError, match=message):
        per_class_accuracy(y_true, [1, 2])
