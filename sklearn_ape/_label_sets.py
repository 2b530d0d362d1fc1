"""Several labels a picture: what a ``Y`` may be, as a table of zeros and ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import issparse

from ._first_few import first_few

_EXPECTED = (
    "expected a table of zeros and ones with a column for each label, or a list of the labels of "
    "every picture"
)


def is_table_of_labels(Y: Any) -> bool:
    """Say whether Y has two dimensions, rather than being lists of labels."""
    return len(getattr(Y, "shape", ())) == 2


def labels_in(Y: Any) -> list[Any]:
    """Return the labels that Y speaks of: a table's columns, else the distinct ones, sorted.

    Raises
    ------
    ValueError
        When Y is a table without names.
    """
    if Y is None:
        raise ValueError(f"Y is None: {_EXPECTED}.")
    if is_table_of_labels(Y):
        columns = getattr(Y, "columns", None)
        if columns is None:
            raise ValueError(
                f"labels is None, and the {Y.shape[1]} columns of Y have no names: pass labels, "
                "or Y as a DataFrame whose columns are named by them."
            )
        return list(columns)
    return sorted({label for row in _rows(Y) for label in row})


def indicator(Y: Any, labels: Sequence[Any]) -> np.ndarray:
    """Return Y as zeros and ones, with columns in the order of labels.

    Parameters
    ----------
    Y : array, sparse matrix or DataFrame of shape (n_samples, n_labels), or list of label sets
        A DataFrame's columns are matched by their names.
    labels : sequence of length n_labels
        What the columns stand for.

    Returns
    -------
    table : ndarray of shape (n_samples, n_labels) and dtype int

    Raises
    ------
    ValueError
        When Y does not fit; the message names the row or the column.
    """
    if Y is None:
        raise ValueError(f"Y is None: {_EXPECTED}.")
    if is_table_of_labels(Y):
        return _from_table(Y, labels)
    place = {label: column for column, label in enumerate(labels)}
    rows = _rows(Y)
    table = np.zeros((len(rows), len(place)), dtype=int)
    for number, row in enumerate(rows):
        for label in row:
            if label not in place:
                raise ValueError(
                    f"Y has {label!r} in row {number}, which is none of the labels "
                    f"{first_few(labels)}."
                )
            table[number, place[label]] = 1
    return table


def _from_table(Y: Any, labels: Sequence[Any]) -> np.ndarray:
    columns = getattr(Y, "columns", None)
    if columns is not None and not all(isinstance(name, int | np.integer) for name in columns):
        absent = [label for label in labels if label not in set(columns)]
        extra = [name for name in columns if name not in set(labels)]
        if absent or extra:
            raise ValueError(
                f"The columns of Y are not the labels: without a column {absent[:5]}, and no "
                f"labels {extra[:5]}."
            )
        Y = Y[list(labels)]
    values = Y.toarray() if issparse(Y) else np.asarray(Y)
    if values.shape[1] != len(labels):
        raise ValueError(
            f"Y has {values.shape[1]} columns, and there are {len(labels)} labels: {_EXPECTED}, "
            "in their order."
        )
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"Y has {values[row, column]!r} in row {row}: {_EXPECTED}.")
    return values.astype(int)


def _rows(Y: Any) -> list[Any]:
    rows = Y.to_pylist() if hasattr(Y, "to_pylist") else list(Y)
    for number, row in enumerate(rows):
        if isinstance(row, str) or not hasattr(row, "__iter__"):
            raise ValueError(
                f"Y has {row!r} in row {number}: {_EXPECTED} (of one label, too: ['cat'])."
            )
    return rows
