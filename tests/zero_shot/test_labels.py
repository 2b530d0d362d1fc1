"""Validation of labels and of the values of y."""

import datetime
import decimal
import enum
import pickle
import types
from collections import UserList

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.frozen import FrozenEstimator

from sklearn_ape import CCAAligner, FewShotClassifier, ZeroShotClassifier, load_pretrained
from sklearn_ape.metrics import per_class_accuracy
from sklearn_ape.prompts import check_in_labels, resolve_flat_names, validate_y
from sklearn_ape.zero_shot._base import convert_labels

MISSING = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_missing_label_raises(missing):
    for labels in (["cat", missing], [missing], {missing: "cat"}):
        with pytest.raises(ValueError, match=r"which is a missing value\. Leave it out"):
            resolve_flat_names(labels)


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_missing_values_of_y_raise_with_count_and_row(missing):
    with pytest.raises(ValueError, match=r"y has 2 missing values \(rows 1, 3\)\. Remove"):
        validate_y(["cat", missing, "dog", missing])
    labels = ["cat", missing]
    for y in (np.array(labels, object), pd.Series(labels, dtype=object), UserList(labels)):
        with pytest.raises(ValueError, match=r"y has 1 missing value \(row 1\)"):
            validate_y(y)


def test_missing_value_of_a_dictionary_column_of_pyarrow_raises():
    """pyarrow's own conversion to an array replaces it by another label."""
    array = pa.array(["cat", None, "dog"]).dictionary_encode()
    columns = [pa.chunked_array([array]), pa.table({"y": array}), pa.record_batch({"y": array})]
    for column in columns:
        with pytest.raises(ValueError, match=r"y has 1 missing value \(row 1\)"):
            validate_y(column)
        with pytest.raises(ValueError, match=r"y_true has 1 missing value \(row 1\)"):
            per_class_accuracy(column, column)


def test_texts_like_missing_values_are_labels():
    words = ["NA", "nan", "None", "NAType", "null"]
    assert list(resolve_flat_names(words)) == words
    assert validate_y(words) == words
    assert validate_y([0, False, 0.0]) == [0, 0, 0]


def test_values_of_y_that_are_not_labels_raise_with_hint():
    names = {"dog": ["a dog"], "cat": ["a cat", "a kitten"]}
    check_in_labels(["cat", "dog", "cat"], names)
    with pytest.raises(ValueError, match="row 1") as raised:
        check_in_labels(["cat", "cta", "dgo", "cta"], names)
    assert str(raised.value) == (
        "y has values that are not in labels: 'cta' (row 1), 'dgo' (row 2). Add them to labels, "
        "or correct y. Pass captions as captions=..., in addition to the labels in y."
    )
    with pytest.raises(
        ValueError, match=r"inverted, pass \{'a kitten': 'cat', \.\.\.\}"
    ) as raised:
        check_in_labels(["cat", "a kitten"], names)
    assert "Add them to labels" not in str(raised.value)
    with pytest.raises(
        ValueError, match=r"of the class 0\. Pass classes, not names, as y\."
    ) as raised:
        check_in_labels(["a cat"], {0: ["a cat"]})
    assert "inverted" not in str(raised.value)
    with pytest.raises(ValueError, match="row 2") as raised:
        check_in_labels([0, 0, 1], names)
    assert str(raised.value) == (
        "y has values that are not in labels: 0 (row 0), 1 (row 2). If the numbers are positions "
        "in labels, pass labels={0: 'a dog', 1: 'a cat'}. VotingClassifier, "
        "StackingClassifier, BaggingClassifier, CalibratedClassifierCV and "
        "cross_val_predict(method='predict_proba') replace labels by their numbers in sorted "
        "order before they call fit. Number the labels yourself, labels={0: 'a cat', 1: 'a dog'}"
        ", and pass these numbers as y."
    )
    with pytest.raises(ValueError, match="not in labels") as raised:
        check_in_labels([0, 0, 1], dict(sorted(names.items())))
    assert "positions" not in str(raised.value)
    for value in ("Cat", "cat ", "café"):
        with pytest.raises(ValueError, match="only in its type, in case, in spaces"):
            check_in_labels([value], {"cat": ["cat"], "cafe\u0301": ["a café"]})


def test_numbers_and_texts_in_a_list_are_not_converted():
    assert validate_y([1, 1, "x"]) == [1, 1, "x"]


def test_missing_y_raises_with_hint():
    with pytest.raises(ValueError, match="requires y") as raised:
        validate_y(None)
    assert str(raised.value) == (
        "The classifier requires y to be passed, but the target y is None. Pass the label of "
        "every image as y."
    )
    with pytest.raises(ValueError, match=r"\(row 0\)\. Remove such rows\.$"):
        validate_y([None])


class Color(enum.Enum):
    RED = "red"


class Fruit(enum.StrEnum):
    APPLE = "apple"
    PEAR = "pear"


class Berry(str, enum.Enum):  # noqa: UP042 (str() of a member of StrEnum is its value)
    STRAW = "straw"
    BLUEBERRY = "blueberry"


class Size(enum.IntEnum):
    SMALL = 0
    LARGE = 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((name for name in ("cat", "dog")), "labels is a generator, which cannot be copied"),
        (map(str, [1, 2]), "labels is a map, .* Pass a list"),
        ({"cat": iter(["cat", "kitten"])}, "for class 'cat', .* Pass a text or a list of texts"),
        ({"cat": 0, "dog": 1}.keys(), "labels is a dict_keys, .* Pass a list"),
        (types.MappingProxyType({"cat": ["tabby"]}), "labels is a mappingproxy, .* Pass a dict"),
        ([Color.RED], "of type Color. Pass its name or its value"),
        ([datetime.date(2020, 1, 1)], "of type date. Convert it to text"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "of type datetime64. Convert it"),
        (np.array(["2020-01-01"], dtype="datetime64[ns]"), "of type datetime64. Convert it"),
        ([datetime.timedelta(1)], "of type timedelta. Convert it to text"),
        ([decimal.Decimal(1)], "of type Decimal"),
        ([1j], "of type complex"),
        (pd.DataFrame({"name": ["cat", "dog"]}), "labels is a table"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_invalid_labels_raise_with_type(labels, message):
    with pytest.raises(ValueError, match=message):
        resolve_flat_names(labels)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([Color.RED] * 2, "y must be texts or numbers, .* of type Color. Pass its name"),
        ([datetime.date(2020, 1, 1)] * 2, "of type date. Convert it to text"),
        (np.array(["2020-01-01"], dtype="datetime64[ns]"), r"datetime64\[ns\]. Convert"),
        (pd.Series(pd.to_datetime(["2020-01-01"])), "not values of type datetime64"),
        (np.array([1], dtype="timedelta64[s]"), "not values of type timedelta64"),
        ([["a cat", "a pet"], ["a dog", "a pet"]], "one label per image.*captions=..."),
        ([["a cat", "a pet"], ["a dog"]], "image: its rows have different lengths. For several"),
        ([{"cat"}, {"dog"}], "of type set. For several labels per image, use MultiLabel"),
        (np.eye(3), r"got an array of shape \(3, 3\).*For one-hot rows, pass numpy.argmax"),
        ([b"cat"], "of type bytes. Decode it"),
        (["cat", "cat\0"], r"y holds 'cat\\x00', which ends in a NUL character"),
    ],
    ids=str,
)
def test_invalid_values_of_y_raise_with_type(y, message):
    with pytest.raises(ValueError, match=message):
        validate_y(y)


TEXTS = ["apple", "pear"]
COLLECTIONS = {
    "set": set(TEXTS),
    "tuple": tuple(TEXTS),
    "StrEnum": Fruit,
    "members of StrEnum": list(Fruit),
    "mapping of members": {Fruit.APPLE: "an apple", Fruit.PEAR: "a pear"},
    "array of objects": np.array(list(Fruit), dtype=object),
    "pandas.Index": pd.Index(TEXTS),
    "pandas categories": pd.Series(TEXTS, dtype="category"),
    "pandas string": pd.Series(TEXTS, dtype="string"),
    "polars": pl.Series(TEXTS),
    "pyarrow": pa.array(TEXTS),
    "IntEnum": {Size.SMALL: "a berry", Size.LARGE: "a melon"},
    "large numbers": {2**53 + 1: "a berry", -0.5: "a melon"},
    "large numbers of both signs": {2**63: "a berry", -1: "a melon"},
}
if hasattr(np.dtypes, "StringDType"):  # numpy 2
    COLLECTIONS["numpy.StringDType"] = np.array(TEXTS, dtype=np.dtypes.StringDType())


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_collections_of_labels_give_builtin_classes_after_fit_pickle_and_save(kind, tmp_path):
    """Classes are of built-in types, and equal to the labels."""
    labels = COLLECTIONS[kind]
    X = np.random.default_rng(0).standard_normal((40, 6))
    aligner = CCAAligner().fit(X, X[:, :4])
    expected = list(labels) if not isinstance(labels, pa.Array) else labels.to_pylist()
    classes = ZeroShotClassifier(labels, aligner=aligner).classes_.tolist()
    assert classes == sorted(expected)
    assert {type(label) for label in classes} <= {str, int, float}
    for classifier in (
        ZeroShotClassifier(labels, aligner=aligner),
        clone(ZeroShotClassifier(labels, aligner=FrozenEstimator(aligner))),
    ):
        y = [expected[row % 2] for row in range(40)]
        if "large" not in kind:  # scikit-learn accepts no fractional numbers as labels
            classifier.fit(X, y)
        classifier.save_pretrained(tmp_path / "saved")
        for restored in (
            pickle.loads(pickle.dumps(classifier)),
            load_pretrained(tmp_path / "saved"),
        ):
            assert restored.classes_.tolist() == classes


@pytest.mark.parametrize(
    "labels",
    [TEXTS, tuple(TEXTS), np.array(TEXTS), np.arange(2), np.array([1, "a"], dtype=object),
     {"apple": None, "pear": ["a pear"]}, "a text", 5, None],
    ids=repr,
)  # fmt: skip
def test_labels_in_a_file_keep_their_container(labels):
    converted = convert_labels(labels)
    assert type(converted) is type(labels)
    assert getattr(converted, "dtype", None) == getattr(labels, "dtype", None)
    assert np.array_equal(converted, labels)


@pytest.mark.parametrize(
    "kind",
    [kind for kind, labels in COLLECTIONS.items() if not isinstance(labels, dict | set)],
)
def test_values_of_y_in_any_container_become_builtin_labels(kind):
    labels = COLLECTIONS[kind]
    values = validate_y(list(labels) if kind == "StrEnum" else labels)
    assert values == TEXTS
    assert {type(value) for value in values} == {str}


def test_members_of_an_enum_of_texts_are_their_values(aligner, features):
    """NumPy replaced them by their names, cut off to the length of the longest value."""
    X, y = features.image[:40], list(Berry) * 20
    values = [member.value for member in y]
    classifier = FewShotClassifier(aligner=aligner).fit(X, y)
    assert classifier.classes_.tolist() == ["blueberry", "straw"]
    assert classifier.score(X, y) == classifier.score(X, values) > 0.5
    assert per_class_accuracy(y, values).accuracy.tolist() == [1, 1]
    assert validate_y(UserList(y)) == validate_y(dict(enumerate(y)).values()) == values


@pytest.mark.parametrize(
    ("value", "label"), [("1", 1), (1, "1"), (10, "10"), (True, "True"), ("true", True)]
)
def test_labels_of_another_type_are_reported(value, label):
    """The advice for texts that are numbers was to use other labels."""
    match = rf"{value!r} differs from the label {label!r} only in its type.* Correct y\."
    with pytest.raises(ValueError, match=match):
        check_in_labels([value], {label: ["cat"], type(label)(0): ["dog"]})


def test_unknown_label_of_an_enum_is_its_value(aligner, features, tmp_path):
    for unknown, labels in ((Berry.STRAW, ["cat", "dog"]), (Size.LARGE, {5: "cat", 6: "dog"})):
        classifier = ZeroShotClassifier(
            labels, aligner=aligner, threshold=1, unknown_label=unknown
        )
        classifier.save_pretrained(tmp_path / "saved")
        for model in (classifier, load_pretrained(tmp_path / "saved")):
            assert set(model.predict(features.image[:9]).tolist()) == {unknown.value}


def test_masked_labels_are_missing():
    """The mask was ignored."""
    y = np.ma.masked_array(["cat", "dog", "dog"], mask=[1, 0, 0])
    with pytest.raises(ValueError, match=r"y has 1 missing value \(row 0\)"):
        validate_y(y)
    with pytest.raises(ValueError, match=r"y_true has 1 missing value \(row 0\)"):
        per_class_accuracy(y, ["cat", "dog", "dog"])
    accuracy = per_class_accuracy(["cat", "dog", "dog"], y).accuracy
    assert accuracy.tolist() == [0, 1]


@pytest.mark.filterwarnings("error")  # such as NumPy's warning about a cast
@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.nan, r"1 missing value \(row 1\)"), (np.inf, "Input y contains infinity")],
)
def test_nan_and_infinity_in_y_raise(bad, message):
    with pytest.raises(ValueError, match=message):
        validate_y(np.array([1.0, bad]))


def test_column_vector_warns():
    with pytest.warns(DataConversionWarning, match="column-vector"):
        assert validate_y(np.array([["cat"], ["dog"]])) == ["cat", "dog"]


@pytest.mark.parametrize("labels", ["cat", b"cat", bytearray(b"cat"), np.array("cat")])
def test_single_name_raises(labels):
    """The bytes of b"cat" would be the labels 99, 97 and 116."""
    with pytest.raises(ValueError, match="labels must be a sequence of names"):
        resolve_flat_names(labels)


class TestNumbersWithoutNames:
    """The digits of a number say nothing about an image."""

    @pytest.fixture
    def aligner(self, features, captioned_images, text_encoder):
        aligner = CCAAligner(text_encoder=text_encoder)
        return aligner.fit(features.image[:50], captioned_images.captions[:50])

    def test_numbers_warn(self, features, aligner):
        with pytest.warns(UserWarning, match="labels holds numbers, so the texts '0', '1'"):
            ZeroShotClassifier([0, 1], aligner=aligner).predict(features.image[:2])
        with pytest.warns(UserWarning, match="labels holds numbers, so the texts '0', '1'"):
            FewShotClassifier([0, 1], aligner=aligner).fit(features.image[:2], [0, 1])
        with pytest.warns(UserWarning, match=r"^y holds numbers, so the texts '0', '1'"):
            ZeroShotClassifier(aligner=aligner).fit(features.image[:2], [0, 1])

    def test_texts_that_are_embedded_are_listed(self, features, aligner):
        """The warning listed '0' and '1' for any labels."""
        classifier = ZeroShotClassifier({True: "a dog", False: None}, aligner=aligner)
        with pytest.warns(UserWarning, match="so the texts 'False' are embedded"):
            classifier.predict(features.image[:2])

    def test_named_numbers_do_not_warn(self, features, aligner, recwarn):
        ZeroShotClassifier({0: "cat", 1: "dog"}, aligner=aligner).predict(features.image[:2])
        ZeroShotClassifier(["1", "2"], aligner=aligner).predict(features.image[:2])
        assert not recwarn.list


def test_empty_label_raises_with_its_parameter():
    """Without labels, the classes are those of y."""
    for classifier in (ZeroShotClassifier(), FewShotClassifier()):
        with pytest.raises(ValueError, match=r"y has the empty label ' '\. Leave it out"):
            classifier.fit(["a.jpg", "b.jpg"], ["cat", " "])
    with pytest.raises(ValueError, match=r"labels has the empty label ''\. Leave it out"):
        resolve_flat_names(["cat", ""])
