"""Checks of features: range, NaN, outliers, differences that float32 loses, and column names."""

import re
import warnings
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sklearn_ape.features import matrix
from sklearn_ape.features.matrix import (
    StoredRows,
    as_float32,
    check_stored_features,
    check_text_columns,
    embed_rows,
    find_missing_rows,
)


def make_features(n_rows=40, n_features=6):
    return np.random.default_rng(0).standard_normal((n_rows, n_features))


def find_warnings(features):
    """Return the messages about features from which a model learns little."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        as_float32(features, "X", check_conditioning=True)
    assert all(warning.category is UserWarning for warning in caught)
    return [str(warning.message) for warning in caught]


class TestConversion:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_result_is_contiguous_float32(self, dtype):
        features = np.asfortranarray(make_features().astype(dtype))
        converted = as_float32(features, "X", check_conditioning=False)
        assert converted.dtype == np.float32
        assert converted.flags.c_contiguous
        np.testing.assert_array_equal(converted, features.astype(np.float32))

    def test_conditioning_is_checked_on_request(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            as_float32(make_features() * 1e-9 + 1, "X", check_conditioning=False)

    @pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39, -1e39])
    def test_too_large_values_raise_with_their_rows(self, monkeypatch, value):
        """Rows are checked in blocks."""
        monkeypatch.setattr(matrix, "_BLOCK_SIZE", 7)
        features = make_features()
        features[3, 1] = features[20, 0] = value
        with pytest.raises(
            ValueError, match=r"^Input X contains infinity .* 2 rows \(rows 3, 20\)"
        ):
            as_float32(features, "X", check_conditioning=False)

    def test_largest_float32_is_valid(self):
        features = make_features(3)
        features[1] = np.finfo(np.float32).max
        np.testing.assert_array_equal(
            as_float32(features, "X", check_conditioning=False), features.astype(np.float32)
        )

    def test_rows_too_small_for_float32_raise(self):
        """They would become zeros. Rows of zeros, and the smallest normal number, are valid."""
        features = make_features(6)
        features[1], features[2], features[4] = 1e-39, 0, np.finfo(np.float32).tiny
        with pytest.raises(ValueError, match=r"^Input X has 1 row \(row 1\) with only .*\. Mul"):
            as_float32(features, "X", check_conditioning=False)
        as_float32(features[2:], "X", check_conditioning=False)
        as_float32(features.astype(np.float32), "X", check_conditioning=False)
        features[1, 0] = 1  # small values beside others
        as_float32(features, "X", check_conditioning=False)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_only_rows_of_nan_are_valid(self, dtype):
        """They stand for items that an encoder failed to encode."""
        features = make_features().astype(dtype)
        features[5] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            converted = as_float32(features, "X", check_conditioning=True)
        np.testing.assert_array_equal(converted, features.astype(np.float32))
        features[7, 0] = features[9, 1:] = np.nan
        message = "Input X contains NaN in 2 rows (rows 7, 9). Remove such rows."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            as_float32(features, "X", check_conditioning=False)
        converted = as_float32(features, "X", check_conditioning=False, allow_nan=True)
        np.testing.assert_array_equal(converted, features.astype(np.float32))

    def test_nan_in_the_only_column_raises(self):
        """It cannot be told from a missing value."""
        for check in (partial(as_float32, check_conditioning=False), check_stored_features):
            with pytest.raises(ValueError, match=r"contains NaN in 1 row \(row 2\)"):
                check(np.array([[1.0], [2], [np.nan]]), "X")
            check(np.array([[1.0, 2], [2, 1], [np.nan, np.nan]]), "X")


class TestOutliers:
    def test_rows_that_dominate_are_named(self):
        """A row counts if it is a million times as large as the median row."""
        features = make_features()
        features[4], features[30] = 5e6, -7e6
        (message,) = find_warnings(features)
        assert re.match(
            r"Input X has values up to 7e\+06 in 2 rows \(rows 4, 30\), and up ", message
        )
        assert re.search(r"and up to (1|2)e\+00 in most rows\. ", message)
        features[[4, 30]] = 9e5
        assert find_warnings(features) == []

    def test_rows_of_zeros_do_not_count(self):
        """Otherwise all other rows would be outliers if most rows are zeros."""
        features = make_features()
        features[:30] = 0
        assert find_warnings(features) == []
        assert find_warnings(np.zeros((9, 3))) == []


class TestDifferences:
    def test_small_differences_warn(self):
        """Fewer than four digits of float32 describe them."""
        features = make_features() * 1e-5
        features[:, 4] -= 1
        (message,) = find_warnings(features)
        assert message.startswith("The differences between rows of X are almost too small for ")
        assert "dominated by feature 4). Subtract the mean of the training set" in message
        spread = np.linalg.norm(features - features.mean(axis=0)) / np.linalg.norm(features)
        assert f"(relative spread {spread:.0e}, " in message
        assert len(find_warnings(features[:2])) == 1
        assert find_warnings(20 * (features - [0, 0, 0, 0, -1, 0]) + [0, 0, 0, 0, 1, 0]) == []

    def test_lost_differences_raise(self):
        """Float64 holds differences that float32 cannot."""
        features = 0.5 + np.arange(8)[:, None] * np.full(3, 4e-9)
        with pytest.raises(ValueError, match=r"^The differences .* X are lost in float32 \(rela"):
            as_float32(features, "X", check_conditioning=True)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_differences_in_the_last_bit_are_not_lost(self, dtype):
        features = np.full((8, 3), 0.5, dtype=dtype)
        features[3] += 2.0**-24
        (message,) = find_warnings(features)
        assert "almost too small" in message

    @pytest.mark.parametrize("n_rows", [1, 2])
    def test_equal_rows_do_not_warn(self, n_rows):
        """The aligner reports them."""
        assert find_warnings(np.tile([0.3, 0.5, 0.9], (n_rows, 1))) == []

    def test_missing_rows_do_not_hide_the_others(self):
        features = make_features() * 1e-5 + 1
        features[:20] = np.nan
        assert len(find_warnings(features)) == 1
        features[:39] = np.nan
        assert find_warnings(features) == []


class TestScales:
    def test_dominating_feature_is_named(self):
        features = make_features(100)
        features[:, 2] *= 5000
        (message,) = find_warnings(features)
        assert re.match(r"Feature 2 of X varies [4-6]e\+03 times as much as most other", message)
        features[:, 2] /= 10
        assert find_warnings(features) == []

    def test_constant_features_do_not_count(self):
        """The median is that of the features that vary."""
        features = make_features(100)
        features[:, 1:4] = 0
        features[:, 5] *= 1e5
        assert len(find_warnings(features)) == 1
        features[:, 0] *= 1e5
        assert find_warnings(features) == []

    def test_single_large_row_does_not_count(self):
        """Such a row is reported as an outlier."""
        features = make_features(100)
        features[7, 2] = 1e5
        assert find_warnings(features) == []
        features = np.zeros((100, 3))
        features[7] = 1
        assert find_warnings(features) == []


class TestTextColumns:
    def test_names_are_those_of_any_data_frame(self):
        assert check_text_columns(pd.DataFrame({"a": [1.0], 2: [2.0]}), []) == ["a", "2"]
        assert check_text_columns(pl.DataFrame({"a": [1.0]}).to_arrow(), ["a"]) == ["a"]
        for array in (np.ones((2, 3)), [[1.0]]):
            assert check_text_columns(array, ["a", "b"]) == []

    def test_other_columns_than_those_of_fit_raise(self):
        frame = pd.DataFrame({"b": [1.0], "a": [2.0], "new": [3.0]})
        with pytest.raises(
            ValueError, match=r"unknown: 'new'\)\. Pass the columns a, b in this order\.$"
        ):
            check_text_columns(frame, ["a", "b"])
        for columns in (["b", "a"], ["a"]):
            with pytest.raises(ValueError, match=r"same order \(another number or order\)\. Pass"):
                check_text_columns(frame[columns], ["a", "b"])


class TestStoredFeatures:
    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        monkeypatch.setattr("sklearn_ape.features.matrix._BLOCK_SIZE", 7)

    def test_rows_of_nan_are_missing(self):
        features = make_features()
        features[[3, 11]] = np.nan
        stored = check_stored_features(features, "X")
        assert isinstance(stored, StoredRows)
        assert np.flatnonzero(stored.missing).tolist() == [3, 11]

    def test_all_rows_with_some_nan_are_named(self):
        features = make_features()
        features[10] = np.nan
        features[[3, 11, 12], [0, 1, 2]] = np.nan
        with pytest.raises(
            ValueError, match=r"^Input X contains NaN in 3 rows \(rows 3, 11, 12\)"
        ):
            check_stored_features(features, "X")

    @pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
    def test_first_row_with_infinity_is_named(self, value):
        """It is found before rows with NaN, and if infinities of both signs add up to NaN."""
        features = make_features()
        features[9, 0] = np.nan
        features[16, :2] = -value, value
        features[17, 1] = value
        error = pytest.raises(
            ValueError, match=r"^Input X contains infinity .*, first in row 16\. "
        )
        with error, warnings.catch_warnings():
            warnings.simplefilter("error")
            check_stored_features(features, "X")

    def test_large_values_are_not_infinity(self):
        """Their sum would overflow in float32."""
        features = np.full((9, 6), 3e38, dtype=np.float32)
        assert not check_stored_features(features, "X").missing.any()


class TestEmbedRows:
    @pytest.mark.parametrize("is_stored", [False, True])
    def test_missing_rows_become_nan(self, monkeypatch, is_stored):
        monkeypatch.setattr("sklearn_ape.features.matrix._BLOCK_SIZE", 7)
        array = make_features().astype(np.float32)
        array[[3, *range(7, 14)]] = np.nan
        features = check_stored_features(array, "X") if is_stored else array

        def embed(rows):
            assert np.isfinite(rows).all()
            assert len(rows) > 0
            return 2 * rows[:, :2]

        embeddings = embed_rows(features, embed, lambda: 2)
        assert embeddings.dtype == np.float32
        np.testing.assert_array_equal(embeddings, 2 * array[:, :2])

    def test_missing_rows_of_a_single_column_are_found(self):
        assert find_missing_rows(np.array([[1.0], [np.nan]])).tolist() == [False, True]

    def test_array_without_missing_rows_is_embedded_at_once(self):
        """The width of the embeddings, for which a model may be read, is not needed."""
        array = make_features()
        widths = []
        assert embed_rows(array, lambda rows: rows, lambda: widths.append(6) or 6) is array
        assert not widths

    def test_stored_rows_are_embedded_in_blocks(self, monkeypatch):
        """The features are larger than the memory."""
        monkeypatch.setattr("sklearn_ape.features.matrix._BLOCK_SIZE", 7)
        sizes = []

        def embed(rows):
            sizes.append(len(rows))
            return rows

        features = StoredRows(make_features())
        np.testing.assert_array_equal(embed_rows(features, embed, lambda: 6), features[:])
        assert sizes == [7] * 5 + [5]
