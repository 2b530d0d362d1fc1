"""What aligners are fitted on: distinct pictures and captions, and which belong together."""

from __future__ import annotations

import hashlib
import warnings
from typing import NamedTuple

import numpy as np

NAMED_IN_ERRORS = 5


class Pairs(NamedTuple):
    """Features of distinct pictures and captions, and which belong together.

    The last `n_prototypes` rows of `image` are no pictures but stand for classes.
    """

    image: np.ndarray
    text: np.ndarray
    pairs: np.ndarray
    n_prototypes: int = 0

    @property
    def n_images(self) -> int:
        """How many of the rows of `image`, the first ones, are real pictures."""
        return len(self.image) - self.n_prototypes


def distinct_pairs(
    image: np.ndarray,
    image_rows: np.ndarray,
    text: np.ndarray,
    text_rows: np.ndarray,
    merge_texts: bool = True,
) -> Pairs:
    """Merge equal rows and drop the pairs that an encoder gave up."""
    lost = np.isnan(image[image_rows, 0]) | np.isnan(text[text_rows, 0])
    if lost.any():
        rows = np.unique(image_rows[lost])
        warnings.warn(
            f"{len(rows)} rows are left out, because an encoder could not encode them: "
            f"{', '.join(map(str, rows[:NAMED_IN_ERRORS]))}"
            f"{', ...' if len(rows) > NAMED_IN_ERRORS else ''}.",
            UserWarning,
            stacklevel=5,
        )
        image_rows, text_rows = image_rows[~lost], text_rows[~lost]
        if not len(image_rows):
            raise ValueError("No pair is left: none of the pictures could be encoded.")
    images, image_numbers = _first_of_equal(image, image_rows)
    texts, text_numbers = _first_of_equal(text, text_rows, by_feature=merge_texts)
    if len(images) == 1 < len(np.unique(image_rows)):
        warnings.warn(
            "All pictures have the same features: there is nothing to tell them apart by, and "
            "any score on them says nothing.",
            UserWarning,
            stacklevel=5,
        )
    pairs = np.unique(np.column_stack([image_numbers, text_numbers]), axis=0)
    return Pairs(images, texts, pairs)


def _first_of_equal(
    features: np.ndarray, rows: np.ndarray, by_feature: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct rows in order of appearance, and each row's number among them."""
    if not by_feature:
        used, inverse = np.unique(rows, return_inverse=True)
        return features[used], inverse
    numbers: dict[bytes, int] = {}
    first: list[int] = []
    inverse = np.empty(len(rows), dtype=np.int64)
    number_of_row: dict[int, int] = {}
    for place, row in enumerate(rows.tolist()):
        if row not in number_of_row:
            digest = hashlib.blake2b(features[row].tobytes(), digest_size=16).digest()
            if digest not in numbers:
                numbers[digest] = len(numbers)
                first.append(row)
            number_of_row[row] = numbers[digest]
        inverse[place] = number_of_row[row]
    return features[first], inverse


def subset_of(data: Pairs, rows: np.ndarray) -> Pairs:
    """Return some of the pairs, with only their pictures, prototypes and captions."""
    pairs = data.pairs[rows]
    images, at_image = np.unique(pairs[:, 0], return_inverse=True)
    texts, at_text = np.unique(pairs[:, 1], return_inverse=True)
    return Pairs(
        data.image[images],
        data.text[texts],
        np.column_stack([at_image, at_text]),
        n_prototypes=int((images >= data.n_images).sum()),
    )
