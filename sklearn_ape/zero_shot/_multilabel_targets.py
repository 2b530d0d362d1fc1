"""Targets of multi-label classification: label sets, indicator matrices and thresholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.metrics import precision_recall_curve

from ..prompts import plain_label
from ..utils.validation import as_numeric, format_list

_EXPECTED = (
    "expected a table of zeros and ones with a column for each label, or a list of the labels of "
    "every image"
)


def as_table_or_rows(Y: Any) -> Any:
    """Return Y in a form that can be read several times.

    Parameters
    ----------
    Y : array, sparse matrix, DataFrame, or iterable of rows
        What the caller passed as targets.

    Returns
    -------
    Y : array, sparse matrix, DataFrame or list
        A table unchanged; anything else as a list of rows. A row is a dict (names and zeros or
        ones), a list (zeros and ones, or labels), or a tuple, set or frozenset (labels).

    Raises
    ------
    ValueError
        When Y or one of its rows cannot be a target; the message names the row.
    """
    if Y is None:
        raise ValueError(f"Y is None: {_EXPECTED}.")
    if _column_names(Y) is not None or len(getattr(Y, "shape", ())) == 2:
        return Y
    if hasattr(Y, "__array__") and not isinstance(Y, Iterable):
        return as_table_or_rows(np.asarray(Y))
    if isinstance(Y, str | bytes | Mapping) or not isinstance(Y, Iterable):
        raise ValueError(f"Y is of type {type(Y).__name__}: {_EXPECTED}.")
    for method in ("to_pylist", "to_list"):  # pyarrow; pandas and polars
        if hasattr(Y, method):
            Y = getattr(Y, method)()
    if getattr(Y, "shape", None) == ():
        raise ValueError(f"Y is an array without dimensions: {_EXPECTED}.")
    return [_as_row(row, number) for number, row in enumerate(Y)]


def labels_in(Y: Any) -> list[Any]:
    """Return the labels that Y contains.

    Parameters
    ----------
    Y : array, sparse matrix, DataFrame or list of rows
        What `as_table_or_rows` returns.

    Returns
    -------
    labels : list
        The columns of a DataFrame or the keys of dicts in their order, otherwise the distinct
        labels, sorted.

    Raises
    ------
    ValueError
        When Y is a table whose columns have no names, or the labels cannot be sorted.
    """
    rows = as_table_or_rows(Y)
    if not isinstance(rows, list):
        names = _column_names(rows)
        if names is None:
            raise ValueError(_no_names(rows.shape[1]))
        _refuse_repeated(names, "Y has the columns")
        return names
    if rows and _first_row_of_labels(rows, len(rows[0])) is None:
        raise ValueError(_no_names(len(rows[0])))
    labels = list(dict.fromkeys(label for row in rows for label in row))
    if rows and all(isinstance(row, dict) for row in rows):
        return labels
    try:
        return sorted(labels)
    except TypeError:
        raise ValueError(
            f"The labels in Y cannot be sorted: {format_list(labels)}. Use texts alone or numbers "
            "alone, without missing values, or pass labels."
        ) from None


def indicator(Y: Any, labels: Sequence[Any]) -> np.ndarray:
    """Return Y as zeros and ones, with columns in the order of labels.

    Parameters
    ----------
    Y : array, sparse matrix, DataFrame, or iterable of rows
        Columns of a DataFrame and keys of dicts are matched with labels by Python's equality, so
        that 1, 1.0 and True are the same name and "1" is another. Other tables are read by
        position. Rows that are all lists (or arrays) of ``len(labels)`` zeros and ones are a
        table as well, also where 0 and 1 are labels. Other rows are sets of labels, as are
        tuples, sets and frozensets always.
    labels : sequence of length n_labels
        Labels of the columns.

    Returns
    -------
    table : ndarray of shape (n_samples, n_labels) and dtype int
        Zeros and ones.

    Raises
    ------
    ValueError
        When Y does not fit; the message names the row or the column.
    """
    rows = as_table_or_rows(Y)
    if not isinstance(rows, list):
        return _from_table(rows, labels)
    first_set = _first_row_of_labels(rows, len(labels))
    if first_set is None:
        return np.array(rows, dtype=object).astype(int).reshape(-1, len(labels))
    place = {label: column for column, label in enumerate(labels)}
    table = np.zeros((len(rows), len(labels)), dtype=int)
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            order = _positions(list(row), labels, f"The keys of row {number} of Y", "keys")
            cells = np.empty(len(row), dtype=object)
            cells[:] = list(row.values())
            table[number] = _zeros_and_ones(cells[order], f"row {number}")
            continue
        if not isinstance(row, set | frozenset) and _is_binary_row(row, len(labels)):
            # A set of labels of this length has each label once, a table row has not.
            _refuse_repeated(row, f"Row {number} of Y is a set of labels, and has")
        for label in row:
            if label not in place:
                raise ValueError(_unknown_label(label, number, rows, first_set, labels))
            table[number, place[label]] = 1
    return table


def _as_row(row: Any, number: int) -> Any:
    """Return a row as a dict, list, tuple, set or frozenset of hashable values."""
    if hasattr(row, "_asdict"):  # namedtuple
        row = row._asdict()
    if isinstance(row, Mapping):
        return dict(row)
    if hasattr(row, "iloc") and list(row.index) != list(range(len(row))):
        raise ValueError(
            f"Row {number} of Y is a {type(row).__name__} whose index is not 0, 1, ... Pass a "
            "DataFrame to match columns by name, or row.tolist() for each row."
        )
    for method in ("tolist", "to_list"):  # numpy, pandas and torch; polars
        if hasattr(row, method):
            row = getattr(row, method)()
    if isinstance(row, str | bytes | bytearray) or not isinstance(row, Iterable):
        raise ValueError(
            f"Y has {row!r} in row {number}: {_EXPECTED} (also where it is one label: ['cat'])."
        )
    if not isinstance(row, list | tuple | set | frozenset):
        row = tuple(row)
    try:
        hash(tuple(row))
    except TypeError:
        raise ValueError(f"Y has {row!r} in row {number}: {_EXPECTED}.") from None
    return row


def _first_row_of_labels(rows: list[Any], n_labels: int) -> int | None:
    """Return the number of the first row that is not a list of n_labels zeros and ones."""
    for number, row in enumerate(rows):
        if not isinstance(row, list) or not _is_binary_row(row, n_labels):
            return number
    return None


def _is_binary_row(row: Any, n_labels: int) -> bool:
    return len(row) == n_labels and all(map(_is_binary, row))


def _is_binary(cell: Any) -> bool:
    return isinstance(cell, Real | np.bool_) and bool(cell == 0 or cell == 1)


def _from_table(Y: Any, labels: Sequence[Any]) -> np.ndarray:
    names = _column_names(Y)
    if names is not None:
        order = _positions(names, labels, "The columns of Y", "columns")
        columns = [Y.iloc[:, at] if hasattr(Y, "iloc") else Y[names[at]] for at in order]
        cells = [
            _zeros_and_ones(np.asarray(column), f"column {label!r}, row")
            for column, label in zip(columns, labels, strict=True)
        ]
        return np.stack(cells, axis=1)
    values = Y.toarray() if issparse(Y) else np.asarray(as_numeric(Y, "Y"))
    if values.shape[1] != len(labels):
        raise ValueError(
            f"Y has {values.shape[1]} columns, and there are {len(labels)} labels: {_EXPECTED}, "
            "in their order."
        )
    return _zeros_and_ones(values, "row")


def _column_names(Y: Any) -> list[Any] | None:
    """Return the names of the columns of a DataFrame, pyarrow table or structured array."""
    # A pandas DataFrame has its columns as attributes; .columns of a pyarrow table are values.
    attribute = (
        "columns" if hasattr(Y, "iloc") or not hasattr(Y, "column_names") else "column_names"
    )
    names = getattr(getattr(Y, "dtype", None), "names", None)
    if len(getattr(Y, "shape", ())) == 2:
        names = getattr(Y, attribute, names)
    return None if names is None else [plain_label(name) for name in names]


def _positions(names: Sequence[Any], labels: Sequence[Any], which: str, noun: str) -> list[int]:
    """Return where each label is among the names, which must be the labels in any order."""
    _refuse_repeated(names, f"{which} are")
    place = {name: position for position, name in enumerate(names)}
    missing = [label for label in labels if label not in place]
    known = set(labels)
    unexpected = [name for name in names if name not in known]
    if missing or unexpected:
        differences = [
            f"{kind} {noun} [{format_list(values)}]"
            for kind, values in (("missing", missing), ("unexpected", unexpected))
            if values
        ]
        raise ValueError(
            f"{which} do not match labels: {', '.join(differences)}. Rename them to the labels, "
            "or pass an array without names whose columns are in the order of labels."
        )
    return [place[label] for label in labels]


def _refuse_repeated(names: Iterable[Any], beginning: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{beginning} {format_list(repeated)} more than once. Give every label once; a table "
            "of zeros and ones is an array, or a list of lists."
        )


def _zeros_and_ones(values: np.ndarray, place: str) -> np.ndarray:
    """Return values as integers, refusing all but zeros and ones."""
    if values.dtype.kind in "biuf":
        binary = (values == 0) | (values == 1)
    else:
        values = values.astype(object)
        binary = np.frompyfunc(_is_binary, 1, 1)(values).astype(bool)
    if not binary.all():
        at = tuple(np.argwhere(~binary)[0])
        row = f" {at[0]}" if place.endswith("row") else ""
        raise ValueError(f"Y has {plain_label(values[at])!r} in {place}{row}: {_EXPECTED}.")
    return values.astype(int)


def _unknown_label(
    label: Any, number: int, rows: list[Any], first_set: int, labels: Sequence[Any]
) -> str:
    message = (
        f"Y has {label!r} in row {number}, which is none of the labels {format_list(labels)}."
    )
    if _is_binary(label):
        message += (
            f" Y is not a table of zeros and ones because of row {first_set}, "
            f"{rows[first_set]!r}: every row must be a list of {len(labels)} zeros and ones."
        )
    return message


def _no_names(n_columns: int) -> str:
    return (
        f"labels is None, and the {n_columns} columns of Y have no names. Pass labels, or Y as a "
        "DataFrame whose columns are named by them."
    )


def best_f1_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the score above which calling positives has the highest F1.

    Parameters
    ----------
    truth : ndarray of shape (n,)
        Zeros and ones, with at least one of the latter.
    scores : ndarray of shape (n,)
        Finite.

    Returns
    -------
    threshold : float
        Halfway between the two neighbouring scores; below the lowest if all are called.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.zero_shot._multilabel_targets import best_f1_threshold
    >>> best_f1_threshold(np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 3.0, 4.0]))
    2.0
    """
    precision, recall, cuts = precision_recall_curve(truth, scores)
    best = int(np.argmax(precision[:-1] * recall[:-1] / (precision[:-1] + recall[:-1] + 1e-12)))
    below = scores[scores < cuts[best]]
    if len(below):
        return float((cuts[best] + below.max()) / 2)
    return float(np.nextafter(cuts[best], -np.inf))


def fit_thresholds(truth: np.ndarray, scores: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return a threshold for each label.

    A label's own best threshold of few examples is mostly luck. With n positives and the
    shrinkage k, n / (n + k) of it is its own best one, and the rest the one that is best for all
    labels together.

    Parameters
    ----------
    truth : ndarray of shape (n, n_labels)
        Zeros and ones.
    scores : ndarray of shape (n, n_labels)
        Finite, and comparable between labels.
    shrinkage : float
        In positives.

    Returns
    -------
    thresholds : ndarray of shape (n_labels,)
        0 where nothing is known: no label has a positive.
    """
    n_labels = truth.shape[1]
    if not truth.any():
        return np.zeros(n_labels)
    common = best_f1_threshold(truth.ravel(), scores.ravel())
    n_positive = truth.sum(axis=0)
    own = np.full(n_labels, common)
    for label in np.flatnonzero(n_positive):
        own[label] = best_f1_threshold(truth[:, label], scores[:, label])
    weight = n_positive / np.maximum(n_positive + shrinkage, 1e-12)
    return weight * own + (1 - weight) * common


def shares_of(prevalence: float | Mapping[Any, float], labels: Sequence[Any]) -> list[float]:
    """Return the share of images that each label is to hold for."""
    if not isinstance(prevalence, Mapping):
        return [prevalence] * len(labels)
    absent = [label for label in labels if label not in prevalence]
    if absent:
        raise ValueError(f"prevalence has no share for the labels [{format_list(absent)}].")
    return [prevalence[label] for label in labels]


def check_prevalence(prevalence: Any) -> None:
    """Refuse what are no shares."""
    shares = prevalence.values() if isinstance(prevalence, Mapping) else [prevalence]
    for share in shares:
        if not isinstance(share, float | np.floating) or not 0 < share < 1:
            raise ValueError(f"prevalence must be above 0 and below 1, not {share!r}.")
