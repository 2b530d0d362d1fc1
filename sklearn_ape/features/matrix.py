"""Matrices of features: lazy rows of files, blocks of rows, and checks of the values."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import gen_batches

from ..devices import default_state
from ..utils.linalg import choose_evenly_spaced
from ..utils.messages import warn
from ..utils.validation import describe_rows, format_list, ignores_underflow

# Smaller arrays are copied to memory, which is faster than reading the file repeatedly.
_MIN_STORED_BYTES = 2**27
_BLOCK_SIZE = 4096
# Reading one row maps up to 2 MiB of its neighbours, so pages are released after this many rows.
_ROWS_PER_RELEASE = 32

# Arrays of this size fit into the processor's cache, and the allocator reuses their memory.
TILE_BYTES = 2**23
MIN_TILE_ROWS = 16

_FLOAT32 = np.finfo(np.float32)
# A row that is larger than the median row by this factor dominates all means and variances.
_OUTLIER_RATIO = 1e6
# Float32 has seven digits. If rows differ by less than this fraction of their norm, at most three
# of the digits describe the differences.
_MIN_RELATIVE_SPREAD = 1e-4
# If one feature varies this much more than most others, cosines measure this feature alone.
# Those of EfficientNet-Lite0 vary 2 to 5 times as much as the median in 13 collections.
_MAX_SCALE_RATIO = 1e3


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
        with default_state():  # which a forked process needs
            return torch.from_numpy(rows).float().numpy()
    return np.asarray(rows, np.float32)


def _is_large(n_rows: int, n_features: int) -> bool:
    return 4 * n_rows * n_features > _MIN_STORED_BYTES


def iter_row_tiles(n_rows: int, width: int) -> Iterator[slice]:
    """Return slices of rows for which float32 arrays of a width have about 8 MiB, at least one."""
    size = max(MIN_TILE_ROWS, TILE_BYTES // (4 * max(width, 1)))
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


def as_float32(
    features: np.ndarray, name: str, check_conditioning: bool, allow_nan: bool = False
) -> np.ndarray:
    """Convert features of `as_floats` to float32 and raise ValueError for invalid values.

    Invalid are infinity, values that are too large or too small for float32 and, unless
    `allow_nan`, rows that are NaN in part. Rows that are all NaN are valid. `check_conditioning`
    also warns about features from which a model learns little.
    """
    if features.dtype == np.float16:  # NumPy is slow with float16
        features = features.astype(np.float32)
    if features.dtype == np.float32 and not check_conditioning and _is_finite(features):
        return np.ascontiguousarray(features)
    largest = _find_largest_per_row(features)
    _check_range(largest, features.dtype, name)
    converted = np.ascontiguousarray(features, dtype=np.float32)
    if not allow_nan:
        partial_rows = np.flatnonzero(_is_partially_nan(converted))
        if partial_rows.size:
            raise ValueError(_format_nan_error(name, partial_rows))
    if check_conditioning:
        _check_conditioning(features, largest, name)
    return converted


def _is_finite(features: np.ndarray) -> bool:
    """Return whether all values are finite; may be False if they are huge."""
    with np.errstate(over="ignore", invalid="ignore"):
        # Infinities of both signs add up to NaN, so a finite sum means that all are finite.
        return bool(np.isfinite(features.sum()))


def _find_largest_per_row(features: np.ndarray) -> np.ndarray:
    """Return the largest absolute value of each row, or NaN for rows with NaN."""
    largest = np.empty(len(features))
    with np.errstate(invalid="ignore"):
        for rows in gen_batches(len(features), _BLOCK_SIZE):
            block = features[rows]
            largest[rows] = np.maximum(block.max(axis=1), -block.min(axis=1))
    return largest


def _check_range(largest: np.ndarray, dtype: np.dtype, name: str) -> None:
    too_large = np.flatnonzero(largest > _FLOAT32.max)
    if too_large.size:
        raise ValueError(
            f"Input {name} contains infinity or a value too large for float32 in "
            f"{describe_rows(too_large)}. Remove such rows, or multiply all features by a small "
            "number."
        )
    too_small = np.flatnonzero((largest > 0) & (largest < _FLOAT32.tiny))
    if too_small.size and dtype == np.float64:
        raise ValueError(
            f"Input {name} has {describe_rows(too_small)} with only values below 1e-38, which are "
            "too small for float32. Multiply all features by a large number."
        )


def _check_conditioning(features: np.ndarray, largest: np.ndarray, name: str) -> None:
    """Warn about outliers, and warn or raise if rows differ too little for float32."""
    nonzero = largest[largest > 0]
    if not nonzero.size:
        return
    median = float(np.median(nonzero))
    outliers = np.flatnonzero(largest > _OUTLIER_RATIO * median)
    if outliers.size:
        warn(
            f"Input {name} has values up to {nonzero.max():.0e} in {describe_rows(outliers)}, and "
            f"up to {median:.0e} in most rows. Such rows will dominate all means and variances. "
            "Remove them, or L2-normalize all rows."
        )
    sample = features[choose_evenly_spaced(len(features))].astype(np.float64)
    sample = sample[~np.isnan(sample).any(axis=1)]
    if len(sample) < 2 or not np.ptp(sample, axis=0).any():
        return
    _check_scales(sample, name)
    mean = sample.mean(axis=0)
    spread = float(np.linalg.norm(sample - mean) / np.linalg.norm(sample))
    if spread >= _MIN_RELATIVE_SPREAD:
        return
    details = (
        f"(relative spread {spread:.0e}, dominated by feature {int(np.abs(mean).argmax())}). "
        f"Subtract the mean of the training set from the features: {name} - {name}.mean(axis=0)."
    )
    if spread < _FLOAT32.eps and (sample != sample.astype(np.float32)).any():
        raise ValueError(f"The differences between rows of {name} are lost in float32 {details}")
    warn(f"The differences between rows of {name} are almost too small for float32 {details}")


def _check_scales(sample: np.ndarray, name: str) -> None:
    """Warn if one feature varies so much more than the others that it dominates all cosines."""
    # Without the tails, so that a single large row, which is reported as such, does not count.
    low, high = np.percentile(sample, [10, 90], axis=0)
    widths = high - low
    if not widths.any():
        return
    ratio = widths.max() / np.median(widths[widths > 0])
    if ratio > _MAX_SCALE_RATIO:
        warn(
            f"Feature {int(widths.argmax())} of {name} varies {ratio:.0e} times as much as most "
            "other features, so that it dominates all similarities. Scale the features, for "
            "example with StandardScaler before the aligner in a Pipeline."
        )


def check_text_columns(y: Any, fitted_names: Sequence[str]) -> list[str]:
    """Return the columns of a table of text features; raise ValueError unless `fit` had the same.

    Arrays have no names. scikit-learn checks the columns of X in the same way.
    """
    names = [str(column) for column in getattr(y, "column_names", getattr(y, "columns", ()))]
    if names and fitted_names and names != fitted_names:
        unknown = [column for column in names if column not in fitted_names]
        problem = f"unknown: {format_list(unknown)}" if unknown else "another number or order"
        raise ValueError(
            f"The columns of y must be those of fit, in the same order ({problem}). Pass "
            f"the columns {format_list(fitted_names, str)} in this order."
        )
    return names


@contextmanager
def explain_texts() -> Iterator[None]:
    """Say what to do if X has columns of texts, which cannot be converted to features."""
    try:
        yield
    except ValueError as error:
        if "could not convert string to float" not in str(error):
            raise
        raise ValueError(
            f"X has columns of texts, which are not features: {error}. If the texts are paths of "
            "images, pass their column alone as X. Otherwise leave these columns out."
        ) from None


def check_stored_features(array: np.ndarray, name: str) -> StoredRows:
    """Return features that stay in a file as lazy rows, after reading all of them once.

    Rows that are all NaN are marked as missing. Other NaN, and infinity, raise ValueError.
    """
    features = StoredRows(array)
    partial_rows: list[int] = []
    for rows in row_blocks(features):
        with np.errstate(over="ignore", invalid="ignore"):  # infinity raises an error below
            block = features[rows]
        if _is_finite(block):
            continue
        infinite = np.flatnonzero(np.isinf(block).any(axis=1))
        if infinite.size:
            raise ValueError(
                f"Input {name} contains infinity or a value too large for float32, first in row "
                f"{rows.start + infinite[0]}. Remove such rows."
            )
        partial_rows += (rows.start + np.flatnonzero(_is_partially_nan(block))).tolist()
        features.missing[rows] = np.isnan(block[:, 0])
    if partial_rows:
        raise ValueError(_format_nan_error(name, np.array(partial_rows)))
    return features


@ignores_underflow
def embed_rows(
    features: Any, embed: Callable[[np.ndarray], np.ndarray], get_width: Callable[[], int]
) -> np.ndarray:
    """Embed the rows that are not missing, in blocks if they are stored; the others become NaN.

    `get_width` returns the size of the embeddings. It is called only if the result is allocated
    here, because an aligner may have to read its model to know the size.
    """
    valid = ~find_missing_rows(features)
    if valid.all() and not isinstance(features, StoredRows):
        return embed(features)
    embeddings = np.full((len(features), get_width()), np.nan, dtype=np.float32)
    for rows in row_blocks(features):
        indices = rows.start + np.flatnonzero(valid[rows])
        if indices.size:
            embeddings[indices] = embed(features[indices])
    return embeddings


def _is_partially_nan(features: np.ndarray) -> np.ndarray:
    """Return a mask of invalid rows, which are NaN in part, or NaN in the only column."""
    is_nan = np.isnan(features)
    return is_nan.any(axis=1) & ~(is_nan.all(axis=1) & (is_nan.shape[1] > 1))


def _format_nan_error(name: str, rows: np.ndarray) -> str:
    return f"Input {name} contains NaN in {describe_rows(rows)}. Remove such rows."
