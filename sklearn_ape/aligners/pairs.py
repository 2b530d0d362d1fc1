"""Pairs of images and captions from X and y."""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array, issparse
from sklearn.utils import gen_batches

from ..encoders import EncodingError
from ..encoders.items import summarize_errors
from ..features.memmap import find_missing_rows, select
from ..training.data import PairDataset, unique_pairs
from ..utils.validation import check_sequence, format_list, is_missing
from ..utils.warnings import warn

_NAMED_IN_ERRORS = 5


def as_sequence(y: Any, name: str = "y") -> Any:
    """Return a column of another library, or a table of texts, as lists; other y as it is.

    Parameters
    ----------
    y : object
        Captions, or features of captions.
    name : str, default="y"
        The parameter, for messages.

    Raises
    ------
    ValueError
        When y is not a sequence, is empty, or is a table whose caption column has to be chosen.
    """
    check_sequence(y, name, "text", "captions or features")
    if getattr(y, "ndim", 1) == 1 and hasattr(y, "__len__") and len(y) == 0:
        raise ValueError(f"{name} is empty: pass a list with at least one text, ['a cat'].")
    if hasattr(y, "to_pylist"):  # pyarrow
        return y.to_pylist()
    if hasattr(y, "to_list") and not hasattr(y, "iloc"):  # polars
        return y.to_list()
    if hasattr(y, "columns"):
        kinds = {getattr(dtype, "kind", "O") for dtype in getattr(y, "dtypes", "O")}
        if kinds <= set("fiub") or np.asarray(y).dtype.kind in "fiub":
            return y
        raise ValueError(
            f"{name} is a table with the columns {list(y.columns)}: pass the one that holds "
            "captions."
        )
    is_table = isinstance(y, np.ndarray) and y.ndim == 2 and y.dtype.kind in "UO"
    if is_table and any(isinstance(text, str) for text in y.flat):
        return y.tolist()
    return y


def holds_texts(y: Any) -> bool:
    """Say whether y is captions (or lists of captions) rather than numbers."""
    kind = getattr(getattr(y, "dtype", None), "kind", None)
    if issparse(y) or kind in ("f", "i", "u", "b", "c") or not hasattr(y, "__len__"):
        return False
    if getattr(y, "ndim", 1) != 1:
        return False
    return any(_is_text(item) for item in y)


def _is_text(item: Any) -> bool:
    return isinstance(item, str) or (
        isinstance(item, list | tuple | np.ndarray) and any(isinstance(text, str) for text in item)
    )


def holds_images(X: Any) -> bool:
    """Say whether X is paths, images or bytes rather than features."""
    if not isinstance(X, list | tuple | np.ndarray) or len(X) == 0:
        return hasattr(X, "str") and not hasattr(X, "columns")
    first = X[0]
    return isinstance(first, str | os.PathLike | bytes | Mapping) or hasattr(first, "getexif")


def flatten_captions(y: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    """Return all captions in one list and, for each, the row of y that it stands in.

    Raises
    ------
    ValueError
        When captions are missing, empty or not text; the message names the rows.
    """
    captions: list[str] = []
    rows: list[int] = []
    bad: dict[int, str] = {}
    for row, item in enumerate(y):
        several = list(item) if isinstance(item, list | tuple | np.ndarray) else [item]
        if not several:
            bad[row] = "an empty list of captions"
        for caption in several:
            if not isinstance(caption, str):
                bad[row] = f"{caption!r} is not a text"
            elif not caption.strip():
                bad[row] = f"{caption!r} is an empty caption"
            else:
                captions.append(str(caption))
                rows.append(row)
    if bad:
        named = "\n".join(f"  row {row}: {bad[row]}" for row in sorted(bad)[:_NAMED_IN_ERRORS])
        more = f"\n  and {len(bad) - _NAMED_IN_ERRORS} more" if len(bad) > _NAMED_IN_ERRORS else ""
        raise ValueError(
            f"{len(bad)} of {len(y)} captions cannot be used:\n{named}{more}\n"
            "Give each image a text, or leave these images out."
        )
    return captions, np.array(rows, dtype=np.intp)


def encode_unique(
    encode: Callable[[list[str]], Any], captions: list[str], rows: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Return features of the distinct captions, and the number of each caption among them.

    Raises
    ------
    EncodingError
        When captions cannot be encoded; it names the rows that these stand in.
    """
    unique = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    numbers = np.array([unique[text] for text in captions])
    try:
        return encode(list(unique)), numbers
    except EncodingError as error:
        first = rows[np.unique(numbers, return_index=True)[1]]
        errors = {int(first[number]): said for number, said in error.errors.items()}
        remedy = str(error).rpartition("\n")[2]
        raise EncodingError(summarize_errors(errors, "caption") + remedy, errors) from None


_ROWS_AT_ONCE = 1024


# Equal features of different items are reported if at least this share of the items has them: a
# few images that were stored twice hardly change a score.
_SHARE_TO_REPORT = 0.05


class Rows(NamedTuple):
    """Features of both sides, and the rows of every pair.

    Parameters
    ----------
    image : ndarray or StoredRows of shape (n_samples, n_features)
        Features of the images, one row per row of X.
    text : ndarray or StoredRows of shape (n_texts, n_text_features)
        Features of the distinct captions, or one row per row of y where y is features.
    image_rows, text_rows : ndarray of int, shape (n_pairs,)
        Row of `image` and of `text` of every pair.
    image_digests : ndarray of shape (n_samples,), or None, default=None
        Digests of the images' content. None where only features are known.
    are_captions : bool, default=False
        Whether rows of `text` are distinct captions.
    """

    image: Any
    text: Any
    image_rows: np.ndarray
    text_rows: np.ndarray
    image_digests: np.ndarray | None = None
    are_captions: bool = False

    @property
    def image_items(self) -> np.ndarray:
        """Number of the image of every pair: by content, or else every row is an image."""
        if self.image_digests is None:
            return self.image_rows
        return np.unique(self.image_digests, return_inverse=True)[1][self.image_rows]


def check_lengths(X: Any, n_rows: int) -> None:
    """Raise ValueError unless there are as many images as rows of captions."""
    shape = getattr(X, "shape", None)
    n_images = shape[0] if shape else len(X if hasattr(X, "__len__") else np.asarray(X))
    if n_images != n_rows:
        raise ValueError(
            f"X and y have inconsistent lengths: {n_images} images and {n_rows} rows of "
            "captions. Each image needs its caption (or list of captions) in the same row."
        )


def distinct_pairs(rows: Rows) -> PairDataset:
    """Return pairs to train on: equal features count as one image or caption.

    Pairs with a row that an encoder could not encode are left out, with a warning.
    """
    rows, _ = _encoded(rows)
    image, at_image = _merge(rows.image, rows.image_rows, _digests_of(rows.image, rows.image_rows))
    text, at_text = _merge(rows.text, rows.text_rows, _digests_of(rows.text, rows.text_rows))
    image_items, text_items = rows.image_items, rows.text_rows
    n_images, n_texts = (len(np.unique(items)) for items in (image_items, text_items))
    if len(image) == 1 < n_images:
        warn(
            "All images have the same features, so nothing tells them apart. Check the image "
            "encoder, or the features in X.",
        )
    items = None
    if (n_images, n_texts) != (len(image), len(text)):
        items = np.column_stack([image_items, at_image, text_items, at_text])
    return PairDataset(image, text, unique_pairs(at_image, at_text, len(text)), 0, items)


def item_pairs(rows: Rows, groups: Any = None) -> PairDataset:
    """Return pairs to score: one row per image and per caption, whatever their features.

    Parameters
    ----------
    rows : Rows
        All pairs. Those with a row that an encoder could not encode are left out, with a warning.
    groups : array-like of shape (n_samples,) or None, default=None
        Group of every row of X. All images and captions of a group belong together, and rows of
        one group with equal features are one image or caption.
    """
    group = None
    if groups is not None:
        group = _group_numbers(groups, len(rows.image))[rows.image_rows]
    rows, group = _encoded(rows, group)
    image_items, text_items = rows.image_items, rows.text_rows
    are_images = rows.image_digests is not None
    if group is not None and not are_images:
        image_items = _items_in_groups(group, _digests_of(rows.image, rows.image_rows))
    if group is not None and not rows.are_captions:
        text_items = _items_in_groups(group, _digests_of(rows.text, rows.text_rows))
    image, at_image = _merge(rows.image, rows.image_rows, image_items)
    text, at_text = _merge(rows.text, rows.text_rows, text_items)
    _warn_of_equal_features("X", image, are_images or group is not None)
    if not rows.are_captions:
        _warn_of_equal_features("y", text, group is not None)
    if group is None:
        return PairDataset(image, text, unique_pairs(at_image, at_text, len(text)))
    ones, n_groups = np.ones(len(group), dtype=bool), int(group.max()) + 1
    images = coo_array((ones, (at_image, group)), shape=(len(image), n_groups)).tocsr()
    texts = coo_array((ones, (group, at_text)), shape=(n_groups, len(text))).tocsr()
    return PairDataset(image, text, np.column_stack((images @ texts).nonzero()))


def _encoded(rows: Rows, group: np.ndarray | None = None) -> tuple[Rows, np.ndarray | None]:
    """Leave out pairs, and their groups, with a row that an encoder could not encode."""
    lost = (
        find_missing_rows(rows.image)[rows.image_rows]
        | find_missing_rows(rows.text)[rows.text_rows]
    )
    if not lost.any():
        return rows, group
    missing = np.unique(rows.image_rows[lost])
    warn(
        f"{len(missing)} rows are left out, because an encoder could not encode them: "
        f"{format_list(missing, str)}.",
    )
    if lost.all():
        raise ValueError("No pair is left: none of the images could be encoded.")
    known = rows._replace(image_rows=rows.image_rows[~lost], text_rows=rows.text_rows[~lost])
    return known, None if group is None else group[~lost]


def _merge(features: Any, rows: np.ndarray, keys: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return a row per distinct key in order of appearance, and the number of each key's row."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    del keys  # of a million rows, every array counts
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    kept = rows[first[order]]
    if len(kept) == len(features) and np.array_equal(kept, np.arange(len(kept))):
        return features, number[inverse]  # the usual case needs no copy
    return select(features, kept), number[inverse]


def _digests_of(features: Any, rows: np.ndarray) -> np.ndarray:
    """Return the digest of the features of every row in `rows`, which may repeat."""
    used, inverse = np.unique(rows, return_inverse=True)
    digests = _digests(features, used)
    return digests if np.array_equal(used, rows) else digests[inverse]


def _digests(features: Any, rows: np.ndarray) -> np.ndarray:
    """Return 16 bytes for each row that no other row shares, of any number of rows."""
    found = np.empty(len(rows), dtype="V16")
    for some in gen_batches(len(rows), _ROWS_AT_ONCE):
        block = np.ascontiguousarray(features[rows[some]])
        digests = [hashlib.blake2b(row, digest_size=16).digest() for row in block]
        found[some] = np.frombuffer(b"".join(digests), dtype="V16")
    return found


def _group_numbers(groups: Any, n_rows: int) -> np.ndarray:
    """Return the number of the group of every row of X."""
    values = groups.tolist() if isinstance(groups, np.ndarray) else groups
    check_sequence(values, "groups", "group")
    if len(values) != n_rows:
        raise ValueError(
            f"groups has {len(values)} entries, and X has {n_rows} rows. Pass one per row."
        )
    numbers: dict[Any, int] = {}
    found = np.empty(n_rows, dtype=np.intp)
    for row, value in enumerate(values):
        if isinstance(value, list | np.ndarray):
            raise ValueError(
                f"groups must have one dimension, and row {row} is {reprlib.repr(value)}. Pass "
                "one text or number per row."
            )
        if is_missing(value):
            raise ValueError(f"groups has a missing value in row {row}. Give every row a group.")
        found[row] = numbers.setdefault(value, len(numbers))
    return found


def _items_in_groups(group: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """Return the number of the features of every pair among those of its group."""
    _, inverse = np.unique(digests, return_inverse=True)
    return np.unique(group * len(digests) + inverse, return_inverse=True)[1]


def _warn_of_equal_features(name: str, features: Any, are_items_known: bool) -> None:
    """Warn when many items that are scored have the same features as another one."""
    counts = np.unique(_digests(features, np.arange(len(features))), return_counts=True)[1]
    n_equal = int(counts[counts > 1].sum())
    if n_equal < _SHARE_TO_REPORT * len(features) or not n_equal:
        return
    what = "images" if name == "X" else "texts"
    if are_items_known:
        message = (
            f"{n_equal:,} of the {len(features):,} {what} in {name} have the same features as "
            "another one. Nothing tells them apart, and ties count against the score."
        )
    else:
        message = (
            f"{n_equal:,} of the {len(features):,} rows of {name} have the same features as "
            "another row. Every row counts as an item of its own, and ties count against the "
            "score. Pass groups, such as file names, if equal rows are the same item."
        )
    warn(message)
