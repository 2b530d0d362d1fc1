"""Features that stay in files: lazy rows, memory maps and blocks of rows."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import gen_batches


def find_missing_rows(features: Any) -> np.ndarray:
    """Return which rows an encoder could not encode, as bools."""
    if not isinstance(features, StoredRows):
        return np.isnan(features[:, 0])
    return np.zeros(len(features), bool) if features.missing is None else features.missing


def find_memmap(array: Any) -> np.memmap | None:
    """Return the memory map that an array is, or is a view of, if any."""
    while isinstance(array, np.ndarray):
        # A copy in memory may be called a map, too.
        if isinstance(array, np.memmap) and array._mmap is not None:  # type: ignore[attr-defined]
            return array
        array = array.base
    return None


def release_pages(rows: Any) -> None:
    """Unmap rows of a memory map that have been read: they would count as memory in use.

    Parameters
    ----------
    rows : object
        A slice of a `numpy.memmap` or a view of one; of anything else nothing is done.
    """
    owner = find_memmap(rows)
    if owner is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    if owner.mode == "c":  # copy on write: what has been written would be lost
        return
    mapped = owner._mmap  # type: ignore[attr-defined]
    begin = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    first = rows.__array_interface__["data"][0] - begin
    extent = sum((n - 1) * step for n, step in zip(rows.shape, rows.strides, strict=True))
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError, ValueError):  # advice, no more
        mapped.madvise(mmap.MADV_DONTNEED, start, first + extent + rows.itemsize - start)


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
            release_pages(self.array)
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
            release_pages(self.array)
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
        and (features.dtype.itemsize == 2 or find_memmap(features) is not None)
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


# Arrays of this size stay near the processor, and the allocator hands them out again.
TILE_BYTES = 2**23


_FEWEST_ROWS = 16


def row_tiles(n_rows: int, width: int) -> Iterator[slice]:
    """Return slices of rows, few enough for float32 arrays of a width to be small.

    Parameters
    ----------
    n_rows : int
        How many there are; of none comes one empty tile.
    width : int
        Numbers a row in the widest array made of it.
    """
    size = max(_FEWEST_ROWS, TILE_BYTES // (4 * max(width, 1)))
    return gen_batches(n_rows, size) if n_rows else iter([slice(0, 0)])


def is_table(X: Any) -> bool:
    """Say whether X is rows of numbers that can be sliced, rather than images or lists."""
    if getattr(X, "ndim", 0) != 2:
        return False
    if issparse(X):
        return X.format == "csr"
    return hasattr(X, "iloc") or getattr(getattr(X, "dtype", None), "kind", "") in set("fiub")


def feature_tiles(
    X: Any, width: int, embed: Callable[[Any], Any]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of a table and their embeddings.

    Parameters
    ----------
    X : table
        See `is_table`.
    width : int
        Numbers a row in the widest array made of it, X aside.
    embed : callable
        Takes some rows of X.

    Raises
    ------
    ValueError
        As `embed` does; the message says in which rows.
    """
    n_rows = X.shape[0]
    for rows in row_tiles(n_rows, max(width, X.shape[1])):
        if rows == slice(0, n_rows):
            yield rows, np.asarray(embed(X))
            return
        some = X.iloc[rows] if hasattr(X, "iloc") else X[rows]
        try:
            embeddings = np.asarray(embed(some))
        except ValueError as error:
            if type(error) is not ValueError or not rows.start:
                raise
            raise ValueError(
                f"In rows {rows.start} to {rows.stop - 1} of X, counted from the first of these: "
                f"{error}"
            ) from error
        yield rows, embeddings
        release_pages(some)
