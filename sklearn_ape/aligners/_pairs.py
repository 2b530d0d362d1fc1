"""What aligners are fitted on: distinct pictures and captions, and which belong together."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import gen_batches

from .._first_few import first_few
from .._warnings import warn
from ..training import StoredRows, select, split_pairs

_ROWS_AT_ONCE = 1024


class Pairs(NamedTuple):
    """Features of distinct pictures and captions, and which belong together.

    The features of a side are an array or `StoredRows`. The last `n_prototypes` rows of `image`
    are no pictures but stand for classes.
    """

    image: Any
    text: Any
    pairs: np.ndarray
    n_prototypes: int = 0

    @property
    def n_images(self) -> int:
        """How many of the rows of `image`, the first ones, are real pictures."""
        return len(self.image) - self.n_prototypes


def missing_rows(features: Any) -> np.ndarray:
    """Return which rows an encoder gave up: bools."""
    if not isinstance(features, StoredRows):
        return np.isnan(features[:, 0])
    return np.zeros(len(features), bool) if features.missing is None else features.missing


def check_lengths(X: Any, n_rows: int) -> None:
    """Refuse pictures that are not as many as rows of captions."""
    shape = getattr(X, "shape", None)
    n_pictures = shape[0] if shape else len(X if hasattr(X, "__len__") else np.asarray(X))
    if n_pictures != n_rows:
        raise ValueError(
            f"X and y have inconsistent lengths: {n_pictures} pictures and {n_rows} rows of "
            "captions. Each picture needs its caption (or list of captions) at the same place."
        )


def distinct_pairs(
    image: Any,
    image_rows: np.ndarray,
    text: Any,
    text_rows: np.ndarray,
    merge_texts: bool = True,
) -> Pairs:
    """Merge equal rows and drop the pairs that an encoder gave up."""
    lost = missing_rows(image)[image_rows] | missing_rows(text)[text_rows]
    if lost.any():
        rows = np.unique(image_rows[lost])
        warn(
            f"{len(rows)} rows are left out, because an encoder could not encode them: "
            f"{first_few(rows, str)}.",
        )
        image_rows, text_rows = image_rows[~lost], text_rows[~lost]
        if not len(image_rows):
            raise ValueError("No pair is left: none of the pictures could be encoded.")
    images, image_numbers = _first_of_equal(image, image_rows)
    texts, text_numbers = _first_of_equal(text, text_rows, by_feature=merge_texts)
    if len(images) == 1 < len(np.unique(image_rows)):
        warn(
            "All pictures have the same features: there is nothing to tell them apart by, and "
            "any score on them says nothing.",
        )
    # As one number a pair: rows of two are sorted many times as slowly, in copies.
    numbers = np.unique(image_numbers * len(texts) + text_numbers)
    return Pairs(images, texts, np.column_stack(np.divmod(numbers, len(texts))))


def _first_of_equal(
    features: Any, rows: np.ndarray, by_feature: bool = True
) -> tuple[Any, np.ndarray]:
    """Return the distinct rows in order of appearance, and each row's number among them."""
    used, inverse = np.unique(rows, return_inverse=True)
    if not by_feature:
        return select(features, used), inverse
    digests = _digests(features, used)
    if not np.array_equal(used, rows):
        digests = digests[inverse]
    del used, inverse  # of a million rows, every array counts
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    del digests
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    kept = rows[first[order]]
    if len(kept) == len(features) and np.array_equal(kept, np.arange(len(kept))):
        return features, number[inverse]  # the usual case needs no copy
    return select(features, kept), number[inverse]


def _digests(features: Any, rows: np.ndarray) -> np.ndarray:
    """Return 16 bytes for each row that no other row shares, of any number of rows."""
    found = np.empty(len(rows), dtype="V16")
    for some in gen_batches(len(rows), _ROWS_AT_ONCE):
        block = np.ascontiguousarray(features[rows[some]])
        digests = [hashlib.blake2b(row, digest_size=16).digest() for row in block]
        found[some] = np.frombuffer(b"".join(digests), dtype="V16")
    return found


def subset_of(data: Pairs, rows: np.ndarray) -> Pairs:
    """Return some of the pairs, with only their pictures, prototypes and captions."""
    pairs = data.pairs[rows]
    images, at_image = np.unique(pairs[:, 0], return_inverse=True)
    texts, at_text = np.unique(pairs[:, 1], return_inverse=True)
    return Pairs(
        select(data.image, images),
        select(data.text, texts),
        np.column_stack([at_image, at_text]),
        n_prototypes=int((images >= data.n_images).sum()),
    )


def held_out(data: Pairs, fraction: float, seed: int) -> tuple[Pairs, Pairs | None]:
    """Return pairs to train on and pairs held out, None where there are too few."""
    split = split_pairs(data.pairs, fraction, np.random.RandomState(seed))
    if split.valid is None:
        return data, None
    # Prototypes are no pictures: to find their names is not what users ask for.
    pictures = split.valid[data.pairs[split.valid, 0] < data.n_images]
    if len(pictures) < 2:
        return data, None
    return subset_of(data, split.train), subset_of(data, pictures)
