"""Label sets per image, the columns of `Y`, and the texts that thresholds belong to."""

from collections import Counter, UserDict, namedtuple
from decimal import Decimal
from types import MappingProxyType

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix, csr_array
from sklearn.base import clone
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils.estimator_checks import _NotAnArray

from sklearn_ape import MultiLabelZeroShotClassifier
from sklearn_ape.zero_shot._multilabel_targets import (
    as_table_or_rows,
    check_prevalence,
    collect_labels,
    to_indicator,
)

LABELS = [
    ["cat", "dog", "house"],
    ["0", "1", "2"],
    [0, 1, 2],
    [2, 0, 7, 1],
    [1, 0],
    [False, True],
    [0.0, 1.0, 2.5],
    [1],
    [0],
    ["cat"],
]
# Forms of the same names that are equal in Python.
AS_NAMES = {
    "as they are": list,
    "NumPy scalars": lambda labels: list(np.array(labels)),
    "floats": lambda labels: [x if isinstance(x, str) else float(x) for x in labels],
    "NumPy strings": lambda labels: [np.str_(x) if isinstance(x, str) else x for x in labels],
}


def pandas_frame(names, columns, dtype):
    frame = pd.DataFrame(dict(enumerate(columns)), index=range(5, 5 + len(columns[0])))
    frame.columns = pd.Index(names, dtype=object)
    return frame.astype(dtype)


def as_texts(names):
    return all(isinstance(name, str) for name in names)


NAMED = {
    "pandas int": lambda names, columns: pandas_frame(names, columns, "int64"),
    "pandas bool": lambda names, columns: pandas_frame(names, columns, bool),
    "pandas float32": lambda names, columns: pandas_frame(names, columns, "float32"),
    "pandas object": lambda names, columns: pandas_frame(names, columns, object),
    "pandas Int64": lambda names, columns: pandas_frame(names, columns, "Int64"),
    "pandas boolean": lambda names, columns: pandas_frame(names, columns, "boolean"),
    "pandas sparse": lambda names, columns: pandas_frame(names, columns, pd.SparseDtype(int, 0)),
    "pandas category": lambda names, columns: pandas_frame(names, columns, "category"),
    "dicts": lambda names, columns: [
        dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
    ],
    "mappings": lambda names, columns: (
        UserDict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
    ),
}
NAMED_BY_TEXTS = {
    "polars": lambda names, columns: pl.DataFrame(dict(zip(names, columns, strict=True))),
    "polars bool": lambda names, columns: pl.DataFrame(
        {name: pl.Series(column, dtype=pl.Boolean, strict=False)
         for name, column in zip(names, columns, strict=True)}
    ),
    "pyarrow": lambda names, columns: pa.table(dict(zip(names, columns, strict=True))),
    "structured array": lambda names, columns: np.array(
        list(zip(*columns, strict=True)), dtype=[(str(name), "i1") for name in names]
    ),
}  # fmt: skip
BY_POSITION = {
    "int64": lambda table: table,
    "bool": lambda table: table.astype(bool),
    "float16": lambda table: table.astype(np.float16),
    "uint8": lambda table: table.astype(np.uint8),
    "object": lambda table: table.astype(object),
    "Fortran": np.asfortranarray,
    "csr_array": csr_array,
    "coo_matrix of bool": lambda table: coo_matrix(table.astype(bool)),
    "torch": torch.as_tensor,
    "masked array": np.ma.masked_array,
    "object with __array__ alone": _NotAnArray,
    "lists": lambda table: table.tolist(),
    "lists of bool": lambda table: table.astype(bool).tolist(),
    "lists of float": lambda table: table.astype(float).tolist(),
    "list of arrays": list,
    "list of tensors": lambda table: list(torch.as_tensor(table)),
    "list of Series": lambda table: [pd.Series(row) for row in table],
    "list of polars Series": lambda table: [pl.Series(row) for row in table],
    "object array of lists": lambda table: pd.Series(table.tolist()).to_numpy(),
    "Series of lists": lambda table: pd.Series(table.tolist(), index=range(9, 9 + len(table))),
    "polars Series of lists": lambda table: pl.Series(table.tolist()),
    "pyarrow column of lists": lambda table: pa.chunked_array([table.tolist()]),
    "generator of lists": lambda table: (row.tolist() for row in table),
}


def dict_keys(labels):
    return dict.fromkeys(labels).keys()


@st.composite
def tables(draw):
    """Draw labels, a table of zeros and ones, and an order of its columns."""
    labels = draw(st.sampled_from(LABELS))
    n_rows = draw(st.integers(1, 5))
    cells = st.lists(st.integers(0, 1), min_size=len(labels), max_size=len(labels))
    table = np.array(draw(st.lists(cells, min_size=n_rows, max_size=n_rows)))
    return labels, table, draw(st.permutations(range(len(labels))))


class TestTables:
    @settings(max_examples=300, deadline=None)
    @given(tables(), st.sampled_from([*NAMED, *NAMED_BY_TEXTS]), st.sampled_from([*AS_NAMES]))
    def test_named_columns_are_matched_by_name(self, drawn, container, form):
        labels, table, order = drawn
        names = [AS_NAMES[form](labels)[column] for column in order]
        if container in NAMED_BY_TEXTS and not as_texts(names):
            return
        make = (NAMED | NAMED_BY_TEXTS)[container]
        Y = as_table_or_rows(make(names, [table[:, column].tolist() for column in order]))
        expected = [
            [row[list(names).index(label)] for label in labels] for row in table[:, order].tolist()
        ]
        indicator = to_indicator(Y, labels)
        assert indicator.tolist() == expected == table.tolist()
        assert indicator.dtype == int
        assert collect_labels(Y) == [labels[column] for column in order]

    @settings(max_examples=300, deadline=None)
    @given(tables(), st.sampled_from([*BY_POSITION]))
    def test_unnamed_columns_are_read_by_position(self, drawn, container):
        labels, table, _ = drawn
        indicator = to_indicator(BY_POSITION[container](table), labels)
        assert indicator.tolist() == table.tolist()
        assert indicator.dtype == int

    @pytest.mark.parametrize("container", [*BY_POSITION])
    def test_unnamed_table_without_labels_raises(self, container):
        table = np.array([[0, 1, 1], [1, 0, 0]])
        with pytest.raises(ValueError, match="labels is None, and the 3 columns of Y have no nam"):
            collect_labels(BY_POSITION[container](table))

    @pytest.mark.parametrize(
        ("names", "labels", "message"),
        [([0, 1], ["cat", "dog"], r"\['cat', 'dog'\], unexpected columns \[0, 1.* without names"),
         (["0", "1"], [0, 1], r"missing columns \[0, 1\], unexpected columns \['0', '1'\]"),
         ([0, 1], ["0", "1"], r"missing columns \['0', '1'\], unexpected columns \[0, 1\]"),
         ([20, 10, 30], [10, 20], r"do not match labels: unexpected columns \[30\]"),
         ([0], [0, 1], r"do not match labels: missing columns \[1\]"),
         ([0, 1, 0], [0, 1], "The columns of Y are 0 more than once"),
         ([0, 1, 1.0], [0, 1], "The columns of Y are 1 more than once"),
         ([("a", "x"), ("a", "y")], ["a", "b"], r"unexpected columns \[\('a', 'x'\)"),
         ([np.nan, 0], [0, 1], r"unexpected columns \[nan\]"),
         ([pd.NA, 0], [0, 1], r"unexpected columns \[<NA>\]"),
         ([True, 2], [1, 0], r"missing columns \[0\], unexpected columns \[2\]"),
         (["a\u0308", "b"], ["b", "\u00e4"], r"differs from the label .* Unicode .* Correct Y\.")],
    )  # fmt: skip
    def test_columns_other_than_labels_raise_with_their_names(self, names, labels, message):
        frame = pd.DataFrame(np.zeros((2, len(names)), int))
        frame.columns = pd.Index(names, dtype=object, tupleize_cols=False)
        with pytest.raises(ValueError, match=message):
            to_indicator(frame, labels)

    @pytest.mark.parametrize(
        ("Y", "message"),
        [
            (["cat,dog", "cat"], r"Y has 'cat,dog' in row 0: .* Split it: Y.str.split\(','\)"),
            ([["cat", " dog"]], r"Y has ' dog' .* ' dog' differs from the label 'dog' only in"),
            (
                [["Cat"], ["dog"]],
                r"'Cat' differs from the label 'cat' .* in case.* Correct Y\.",
            ),
        ],
    )
    def test_texts_that_are_almost_labels_raise_with_remedy(self, Y, message):
        with pytest.raises(ValueError, match=message):
            to_indicator(Y, ["cat", "dog"])

    def test_missing_value_of_a_dictionary_column_of_pyarrow_raises(self):
        """pyarrow's own conversion to an array replaces it by another value."""
        column = pa.array([1, None, 0]).dictionary_encode()
        with pytest.raises(ValueError, match="Y has None in column 'cat', row 1"):
            to_indicator(pa.table({"cat": column}), ["cat"])

    def test_repeated_columns_of_pyarrow_table_raise(self):
        table = pa.table([[0], [1], [1]], names=["cat", "dog", "dog"])
        with pytest.raises(ValueError, match="The columns of Y are 'dog' more than once"):
            to_indicator(table, ["cat", "dog"])
        with pytest.raises(ValueError, match="Y has the columns 'dog' more than once"):
            collect_labels(table)

    @pytest.mark.parametrize("cell", [2, -1, 0.5, np.nan, None, pd.NA, "1", "cat", 1j, Decimal(1)])
    @pytest.mark.parametrize("container", ["array", "object array", "frame", "lists", "dicts"])
    def test_cells_other_than_0_and_1_raise_with_their_row(self, cell, container):
        if container == "array" and cell is pd.NA:
            return
        rows = [[0, 1], [1, 0], [1, cell]]
        Y = {
            "array": lambda: np.array(rows),
            "object array": lambda: np.array(rows, dtype=object),
            "frame": lambda: pd.DataFrame(rows, columns=["a", "b"], dtype=object),
            "lists": lambda: rows,
            "dicts": lambda: [dict(zip("ab", row, strict=True)) for row in rows],
        }[container]()
        converts_all = container == "array" and isinstance(cell, str | complex)
        with pytest.raises(ValueError, match="row 0" if converts_all else "row 2"):
            to_indicator(Y, ["a", "b"])

    def test_missing_values_in_tables_raise(self):
        for Y in (
            pd.DataFrame({"a": [1, None], "b": [0, 1]}, dtype="Int64"),
            pd.DataFrame({"a": [True, None], "b": [False, True]}, dtype="boolean"),
            pl.DataFrame({"a": [1, None], "b": [0, 1]}),
            pl.DataFrame({"a": [True, None], "b": [False, True]}),
            pa.table({"a": [1, None], "b": [0, 1]}),
            pa.table({"a": [True, None], "b": [False, True]}),
        ):
            with pytest.raises(ValueError, match="in column 'a', row 1"):
                to_indicator(Y, ["a", "b"])
        masked = np.ma.masked_array(np.eye(2), mask=[[0, 1], [0, 0]])
        with pytest.raises(ValueError, match="masked values in 1 row "):
            to_indicator(masked, ["a", "b"])

    @pytest.mark.parametrize("Y", [np.zeros((2, 3)), csr_array((2, 3), dtype=int)])
    def test_wrong_number_of_columns_raises(self, Y):
        with pytest.raises(ValueError, match="Y has 3 columns, and there are 2 labels"):
            to_indicator(Y, ["a", "b"])


class TestRows:
    @pytest.mark.parametrize(
        ("Y", "labels", "expected"),
        [([[0, 1], [1, 0], [0, 0]], [0, 1], [[0, 1], [1, 0], [0, 0]]),
         ([[0, 1], [1, 0]], [0, 1], [[0, 1], [1, 0]]),  # read as a table
         ([[0, 1], [1, 0]], [1, 0], [[0, 1], [1, 0]]),
         ([(0, 1), (1, 0)], [0, 1], [[1, 1], [1, 1]]),
         ([{0, 1}, {1}], [0, 1], [[1, 1], [0, 1]]),
         ([[0], [1], [0, 1], []], [0, 1], [[1, 0], [0, 1], [1, 1], [0, 0]]),
         ([[0], [1], [0]], [0, 1], [[1, 0], [0, 1], [1, 0]]),
         ([[0], [1]], ["cat"], [[0], [1]]),
         ([[0, 1, 2], [2, 0]], [0, 1, 2], [[1, 1, 1], [1, 0, 1]]),
         ([[0, 1, 1], [1, 0, 0]], [0, 1, 2], [[0, 1, 1], [1, 0, 0]]),
         ([[1, 2, 2], [2]], [1, 2], [[1, 1], [0, 1]]),
         ([["dog", "dog"], []], ["cat", "dog"], [[0, 1], [0, 0]]),
         ([[], []], ["cat", "dog"], [[0, 0], [0, 0]]),
         ([[True], [1.0, 0]], [0, 1], [[0, 1], [1, 1]])],
    )  # fmt: skip
    def test_lists_are_table_or_labels_by_content(self, Y, labels, expected):
        assert to_indicator(Y, labels).tolist() == expected

    @pytest.mark.parametrize("row", [(1, 1), (0, 0), (True, True), (0.0, False)])
    def test_tuples_with_repeated_labels_raise(self, row):
        with pytest.raises(
            ValueError, match=r"Row 1 of Y is a set of labels, and has .* more than"
        ):
            to_indicator([(0, 1), row], [0, 1])

    def test_ragged_list_of_zeros_and_ones_raises_with_its_row(self):
        with pytest.raises(
            ValueError, match=r"not a table of zeros and ones because of row 2, \[1\]"
        ):
            to_indicator([[0, 1], [1, 0], [1]], ["cat", "dog"])
        with pytest.raises(ValueError, match=r"because of row 0, \(0, 1\)"):
            to_indicator([(0, 1), (1, 0)], ["cat", "dog"])

    @settings(max_examples=200, deadline=None)
    @given(tables(), st.sampled_from([tuple, set, frozenset, iter, dict_keys]), st.data())
    def test_sets_of_labels_are_read_like_scikit_learns_binarizer(self, drawn, kind, data):
        labels, table, _ = drawn
        sets = [
            data.draw(st.permutations([x for x, one in zip(labels, row, strict=True) if one]))
            for row in table
        ]
        expected = MultiLabelBinarizer(classes=labels).fit_transform(sets)
        read = as_table_or_rows([kind(row) for row in sets])
        np.testing.assert_array_equal(to_indicator(read, labels), expected)
        np.testing.assert_array_equal(to_indicator(read, labels), table)
        assert collect_labels(read) == sorted({label for row in sets for label in row})

    @pytest.mark.parametrize(
        "row", [{"cat": 0, "dog": 1}, MappingProxyType({"dog": True, "cat": False}),
                Counter({"dog": 1, "cat": 0}), namedtuple("Row", ["dog", "cat"])(1, 0)]
    )  # fmt: skip
    def test_dicts_are_read_by_name(self, row):
        assert to_indicator([row], ["cat", "dog"]).tolist() == [[0, 1]]

    @pytest.mark.parametrize(
        ("row", "message"),
        [({"cat": 1}, r"keys of row 1 of Y do not match labels: missing keys \['dog'\]"),
         ({"cat": 1, "dog": 0, "cow": 0}, r"unexpected keys \['cow'\]"),
         ({"cat": 2, "dog": 0}, "Y has 2 in row 1"),
         ({"cat": [1], "dog": 0}, r"Y has \[1\] in row 1"),
         (pd.Series({"dog": 1, "cat": 0}), "Row 1 of Y is a Series whose index is not"),
         ("cat", "Y has 'cat' in row 1: .*a list also for one label"),
         (np.array("cat"), "Y has 'cat' in row 1"),
         (b"cat", "Y has b'cat' in row 1"),
         (None, "Y has None in row 1"),
         (np.nan, "Y has nan in row 1"),
         (pd.NA, "Y has <NA> in row 1"),
         (1, "Y has 1 in row 1"),
         ([["cat"]], r"Y has \[\['cat'\]\] in row 1"),
         (["cat", None], "Y has None in row 1, which is not in labels"),
         (["cat", ""], "not in labels: 'cat', 'dog'. Pass an empty list for an image without"),
         (["cow"], "Y has 'cow' in row 1, which is not in labels: 'cat', 'dog'"),
         (np.eye(2), "Y has .* in row 1")],
    )  # fmt: skip
    def test_invalid_rows_raise_with_their_index(self, row, message):
        with pytest.raises(ValueError, match=message):
            to_indicator([["cat"], row], ["cat", "dog"])

    @pytest.mark.parametrize(
        ("Y", "message"),
        [(None, "Y is None"), ("cat", "Y is of type str"), (b"cat", "Y is of type bytes"),
         (3, "Y is of type int"), (np.array(3), "Y is an array without dimensions"),
         (_NotAnArray(3), "Y is an array without dimensions"),
         ({"cat": [0, 1], "dog": [1, 0]}, "Y is of type dict"),
         (pl.LazyFrame(), "Y is of type LazyFrame")],
    )  # fmt: skip
    def test_invalid_targets_raise(self, Y, message):
        for read in (collect_labels, lambda Y: to_indicator(Y, ["cat", "dog"])):
            with pytest.raises(ValueError, match=f"{message}: expected a table of zeros and ones"):
                read(Y)

    def test_labels_of_different_types_raise(self):
        with pytest.raises(ValueError, match="Y has labels that cannot be sorted: 'cat', None"):
            collect_labels([["cat", None]])


def in_order(labels, order):
    return {label: labels[label] for label in order}


class TestColumnsOfY:
    @pytest.mark.sampled(5)
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

    @pytest.mark.exhaustive
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
        with pytest.warns(UserWarning, match="Y holds numbers, so the texts"):
            classifier.fit(numbered.X, (iter(labels) for labels in sets))
        assert classifier.labels_.tolist() == [0, 1, 2, 3]
        assert classifier.score(numbered.X, iter(sets)) > 0.5


class TestFit:
    @pytest.fixture
    def fitted(self, numbered):
        classifier = MultiLabelZeroShotClassifier(numbered.labels, aligner=numbered.aligner)
        return classifier.fit(numbered.X, numbered.Y)

    def test_other_texts_raise(self, fitted, numbered):
        """The thresholds are those of the cosines with the texts of the fit."""
        labels = dict(numbered.labels)
        label = next(iter(labels))
        fitted.set_params(labels=labels | {label: "a banana"})
        with pytest.raises(ValueError, match="other texts than those for which thresholds"):
            fitted.predict(numbered.X)
        fitted.set_params(labels=labels, templates="none")
        with pytest.raises(ValueError, match="other texts than those for which thresholds"):
            fitted.predict(numbered.X)

    def test_failed_fit_changes_nothing(self, fitted, numbered, monkeypatch):
        expected = fitted.predict(numbered.X)

        def fail(*_):
            raise MemoryError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(MultiLabelZeroShotClassifier, "_compute_margins", fail)
            with pytest.raises(MemoryError, match="no memory"):
                fitted.fit(numbered.X, numbered.Y)
        np.testing.assert_array_equal(fitted.predict(numbered.X), expected)

    def test_columns_in_another_order_warn(self, numbered):
        labels = list(numbered.labels)
        table = pd.DataFrame(numbered.Y, columns=labels)
        classifier = MultiLabelZeroShotClassifier(numbered.labels, aligner=numbered.aligner)
        expected = classifier.fit(numbered.X, table).thresholds_
        with pytest.warns(UserWarning, match="scorers compare them by position"):
            classifier.fit(numbered.X, table[labels[::-1]])
        np.testing.assert_array_equal(classifier.thresholds_, expected)

    def test_bad_caption_raises_with_its_row(self, numbered):
        captions = ["a caption"] * len(numbered.X)
        captions[30] = " "
        classifier = MultiLabelZeroShotClassifier(numbered.labels, aligner=clone(numbered.aligner))
        with pytest.raises(ValueError, match=r"row 30: ' ' is an empty caption"):
            classifier.fit(numbered.X, numbered.Y, captions)


@pytest.mark.parametrize(
    ("prevalence", "advice"),
    [
        (pd.Series({"cat": 0.1, "dog": 0.2}), r"not Series\. Pass prevalence\.to_dict\(\)"),
        (np.array([0.1, 0.2]), r"not ndarray\. Pass dict\(zip\(labels, prevalence\)\)"),
    ],
)
def test_sequences_of_fractions_raise(prevalence, advice):
    """A message of the whole Series said that it must be a number."""
    with pytest.raises(ValueError, match=rf"or a mapping from each label .*{advice}"):
        check_prevalence(prevalence)
