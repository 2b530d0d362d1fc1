"""Checks of features: dtype, finite values, and rows of NaN for items that failed to encode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

from ..utils.linalg import choose_evenly_spaced
from ..utils.messages import warn
from ..utils.validation import format_list, ignores_underflow
from .memmap import StoredRows, find_missing_rows, row_blocks

_FLOAT32 = np.finfo(np.float32)
_BLOCK_SIZE = 4096
# A row that is larger than the median row by this factor dominates all means and variances.
_OUTLIER_RATIO = 1e6
# Float32 has seven digits. If rows differ by less than this fraction of their norm, at most three
# of the digits describe the differences.
_MIN_RELATIVE_SPREAD = 1e-4
# If one feature varies this much more than most others, cosines measure this feature alone.
# Those of EfficientNet-Lite0 vary 2 to 5 times as much as the median in 13 collections.
_MAX_SCALE_RATIO = 1e3


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
            f"Input {name} contains infinity or a value too large for float32 in {too_large.size} "
            f"rows (rows {format_list(too_large, str)}). Remove these rows, or multiply all "
            "features by a small number."
        )
    too_small = np.flatnonzero((largest > 0) & (largest < _FLOAT32.tiny))
    if too_small.size and dtype == np.float64:
        raise ValueError(
            f"Input {name} has {too_small.size} rows with only values below 1e-38, which are too "
            f"small for float32 (rows {format_list(too_small, str)}). Multiply all features by a "
            "large number."
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
            f"Input {name} has values up to {nonzero.max():.0e} in {outliers.size} rows (rows "
            f"{format_list(outliers, str)}), and up to {median:.0e} in most rows. These rows will "
            "dominate all means and variances. Remove them, or L2-normalize all rows."
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
def embed_rows(features: Any, embed: Callable[[np.ndarray], np.ndarray], width: int) -> np.ndarray:
    """Embed the rows that are not missing, in blocks if they are stored; the others become NaN."""
    valid = ~find_missing_rows(features)
    if valid.all() and not isinstance(features, StoredRows):
        return embed(features)
    embeddings = np.full((len(features), width), np.nan, dtype=np.float32)
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
    return (
        f"Input {name} contains NaN in {rows.size} rows (rows {format_list(rows, str)}). "
        "Remove these rows."
    )
