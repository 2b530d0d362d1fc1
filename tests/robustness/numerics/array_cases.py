"""Numerical cases of features: types of arrays, magnitudes and outliers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse as sp

_BAD = 3


class Form(NamedTuple):
    """Form in which features are passed.

    `make` converts a float32 array to this form, and `like` to the float32 array that must give
    the same results up to `tolerance`. `words` must occur in the message of an error or warning,
    and `means` describes the correct result in the table.
    """

    name: str
    make: Callable[[np.ndarray], Any]
    like: Callable[[np.ndarray], np.ndarray] = lambda x: x
    expected: str = "right"
    words: tuple[str, ...] = ()
    means: str = ""
    tolerance: float = 0.0


def _mapped(rows: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory(prefix="numerics-") as folder:
        np.save(Path(folder, "rows.npy"), rows)
        return np.load(Path(folder, "rows.npy"), mmap_mode="r")  # remains mapped without its name


def _frozen(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows.flags.writeable = False
    return rows


def _frame(rows: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[f"f{i}" for i in range(rows.shape[1])])


def _nullable(rows: np.ndarray, dtype: str = "Float32") -> pd.DataFrame:
    return _frame(rows).astype(dtype)


def _with_na(rows: np.ndarray) -> pd.DataFrame:
    frame = _nullable(rows)
    frame.iloc[_BAD, 0] = pd.NA
    return frame


def _with_null(rows: np.ndarray) -> pl.DataFrame:
    number = pl.int_range(pl.len())
    column = pl.when(number == _BAD).then(None).otherwise(pl.col("column_0")).alias("column_0")
    return pl.DataFrame(np.ascontiguousarray(rows)).with_columns(column)


def _masked(rows: np.ndarray) -> Any:
    mask = np.zeros(rows.shape, dtype=bool)
    mask[_BAD, 1] = True
    return np.ma.masked_array(rows, mask=mask)


def _with(value: float, whole_row: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    def make(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[_BAD, slice(None) if whole_row else 1] = value
        return rows

    return make


def _scaled(factor: float, dtype: Any = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: (rows.astype(np.float64) * factor).astype(dtype)


def _hundreds(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: np.round(100 * rows).astype(dtype)


_SAME = "bitwise identical to C-contiguous float32"
_SCALES = "same results as for unscaled features"
_ROW = (f"{_BAD}",)

KINDS = [
    Form("float64", lambda x: x.astype(np.float64), means=_SAME),
    Form("long double", lambda x: x.astype(np.longdouble), means=_SAME),
    Form(
        "float16",
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.float16).astype(np.float32),
        means="bitwise identical to the same values in float32",
    ),
    Form("big-endian", lambda x: x.astype(">f4"), means=_SAME),
    Form("Fortran order", np.asfortranarray, means=_SAME),
    Form("a view of every other column", lambda x: np.repeat(x, 2, axis=1)[:, ::2], means=_SAME),
    Form("negative strides", lambda x: x[::-1, ::-1].copy()[::-1, ::-1], means=_SAME),
    Form("read-only memory map", _mapped, means=_SAME),
    Form("read-only array", _frozen, means=_SAME),
    Form("lists of numbers", lambda x: x.tolist(), means=_SAME),
    Form("numbers in an object array", lambda x: x.astype(object), means=_SAME),
    Form(
        "int64",
        _hundreds(np.int64),
        lambda x: _hundreds(np.float32)(x),
        means="bitwise identical to the same values in float32",
    ),
    Form(
        "int8",
        lambda x: np.round(10 * x).astype(np.int8),
        lambda x: np.round(10 * x),
        means="bitwise identical to the same values in float32",
    ),
    Form(
        "bool",
        lambda x: x > 0,
        lambda x: (x > 0).astype(np.float32),
        means="bitwise identical to 0 and 1 in float32",
    ),
    Form("pandas DataFrame", _frame, means=_SAME),
    Form("pandas DataFrame with nullable dtypes", _nullable, means=_SAME),
    Form("polars DataFrame", lambda x: pl.DataFrame(np.ascontiguousarray(x)), means=_SAME),
    Form("masked array without masked values", np.ma.masked_array, means=_SAME),
    Form(
        "masked array with a masked value",
        _masked,
        expected="error",
        words=("masked", *_ROW),
    ),
    Form("pandas DataFrame with NA", _with_na, expected="error", words=("NaN", *_ROW)),
    Form("polars DataFrame with null", _with_null, expected="error", words=("NaN", *_ROW)),
    Form("sparse CSR array", sp.csr_array, expected="error", words=("dense", "toarray")),
    Form("sparse COO matrix", sp.coo_matrix, expected="error", words=("dense", "toarray")),
    Form("np.matrix", np.matrix, expected="error", words=("np.matrix", "np.asarray")),
    Form("complex", lambda x: x.astype(complex), expected="error", words=("Complex",)),
    Form(
        "datetime64",
        lambda x: (1e6 * x).astype("datetime64[s]"),
        expected="error",
        words=("datetime64", "numbers"),
    ),
    Form("0 rows", lambda x: x[:0], expected="error", words=("0 sample(s)",)),
    Form("0 columns", lambda x: x[:, :0], expected="error", words=("0 feature(s)",)),
    Form("a single row as a 1-D array", lambda x: x[0], expected="error", words=("2D array",)),
    Form("3-D array", lambda x: x[:, :, None], expected="error", words=("dim 3",)),
]

SIZES = [
    *(
        Form(f"multiplied by 2**{power}", _scaled(2.0**power), means=_SCALES, tolerance=1e-6)
        for power in (-110, -66, -40, 40, 66, 110)
    ),
    Form("multiplied by 1e-20", _scaled(1e-20), means=_SCALES, tolerance=2e-3),
    Form("multiplied by 1e20", _scaled(1e20), means=_SCALES, tolerance=2e-3),
    Form("multiplied by 1e-30", _scaled(1e-30), means=_SCALES, tolerance=2e-3),
    Form("multiplied by 1e30", _scaled(1e30), means=_SCALES, tolerance=2e-3),
    Form(
        "multiplied by 1e-40 (subnormal in float32)",
        _scaled(1e-40),
        lambda x: _scaled(1e40, np.float64)(_scaled(1e-40)(x)).astype(np.float32),
        means="same results as for these values scaled up",
        tolerance=2e-3,
    ),
    Form(
        "multiplied by 1e-300, in float64",
        _scaled(1e-300, np.float64),
        expected="error",
        words=("too small for float32", "Multiply"),
    ),
    Form(
        "multiplied by 1e300, in float64",
        _scaled(1e300, np.float64),
        expected="error",
        words=("too large for float32", "multiply"),
    ),
    Form("one NaN", _with(np.nan), expected="error", words=("NaN", *_ROW)),
    Form("one infinite value", _with(np.inf), expected="error", words=("infinity", *_ROW)),
    Form("a row of -infinity", _with(-np.inf, True), expected="error", words=("infinity", *_ROW)),
]

FIT_SIZES = [
    Form(
        "a row 1e25 times as large as the others",
        lambda x: np.vstack([x[:_BAD], 1e25 * x[_BAD : _BAD + 1], x[_BAD + 1 :]]),
        expected="warning",
        words=("dominate all means", *_ROW),
        means="embeddings are finite, with norm 1 or 0",
    ),
    Form(
        "one value of 1e25",
        _with(1e25),
        expected="warning",
        words=("dominate all means", *_ROW),
        means="embeddings are finite, with norm 1 or 0",
    ),
    Form(
        "a constant column of 1e6",
        lambda x: np.hstack([x, np.full((len(x), 1), 1e6, np.float32)]),
        expected="warning",
        words=("too small for float32", "Subtract the mean"),
        means="embeddings are finite, with norm 1 or 0",
    ),
    Form(
        "a constant column of 1e30",
        lambda x: np.hstack([x, np.full((len(x), 1), 1e30, np.float32)]),
        expected="warning",
        words=("too small for float32", "Subtract the mean"),
        means="embeddings are finite, with norm 1 or 0",
    ),
    Form(
        "one feature a million times as large as the others",
        lambda x: np.hstack([1e6 * x[:, :1], x[:, 1:]]),
        expected="warning",
        words=("dominates all similarities", "StandardScaler"),
        means="embeddings are finite, with norm 1 or 0",
    ),
    Form(
        "float64 values around 1e8",
        lambda x: 1e8 + x.astype(np.float64),
        expected="error",
        words=("lost in float32", "Subtract the mean"),
    ),
    Form(
        "int64 values above 2**53",
        lambda x: 2**60 + np.round(1e4 * x).astype(np.int64),
        expected="error",
        words=("lost in float32", "Subtract the mean"),
    ),
]
