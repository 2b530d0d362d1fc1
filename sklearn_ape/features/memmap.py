"""Lazy rows of features in files, memory maps, and blocks of rows."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import gen_batches

# Smaller arrays are copied to memory, which is faster than reading the file repeatedly.
_MIN_STORED_BYTES = 2**27
_BLOCK_SIZE = 4096
# Reading one row maps up to 2 MiB of its neighbours, so pages are released after this many rows.
_ROWS_PER_RELEASE = 32

# Arrays of this size fit into the processor's cache, and the allocator reuses their memory.
TILE_BYTES = 2**23
_MIN_TILE_ROWS = 16


def find_missing_rows(features: Any) -> np.ndarray:
    """Return a boolean mask of the rows of NaN, which an encoder failed to encode."""
    return features.missing if isinstance(features, StoredRows) else np.isnan(features[:, 0])


def find_memmap(array: Any) -> np.memmap | None:
    """Return the memory map that an array is or is a view of, or None."""
    while isinstance(array, np.ndarray):
        # A copy of a memory map in memory has the class memmap as well.
        if isinstance(array, np.memmap) and array._mmap is not None:  # type: ignore[attr-defined]
            return array
        array = array.base
    return None


def release_pages(rows: Any) -> None:
    """Drop pages of a memory map that have been read, which would count as used memory.

    Anything but a slice or view of a `numpy.memmap` is ignored.
    """
    owner = find_memmap(rows)
    if owner is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    if owner.mode == "c":  # copy on write: changes would be lost
        return
    memory_map = owner._mmap  # type: ignore[attr-defined]
    address = np.frombuffer(memory_map, np.uint8).__array_interface__["data"][0]
    first = rows.__array_interface__["data"][0] - address
    extent = sum((n - 1) * step for n, step in zip(rows.shape, rows.strides, strict=True))
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError, ValueError):  # only an advice to the kernel
        memory_map.madvise(mmap.MADV_DONTNEED, start, first + extent + rows.itemsize - start)


class StoredRows:
    """Rows of features that are read, and converted to float32, when they are indexed.

    `array` is usually a memory map, of any floating-point type. `rows` are the indices of the
    selected rows, in order. Indices from ``len(array)`` are those of `more`, which is in memory.
    `missing` is a mask of the rows that are all NaN; None means that there are none.

    >>> StoredRows(np.eye(4, dtype=np.float16))[np.array([2, 0])]
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
        self.rows = rows
        self.more = more
        self.missing = np.zeros(len(self), dtype=bool) if missing is None else missing

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and number of features."""
        return len(self), self.array.shape[1]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a float32 copy of the rows of a slice or an array of int."""
        if self.rows is not None:
            return self._read(self.rows[index])
        if isinstance(index, slice):
            rows = np.array(self.array[index])
            release_pages(self.array)
            return _to_float32(rows)
        return self._read(np.asarray(index))

    def _read(self, indices: np.ndarray) -> np.ndarray:
        # In the order of the file, as neighbouring rows are read together.
        order = np.argsort(indices)
        n_stored = np.count_nonzero(indices < len(self.array))
        stored, in_memory = order[:n_stored], order[n_stored:]
        block = np.empty((len(indices), self.array.shape[1]), dtype=self.array.dtype)
        for start in range(0, n_stored, _ROWS_PER_RELEASE):
            positions = stored[start : start + _ROWS_PER_RELEASE]
            block[positions] = np.take(self.array, indices[positions], axis=0)
            release_pages(self.array)
        features = _to_float32(block)
        if self.more is not None:
            features[in_memory] = self.more[indices[in_memory] - len(self.array)]
        return features

    def select(self, rows: np.ndarray) -> StoredRows | np.ndarray:
        """Return a subset of the rows: lazy rows if it is large, else an array."""
        if not _is_large(len(rows), self.array.shape[1]):
            return self[rows]
        indices = rows if self.rows is None else self.rows[rows]
        return StoredRows(self.array, indices, self.more, self.missing[rows])

    def append(self, rows: np.ndarray) -> StoredRows:
        """Return these rows followed by further, finite rows, which are kept in memory."""
        more = rows.astype(np.float32)
        if self.more is not None:
            more = np.concatenate([self.more, more])
        indices = np.arange(len(self.array)) if self.rows is None else self.rows
        end = len(self.array) + len(more)
        indices = np.concatenate([indices, np.arange(end - len(rows), end)])
        return StoredRows(self.array, indices, more, np.pad(self.missing, (0, len(rows))))


def stays_stored(features: Any) -> bool:
    """Return whether features are read in blocks instead of being copied to memory.

    These are memory maps of floating-point numbers, and arrays of float16, that would take more
    than 128 MiB as float32.

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
    """Return slices of at most 4,096 rows, or a single slice for an array, which is in memory.

    >>> list(row_blocks(np.zeros((10, 4))))
    [slice(0, 10, None)]
    """
    n_rows = len(features)
    size = _BLOCK_SIZE if isinstance(features, StoredRows) else max(n_rows, 1)
    return gen_batches(max(n_rows, 1), size)


def select(features: Any, rows: np.ndarray) -> Any:
    """Return a subset of the rows of features, in order, as an object of the same type.

    >>> select(np.array([[1, 2], [3, 4], [5, 6]]), np.array([2, 0]))
    array([[5, 6],
           [1, 2]])
    """
    return features.select(rows) if isinstance(features, StoredRows) else features[rows]


def _to_float32(rows: np.ndarray) -> np.ndarray:
    """Convert an array, which may be reused, to float32."""
    if rows.dtype == np.float16:  # torch converts these many times faster than NumPy
        return torch.from_numpy(rows).float().numpy()
    return np.asarray(rows, np.float32)


def _is_large(n_rows: int, n_features: int) -> bool:
    return 4 * n_rows * n_features > _MIN_STORED_BYTES


def iter_row_tiles(n_rows: int, width: int) -> Iterator[slice]:
    """Return slices of rows for which float32 arrays of a width have about 8 MiB, at least one."""
    size = max(_MIN_TILE_ROWS, TILE_BYTES // (4 * max(width, 1)))
    return gen_batches(n_rows, size) if n_rows else iter([slice(0, 0)])


def is_table(X: Any) -> bool:
    """Return whether X is a two-dimensional table of numbers that can be sliced by rows."""
    if getattr(X, "ndim", 0) != 2:
        return False
    if issparse(X):
        return X.format == "csr"
    return hasattr(X, "iloc") or getattr(getattr(X, "dtype", None), "kind", "") in set("fiub")


def iter_feature_tiles(
    X: Any, width: int, embed: Callable[[Any], Any]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Embed the rows of an array or a data frame in tiles, computing arrays of at most `width`.

    Errors of `embed` are raised with the rows of the tile.
    """
    n_rows = X.shape[0]
    for rows in iter_row_tiles(n_rows, max(width, X.shape[1])):
        if rows == slice(0, n_rows):
            yield rows, np.asarray(embed(X))
            return
        tile = X.iloc[rows] if hasattr(X, "iloc") else X[rows]
        try:
            embeddings = np.asarray(embed(tile))
        except ValueError as error:
            if type(error) is not ValueError or not rows.start:
                raise
            raise ValueError(
                f"In rows {rows.start} to {rows.stop - 1} of X (row numbers below are relative to "
                f"row {rows.start}): {error}"
            ) from error
        yield rows, embeddings
        release_pages(tile)
