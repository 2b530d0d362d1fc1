"""Features that stay where they are, on disk or in half precision, and are read by rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import gen_batches

from ..features._maps import forget, map_of

# Below this, a copy in memory is cheaper than reading again and again.
_LEAST_BYTES = 2**27
_ROWS_AT_ONCE = 4096
# With a row of a map come its neighbours, up to 2 MiB of them.
_ROWS_MAPPED = 32


class StoredRows:
    """Rows of an array of features, read and made float32 when they are asked for.

    Parameters
    ----------
    array : ndarray of shape (n_stored, n_features)
        Of floats of any size, such as a memory map.
    rows : ndarray of int or None, default=None
        Which rows of it, in order; None is all of them.
    more : ndarray of shape (n_more, n_features) or None, default=None
        In memory. Its rows are numbered from ``len(array)``.
    missing : ndarray of bool of shape (n_rows,) or None, default=None
        Which of the rows are all NaN; None if none is.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import StoredRows
    >>> features = StoredRows(np.eye(4, dtype=np.float16))
    >>> features[np.array([2, 0])]
    array([[0., 0., 1., 0.],
           [1., 0., 0., 0.]], dtype=float32)
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        array: np.ndarray,
        rows: np.ndarray | None = None,
        more: np.ndarray | None = None,
        missing: np.ndarray | None = None,
    ) -> None:
        self.array = array
        self.more = more
        self.rows = np.arange(len(array)) if rows is None and more is not None else rows
        self.missing = missing

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return len(self), self.array.shape[1]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a float32 copy of some rows, given as a slice or as an array of int."""
        if self.rows is not None:
            return self._read(self.rows[index])
        if isinstance(index, slice):
            rows = np.array(self.array[index])
            forget(self.array)
            return _float32(rows)
        return self._read(np.asarray(index))

    def _read(self, ids: np.ndarray) -> np.ndarray:
        # In the order of the disk: it reads several neighbours for the price of one.
        order = np.argsort(ids, kind="stable")
        n_stored = len(ids) if self.more is None else int((ids < len(self.array)).sum())
        stored, others = order[:n_stored], order[n_stored:]
        as_stored = np.empty((len(ids), self.array.shape[1]), dtype=self.array.dtype)
        for start in range(0, n_stored, _ROWS_MAPPED):
            some = stored[start : start + _ROWS_MAPPED]
            as_stored[some] = np.take(self.array, ids[some], axis=0)
            forget(self.array)
        found = _float32(as_stored)
        if self.more is not None:
            found[others] = self.more[ids[others] - len(self.array)]
        return found

    def select(self, rows: np.ndarray) -> StoredRows | np.ndarray:
        """Return some rows as features of their own: in memory if they are few.

        Parameters
        ----------
        rows : ndarray of int
            Which, in order.

        Returns
        -------
        features : StoredRows or ndarray of shape (len(rows), n_features)
            Nothing is read of a `StoredRows`.
        """
        if not _is_large(len(rows), self.array.shape[1]):
            return self[rows]
        missing = None if self.missing is None else self.missing[rows]
        ids = rows if self.rows is None else self.rows[rows]
        return StoredRows(self.array, ids, self.more, missing)

    def append(self, rows: np.ndarray) -> StoredRows:
        """Return these features with a few more, in memory, behind them.

        Parameters
        ----------
        rows : ndarray of shape (n_more, n_features)
            Finite.

        Returns
        -------
        features : StoredRows
            Of the rows of both.
        """
        before = np.empty((0, self.shape[1]), np.float32) if self.more is None else self.more
        old = np.arange(len(self.array)) if self.rows is None else self.rows
        first = len(self.array) + len(before)
        missing = None
        if self.missing is not None:
            missing = np.concatenate([self.missing, np.zeros(len(rows), dtype=bool)])
        return StoredRows(
            self.array,
            np.concatenate([old, first + np.arange(len(rows))]),
            np.concatenate([before, rows.astype(np.float32)]),
            missing,
        )


def stays_stored(features: Any) -> bool:
    """Say whether features are read by rows instead of being copied to memory.

    Parameters
    ----------
    features : object
        What was passed as X or y.

    Returns
    -------
    stays : bool
        True of a memory map of floats, or an array of float16, that would take more than
        128 MiB as float32.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import stays_stored
    >>> stays_stored(np.zeros((10, 4), dtype=np.float32))
    False
    """
    return (
        isinstance(features, np.ndarray)
        and features.ndim == 2
        and features.dtype.kind == "f"
        and (features.dtype.itemsize == 2 or map_of(features) is not None)
        and _is_large(*features.shape)
    )


def row_blocks(features: Any) -> Iterator[slice]:
    """Return slices that are to be read one after the other.

    Parameters
    ----------
    features : StoredRows or array of shape (n_rows, n_features)
        An array that is in memory already is one block.

    Returns
    -------
    blocks : iterator of slice
        Of up to 4,096 rows each.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import row_blocks
    >>> list(row_blocks(np.zeros((10, 4))))
    [slice(0, 10, None)]
    """
    n_rows = len(features)
    size = _ROWS_AT_ONCE if isinstance(features, StoredRows) else max(n_rows, 1)
    return gen_batches(max(n_rows, 1), size)


def select(features: Any, rows: np.ndarray) -> Any:
    """Return some rows of features, of the kind that the features are.

    Parameters
    ----------
    features : StoredRows, ndarray or torch.Tensor of shape (n, n_features)
        What to choose from.
    rows : ndarray of int
        Which, in order.

    Returns
    -------
    features : StoredRows, ndarray or torch.Tensor of shape (len(rows), n_features)
        See `StoredRows.select`; a copy of other kinds.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import select
    >>> select(np.array([[1, 2], [3, 4], [5, 6]]), np.array([2, 0]))
    array([[5, 6],
           [1, 2]])
    """
    return features.select(rows) if isinstance(features, StoredRows) else features[rows]


def _float32(rows: np.ndarray) -> np.ndarray:
    """Return float32 numbers of an array that is nobody else's."""
    if rows.dtype == np.float16:  # which torch converts many times as fast as NumPy
        return torch.from_numpy(rows).float().numpy()
    return rows.astype(np.float32, copy=False)


def _is_large(n_rows: int, n_features: int) -> bool:
    return 4 * n_rows * n_features > _LEAST_BYTES
