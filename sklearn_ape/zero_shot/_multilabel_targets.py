"""Targets of multi-label classification: label sets, their splits, and thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import KFold

from ..prompts import describe_similar_label
from ..utils.messages import warn
from ..utils.sklearn_compat import read_splits
from ..utils.validation import (
    as_numeric,
    check_number,
    find_repeated,
    format_list,
    to_builtin,
    to_list,
)

_EXPECTED = (
    "expected a table of zeros and ones with a column for each label, or a list of the labels of "
    "each image"
)


def as_table_or_rows(Y: Any) -> Any:
    """Return a table unchanged, and other targets as a list of rows.

    A row is a dict (names and zeros or ones), a list (zeros and ones, or labels), or a tuple, set
    or frozenset (labels).
    """
    if Y is None:
        raise ValueError(f"Y is None: {_EXPECTED}.")
    if get_column_names(Y) is not None or len(getattr(Y, "shape", ())) == 2:
        return Y
    if hasattr(Y, "__array__") and not isinstance(Y, Iterable):
        return as_table_or_rows(np.asarray(Y))
    if getattr(Y, "shape", None) == ():
        raise ValueError(f"Y is an array without dimensions: {_EXPECTED}.")
    if isinstance(Y, str | bytes | Mapping) or not isinstance(Y, Iterable):
        raise ValueError(f"Y is of type {type(Y).__name__}: {_EXPECTED}.")
    return [_read_row(row, index) for index, row in enumerate(to_list(Y))]


def collect_labels(Y: Any) -> list[Any]:
    """Return the labels of Y: columns and keys of dicts in their order, other labels sorted."""
    rows = as_table_or_rows(Y)
    if not isinstance(rows, list):
        names = get_column_names(rows)
        if names is None:
            raise ValueError(_describe_unnamed_columns(rows.shape[1]))
        _check_distinct(names, "Y has the columns")
        return names
    if rows and _find_row_of_labels(rows, len(rows[0])) is None:
        raise ValueError(_describe_unnamed_columns(len(rows[0])))
    labels = list(dict.fromkeys(label for row in rows for label in row))
    if rows and all(isinstance(row, dict) for row in rows):
        return labels
    try:
        return sorted(labels)
    except TypeError:
        raise ValueError(
            f"Y has labels that cannot be sorted: {format_list(labels)}. Use texts alone or "
            "numbers alone, without missing values, or pass labels."
        ) from None


def to_indicator(Y: Any, labels: Sequence[Any]) -> np.ndarray:
    """Return zeros and ones, with columns in the order of labels; `fit` lists the forms of Y."""
    rows = as_table_or_rows(Y)
    if not isinstance(rows, list):
        return _read_table(rows, labels)
    first_set = _find_row_of_labels(rows, len(labels))
    if first_set is None:
        return np.array(rows, dtype=object).astype(int).reshape(-1, len(labels))
    column_of = {label: column for column, label in enumerate(labels)}
    table = np.zeros((len(rows), len(labels)), dtype=int)
    for index, row in enumerate(rows):
        if isinstance(row, dict):
            order = _find_positions(list(row), labels, f"The keys of row {index} of Y", "keys")
            cells = np.fromiter(row.values(), dtype=object, count=len(row))
            table[index] = _check_binary(cells[order], f"row {index}")
            continue
        if not isinstance(row, set | frozenset) and _is_binary_row(row, len(labels)):
            # A set of labels of this length has each label once; a row of a table does not.
            _check_distinct(row, f"Row {index} of Y is a set of labels, and has")
        for label in row:
            if label not in column_of:
                raise ValueError(_describe_unknown_label(label, index, rows, first_set, labels))
            table[index, column_of[label]] = 1
    return table


def warn_about_order(Y: Any, labels: Sequence[Any]) -> None:
    """Warn if the columns of a table with names are in another order than the labels."""
    columns = None if isinstance(Y, list) else get_column_names(Y)
    if columns is not None and columns != labels:
        warn(
            "Y has the columns in another order than labels. They are matched by name here, "
            "but scikit-learn's scorers compare them by position: pass Y[list(labels)]."
        )


def check_is_ordered(labels: Any) -> None:
    """Raise ValueError for a set of labels."""
    if isinstance(labels, set | frozenset):
        raise ValueError(
            "labels is a set, whose order, and so that of the columns, differs from run to run. "
            "Pass a list, sorted(labels)."
        )


def collect_prompts(table: np.ndarray, prompts: list[list[str]]) -> list[list[str]]:
    """Return the prompts of the labels of each image, from those of each column."""
    return [
        [prompt for column in np.flatnonzero(row) for prompt in prompts[column]] for row in table
    ]


def list_splits(cv: Any, X: Any, table: np.ndarray) -> list[tuple[Any, Any]]:
    """Return the training and test rows of each split of a ``cv`` parameter."""
    if isinstance(cv, Integral):
        return list(KFold(cv, shuffle=True, random_state=0).split(table))
    return read_splits(cv, len(table), X, table)


def _read_row(row: Any, index: int) -> Any:
    """Return a row as a dict, list, tuple, set or frozenset of hashable values."""
    if hasattr(row, "_asdict"):  # namedtuple
        row = row._asdict()
    if isinstance(row, Mapping):
        return dict(row)
    if hasattr(row, "iloc") and list(row.index) != list(range(len(row))):
        raise ValueError(
            f"Row {index} of Y is a {type(row).__name__} whose index is not 0, 1, ... Pass a "
            "DataFrame to match columns by name, or row.tolist() for each row."
        )
    for method in ("tolist", "to_list"):  # numpy, pandas and torch; polars
        if hasattr(row, method):
            row = getattr(row, method)()
    if isinstance(row, str | bytes | bytearray) or not isinstance(row, Iterable):
        hint = " (a list also for one label: ['cat'])."
        if "," in str(row):
            hint += " Split it: Y.str.split(',') of a pandas column."
        raise ValueError(f"Y has {row!r} in row {index}: {_EXPECTED}{hint}")
    if not isinstance(row, list | tuple | set | frozenset):
        row = tuple(row)
    try:
        hash(tuple(row))
    except TypeError:
        raise ValueError(f"Y has {row!r} in row {index}: {_EXPECTED}.") from None
    return row


def _find_row_of_labels(rows: list[Any], n_labels: int) -> int | None:
    """Return the index of the first row that is not a list of n_labels zeros and ones."""
    for index, row in enumerate(rows):
        if not isinstance(row, list) or not _is_binary_row(row, n_labels):
            return index
    return None


def _is_binary_row(row: Any, n_labels: int) -> bool:
    return len(row) == n_labels and all(map(_is_binary, row))


def _is_binary(cell: Any) -> bool:
    return isinstance(cell, Real | np.bool_) and bool(cell == 0 or cell == 1)


def _read_table(Y: Any, labels: Sequence[Any]) -> np.ndarray:
    names = get_column_names(Y)
    if names is not None:
        order = _find_positions(names, labels, "The columns of Y", "columns")
        cells = []
        for position, label in zip(order, labels, strict=True):
            column = Y.iloc[:, position] if hasattr(Y, "iloc") else Y[names[position]]
            if hasattr(column, "to_pylist"):  # see `as_label_array`
                column = to_list(column)
            cells.append(_check_binary(np.asarray(column), f"column {label!r}, row"))
        return np.stack(cells, axis=1)
    values = Y.toarray() if issparse(Y) else np.asarray(as_numeric(Y, "Y"))
    if values.shape[1] != len(labels):
        raise ValueError(
            f"Y has {values.shape[1]} columns, and there are {len(labels)} labels: {_EXPECTED}, "
            "in the order of the labels."
        )
    return _check_binary(values, "row")


def get_column_names(Y: Any) -> list[Any] | None:
    """Return the names of the columns of a DataFrame, pyarrow table or structured array."""
    # In a pandas DataFrame `columns` are the names; in a pyarrow table they are the values.
    is_arrow = hasattr(Y, "column_names") and not hasattr(Y, "iloc")
    names = getattr(getattr(Y, "dtype", None), "names", None)
    if len(getattr(Y, "shape", ())) == 2:
        names = getattr(Y, "column_names" if is_arrow else "columns", names)
    return None if names is None else [to_builtin(name) for name in names]


def _find_positions(
    names: Sequence[Any], labels: Sequence[Any], subject: str, noun: str
) -> list[int]:
    """Return the position of each label among the names, which must be equal to the labels."""
    _check_distinct(names, f"{subject} are")
    position_of = {name: position for position, name in enumerate(names)}
    missing = [label for label in labels if label not in position_of]
    label_set = set(labels)
    unexpected = [name for name in names if name not in label_set]
    if missing or unexpected:
        differences = [
            f"{kind} {noun} [{format_list(values)}]"
            for kind, values in (("missing", missing), ("unexpected", unexpected))
            if values
        ]
        hint = describe_similar_label(unexpected[0], missing, "Y") if unexpected else ""
        hint = hint or (
            "Rename them to the labels, or pass an array without names whose columns are in the "
            "order of labels."
        )
        raise ValueError(f"{subject} do not match labels: {', '.join(differences)}. {hint}")
    return [position_of[label] for label in labels]


def _check_distinct(names: Iterable[Any], beginning: str) -> None:
    repeated = find_repeated(names)
    if repeated:
        raise ValueError(
            f"{beginning} {format_list(repeated)} more than once. Pass each label once. A table "
            "of zeros and ones is an array, or a list of lists."
        )


def _check_binary(values: np.ndarray, place: str) -> np.ndarray:
    """Return values as integers; raise ValueError unless all are 0 or 1."""
    if values.dtype.kind in "biuf":
        is_valid = (values == 0) | (values == 1)
    else:
        values = values.astype(object)
        is_valid = np.frompyfunc(_is_binary, 1, 1)(values).astype(bool)
    if not is_valid.all():
        first = tuple(np.argwhere(~is_valid)[0])
        row = f" {first[0]}" if place.endswith("row") else ""
        raise ValueError(f"Y has {to_builtin(values[first])!r} in {place}{row}: {_EXPECTED}.")
    return values.astype(int)


def _describe_unknown_label(
    label: Any, index: int, rows: list[Any], first_set: int, labels: Sequence[Any]
) -> str:
    message = f"Y has {label!r} in row {index}, which is not in labels: {format_list(labels)}."
    if isinstance(label, str) and (hint := describe_similar_label(label, labels, "Y")):
        message += f" {hint}"
    if label == "":
        message += " Pass an empty list for an image without labels."
    if _is_binary(label):
        message += (
            f" Y is not a table of zeros and ones because of row {first_set}, "
            f"{rows[first_set]!r}. Each row of a table must be a list of {len(labels)} zeros and "
            "ones."
        )
    return message


def _describe_unnamed_columns(n_columns: int) -> str:
    return (
        f"labels is None, and the {n_columns} columns of Y have no names. Pass labels, or pass Y "
        "as a DataFrame with the labels as columns."
    )


def find_best_f1_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold with the highest F1 score, between two neighbouring scores.

    If all samples are predicted as positive, it is just below the lowest score.

    >>> find_best_f1_threshold(np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 3.0, 4.0]))
    2.0
    """
    precision, recall, cuts = precision_recall_curve(truth, scores)
    # 1e-12 avoids a division by zero where precision and recall are 0.
    best = int(np.argmax(precision[:-1] * recall[:-1] / (precision[:-1] + recall[:-1] + 1e-12)))
    lower = scores[scores < cuts[best]]
    if len(lower):
        return float((cuts[best] + lower.max()) / 2)
    return float(np.nextafter(cuts[best], -np.inf))


def find_f1_thresholds(truth: np.ndarray, scores: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return a threshold for each label, or zeros if no label has a positive example.

    The best threshold of a label with few examples is mostly due to chance. With n positive
    examples and shrinkage k it is averaged, with weight n / (n + k), with the threshold that is
    best for all labels together.
    """
    n_labels = truth.shape[1]
    if not truth.any():
        return np.zeros(n_labels)
    common = find_best_f1_threshold(truth.ravel(), scores.ravel())
    n_positive = truth.sum(axis=0)
    best = np.full(n_labels, common)
    for label in np.flatnonzero(n_positive):
        best[label] = find_best_f1_threshold(truth[:, label], scores[:, label])
    # 1e-12 avoids 0 / 0 for a label without positive examples and shrinkage 0.
    weight = n_positive / np.maximum(n_positive + shrinkage, 1e-12)
    return weight * best + (1 - weight) * common


def check_prevalence(prevalence: Any) -> None:
    """Raise ValueError unless a ``prevalence`` parameter is a fraction or a mapping to some."""
    fractions = {"prevalence": prevalence}
    if isinstance(prevalence, Mapping):
        fractions = {f"prevalence[{label!r}]": value for label, value in prevalence.items()}
    elif hasattr(prevalence, "__len__") and not isinstance(prevalence, str):
        mapping = "prevalence.to_dict()"
        if not hasattr(prevalence, "to_dict"):
            mapping = "dict(zip(labels, prevalence))"
        raise ValueError(
            "prevalence must be a number in (0, 1), or a mapping from each label to such a "
            f"number, not {type(prevalence).__name__}. Pass {mapping}."
        )
    for name, fraction in fractions.items():
        check_number(fraction, name, 0, 1, closed="neither")


def find_default_thresholds(
    scores: np.ndarray, prevalence: float | Mapping[Any, float], labels: Sequence[Any]
) -> np.ndarray:
    """Return for each label the score that its fraction of the rows of `scores` exceeds.

    >>> find_default_thresholds(np.arange(5.0)[:, None], 0.25, ["cat"])
    array([3.])
    """
    if not isinstance(prevalence, Mapping):
        prevalence = dict.fromkeys(labels, prevalence)
    missing = [label for label in labels if label not in prevalence]
    if missing:
        raise ValueError(
            f"prevalence has no fraction for the labels {format_list(missing)}. Add them."
        )
    pairs = zip(scores.T, labels, strict=True)
    return np.array([np.quantile(column, 1 - prevalence[label]) for column, label in pairs])
