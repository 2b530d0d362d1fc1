"""Training pairs of an aligner: from X and y, and from a classification head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array, issparse
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.utils import gen_batches
from sklearn.utils.validation import _num_samples

from ..encoders.head_pairs import HeadPairs, classifier_head_pairs
from ..encoders.items import EncodingError, summarize_errors
from ..encoders.resolve import encode_items, resolve_encoder
from ..features.matrix import StoredRows, find_missing_rows, row_blocks, select
from ..training.data import PairDataset, drop_repeated_pairs
from ..utils.linalg import compute_covariance, compute_mean, iter_centered
from ..utils.messages import warn
from ..utils.validation import (
    check_not_masked,
    check_sequence,
    format_list,
    get_first,
    is_image,
    is_row,
    number_distinct,
    number_groups,
    to_list,
)

_BLOCK_SIZE = 1024  # rows of features that are digested together

# Smallest share of items with the same features as another item that is reported. A few images
# that are stored twice hardly change a score.
_MIN_SHARE = 0.05


def as_sequence(y: Any, name: str = "y") -> Any:
    """Return y, as a list if it is a pyarrow or polars column or a 2d array of texts.

    `name` is the parameter for messages. ValueError is raised if y is not a sequence, is empty, or
    is a table with more columns than the captions.
    """
    check_sequence(y, name, "text", "captions or features")
    check_not_masked(y, name)
    if getattr(y, "ndim", 1) == 1 and hasattr(y, "__len__") and len(y) == 0:
        raise ValueError(f"{name} is empty. Pass a list with at least one text, ['a cat'].")
    if hasattr(y, "columns"):
        _check_numeric_table(y, name)
        return y
    if hasattr(y, "to_pylist") or not (hasattr(y, "__iter__") or hasattr(y, "__array__")):
        return to_list(y)  # of a column of pyarrow, or of a dataset of torch
    if hasattr(y, "to_list") and not hasattr(y, "iloc"):  # a column of polars
        return y.to_list()
    is_table = isinstance(y, np.ndarray) and y.ndim == 2 and y.dtype.kind in "UO"
    if is_table and any(isinstance(text, str) for text in y.flat):
        return y.tolist()
    return y


def _check_numeric_table(table: Any, name: str) -> None:
    """Raise ValueError for a table of captions and other columns; features are numbers."""
    kinds = {getattr(dtype, "kind", "O") for dtype in getattr(table, "dtypes", "O")}
    if kinds <= set("fiub") or np.asarray(table).dtype.kind in "fiub":
        return
    columns = table.columns if hasattr(table, "dtypes") else table.column_names
    raise ValueError(
        f"{name} is a table with the columns {format_list(columns)}. Pass the column that holds "
        f"captions; if several do, pass a list per image, such as {name}.values.tolist() of "
        "pandas. If the columns are features, convert them to numbers."
    )


def holds_texts(y: Any) -> bool:
    """Return whether y holds captions (or lists of captions) rather than numbers."""
    kind = getattr(getattr(y, "dtype", None), "kind", None)
    if issparse(y) or kind in ("f", "i", "u", "b", "c") or not hasattr(y, "__len__"):
        return False
    if getattr(y, "ndim", 1) != 1:
        return False
    lists = (item if isinstance(item, list | tuple | np.ndarray) else [item] for item in y)
    return any(isinstance(text, str) for texts in lists for text in texts)


def holds_images(X: Any) -> bool:
    """Return whether X holds paths, images or bytes rather than rows of features."""
    is_indexed = hasattr(X, "__getitem__") and hasattr(X, "__len__") and not isinstance(X, Mapping)
    is_table = hasattr(X, "columns") or issparse(X) or getattr(X, "ndim", 1) == 2
    if is_table or not is_indexed or not len(X):
        return False
    if getattr(X, "ndim", 1) == 3 and X.dtype != np.uint8:  # features with a dimension too many
        return False
    first = get_first(X)
    # A torch dataset returns tuples of an image and a label, about which encoders raise an error.
    if is_row(first):
        return isinstance(first, tuple) and any(map(is_image, first[:1]))
    # A column of pandas has the accessor `str` only if it holds texts, which are paths here.
    return hasattr(X, "str") or is_image(first)


def flatten_captions(y: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    """Return all captions in one list, and the row of y of each caption.

    ValueError names the rows whose captions are missing, empty or not text.
    """
    captions: list[str] = []
    rows: list[int] = []
    errors: dict[int, str] = {}
    for row, item in enumerate(y):
        row_captions = list(item) if isinstance(item, list | tuple | np.ndarray) else [item]
        if not row_captions:
            errors[row] = "an empty list of captions"
        for caption in row_captions:
            if not isinstance(caption, str):
                errors[row] = f"{caption!r} is not a text"
            elif not caption.strip():
                errors[row] = f"{caption!r} is an empty caption"
            else:
                captions.append(str.__str__(caption))
                rows.append(row)
    if errors:
        remedy = "Pass a text for each of these images, or leave the images out."
        raise ValueError(summarize_errors(errors, "caption") + remedy)
    return captions, np.array(rows, dtype=np.intp)


def encode_texts(encoder: Any, texts: list[str]) -> Any:
    """Return dense features of texts, and warn of texts whose features are zeros."""
    features = encode_items(encoder, texts, "text")
    if np.ndim(features) != 2:
        return features  # for the checks of features
    unknown = [texts[row] for row in np.flatnonzero(~np.asarray(features).any(axis=1))]
    if unknown:
        count = "1 text" if len(unknown) == 1 else f"{len(unknown)} texts"
        warn(
            f"The text encoder knows no term of {count} ({format_list(unknown)}): all their "
            "features are zero, so that their similarities to images are arbitrary. Rephrase "
            "them, or use an encoder whose vocabulary has their words."
        )
    return features


def encode_unique(
    encode: Callable[[list[str]], Any], captions: list[str], rows: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Return features of the distinct captions, and the row of each caption among them.

    EncodingError names the rows in y of captions that cannot be encoded.
    """
    numbers = number_distinct(captions)
    try:
        return encode(list(dict.fromkeys(captions))), numbers
    except EncodingError as error:
        first_rows = rows[np.unique(numbers, return_index=True)[1]]
        raise renumber_errors(error, first_rows, "caption") from None


def renumber_errors(
    error: EncodingError, rows: Sequence[int] | np.ndarray, noun: str
) -> EncodingError:
    """Return an error about some rows with their row numbers among all rows of the user."""
    errors = {int(rows[row]): reason for row, reason in error.errors.items()}
    remedy = str(error).rpartition("\n")[2]  # the last line, which follows those about rows
    return EncodingError(summarize_errors(errors, noun) + remedy, errors)


class EncodedPairs(NamedTuple):
    """Features of both sides, and the rows of each pair.

    `image` has one row per row of X. `text` has one row per distinct caption if `are_captions`,
    else one per row of y. `image_digests` are digests of the content of the images, or None if X
    holds features.
    """

    image: Any
    text: Any
    image_rows: np.ndarray
    text_rows: np.ndarray
    image_digests: np.ndarray | None = None
    are_captions: bool = False

    @property
    def image_items(self) -> np.ndarray:
        """Identifier of the image of each pair: by content, or else by row."""
        if self.image_digests is None:
            return self.image_rows
        return np.unique(self.image_digests, return_inverse=True)[1][self.image_rows]


def check_lengths(X: Any, n_rows: int) -> None:
    """Raise ValueError unless the number of images is the number of rows of captions."""
    n_images = _num_samples(X)
    if n_images != n_rows:
        raise ValueError(
            f"X and y have inconsistent lengths: {n_images} images and {n_rows} rows of "
            "captions. Each image needs its caption (or list of captions) in the same row."
        )


def make_distinct_pairs(encoded: EncodedPairs) -> PairDataset:
    """Return training pairs, in which equal features count as one image or caption.

    Pairs with a row that could not be encoded are left out, with a warning.
    """
    encoded = _drop_missing(encoded)
    image, image_rows = _merge_rows(encoded.image, encoded.image_rows)
    text, text_rows = _merge_rows(encoded.text, encoded.text_rows)
    image_items, text_items = encoded.image_items, encoded.text_rows
    n_images, n_texts = (len(np.unique(items)) for items in (image_items, text_items))
    if len(image) == 1 < max(n_images, n_texts):
        warn("All images have the same features. Check the images, the image encoder or X.")
    items = None
    if (n_images, n_texts) != (len(image), len(text)):
        items = np.column_stack([image_items, image_rows, text_items, text_rows])
    pairs = drop_repeated_pairs(image_rows, text_rows, len(text))
    return PairDataset(image, text, pairs, items=items)


def make_item_pairs(encoded: EncodedPairs, groups: Any = None) -> PairDataset:
    """Return pairs to score, with one row per image and per caption even if features are equal.

    Pairs with a row that could not be encoded are left out, with a warning. All images and
    captions of a group belong together, and rows of a group with equal features are one image or
    caption.
    """
    group_of_row = None if groups is None else number_groups(groups, len(encoded.image))
    encoded = _drop_missing(encoded)
    group = None if group_of_row is None else group_of_row[encoded.image_rows]
    image_items, text_items = encoded.image_items, encoded.text_rows
    are_images = encoded.image_digests is not None
    if group is not None and not are_images:
        image_items = _list_items_in_groups(group, encoded.image, encoded.image_rows)
    if group is not None and not encoded.are_captions:
        text_items = _list_items_in_groups(group, encoded.text, encoded.text_rows)
    image, image_rows = _merge_rows(encoded.image, encoded.image_rows, image_items)
    text, text_rows = _merge_rows(encoded.text, encoded.text_rows, text_items)
    _warn_about_equal_features("image", "X", image, are_images or group is not None)
    if not encoded.are_captions:
        _warn_about_equal_features("text", "y", text, group is not None)
    if group is None:
        return PairDataset(image, text, drop_repeated_pairs(image_rows, text_rows, len(text)))
    ones = np.ones(len(group), dtype=bool)
    images, texts = csr_array((ones, (image_rows, group))), csr_array((ones, (group, text_rows)))
    return PairDataset(image, text, np.column_stack((images @ texts).nonzero()))


def _drop_missing(encoded: EncodedPairs) -> EncodedPairs:
    """Leave out pairs with a row that could not be encoded."""
    is_missing = (
        find_missing_rows(encoded.image)[encoded.image_rows]
        | find_missing_rows(encoded.text)[encoded.text_rows]
    )
    if not is_missing.any():
        return encoded
    missing = np.unique(encoded.image_rows[is_missing])
    warn(
        f"Rows of X and y are left out ({len(missing)} of {len(encoded.image)}), because they "
        f"could not be encoded: {format_list(missing, str)}."
    )
    if is_missing.all():
        raise ValueError("X and y have no pair that could be encoded. Check the files in X.")
    return encoded._replace(
        image_rows=encoded.image_rows[~is_missing],
        text_rows=encoded.text_rows[~is_missing],
    )


def _merge_rows(
    features: Any, rows: np.ndarray, keys: np.ndarray | None = None
) -> tuple[Any, np.ndarray]:
    """Return one row per distinct key in order of appearance, and the row of each key.

    Without keys, rows with the same features are merged.
    """
    keys = _digest_rows(features)[rows] if keys is None else keys
    # `first` and `inverse` refer to the sorted keys, which `new_row` numbers by appearance.
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    del keys  # with a million rows, each array takes much memory
    order = np.argsort(first)
    new_row = np.empty_like(order)
    new_row[order] = np.arange(len(order))
    old_rows = rows[first[order]]
    # If all rows are distinct, which is usual, no features are copied.
    if len(old_rows) == len(features) and np.array_equal(old_rows, np.arange(len(old_rows))):
        return features, new_row[inverse]
    return select(features, old_rows), new_row[inverse]


def _digest_rows(features: Any) -> np.ndarray:
    """Return a digest of each row of features.

    Its 16 bytes are enough to be unique for any number of rows.
    """
    digests = np.empty(len(features), dtype="V16")
    for block in gen_batches(len(features), _BLOCK_SIZE):
        blobs = np.ascontiguousarray(features[block]) + 0.0  # no -0.0
        joined = b"".join(hashlib.blake2b(blob, digest_size=16).digest() for blob in blobs)
        digests[block] = np.frombuffer(joined, dtype="V16")
    return digests


def _list_items_in_groups(group: np.ndarray, features: Any, rows: np.ndarray) -> np.ndarray:
    """Return an identifier of the item of each pair: equal features within a group."""
    _, number = np.unique(_digest_rows(features), return_inverse=True)
    return group * len(features) + number[rows]


def warn_about_equal(kind: str, name: str, keys: np.ndarray, consequence: str) -> None:
    """Warn if many keys of images or texts, or of other rows of a `kind`, equal another key."""
    counts = np.unique(keys, return_counts=True)[1]
    n_equal = int(counts[counts > 1].sum())
    if n_equal and n_equal >= _MIN_SHARE * len(keys):
        warn(
            f"{n_equal:,} of the {len(keys):,} {kind}s of {name} have the same features as "
            f"another {kind}. {consequence}"
        )


def _warn_about_equal_features(kind: str, name: str, features: Any, are_identified: bool) -> None:
    """Warn if many items to be scored have the same features as another item."""
    consequence = "They cannot be distinguished, and ties count against the score."
    if not are_identified:
        kind = "row"
        consequence = (
            "Every row counts as a separate item, and ties count against the score. Pass groups, "
            "such as file names, if equal rows are the same item."
        )
    warn_about_equal(kind, name, _digest_rows(features), consequence)


# Smallest eigenvalue of the covariance of the features, relative to the largest: directions with
# less variance are rounding error.
_MIN_EIGENVALUE = 1e-6

# Relative distance below which two text features are equal up to the rounding of an encoder.
_MAX_DISTANCE = 1e-4


def resolve_head_pairs(head_pairs: Any) -> HeadPairs:
    """Return validated pairs from a ``head_pairs`` parameter other than None."""
    if isinstance(head_pairs, str):
        head_pairs = resolve_encoder(head_pairs, "image", "head_pairs")
    head = head_pairs if isinstance(head_pairs, HeadPairs) else classifier_head_pairs(head_pairs)
    check_sequence(head.texts, "texts of head_pairs", "text", "lists of texts, one per class,")
    weights = np.asarray(head.weights, dtype=np.float64)
    if weights.ndim != 2 or len(weights) < 2 or not np.isfinite(weights).all():
        raise ValueError(
            f"weights of head_pairs have shape {weights.shape} or contain NaN or infinity. Pass "
            "finite numbers of shape (n_classes, n_features) with at least 2 classes."
        )
    return HeadPairs(weights, head.texts, head.owners)


def append_head_pairs(aligner: Any, head: HeadPairs, data: PairDataset) -> PairDataset:
    """Append one image per class, its prototype, and the texts of the class.

    The texts of a class are paired with the same image. Texts that are captions already are not
    added a second time.
    """
    if head.weights.shape[1] != data.image.shape[1]:
        raise ValueError(
            f"weights of head_pairs have {head.weights.shape[1]} features, and X has "
            f"{data.image.shape[1]}. Pass the head of the network that the features of X come "
            "from, with the same pooling."
        )
    texts, owners = _encode_head_texts(aligner, head)
    is_encoded = ~np.isnan(texts[:, 0])
    if not is_encoded.any():
        raise ValueError("texts of head_pairs could not be encoded. Check the text encoder.")
    texts, owners = texts[is_encoded], owners[is_encoded]
    classes, owners = np.unique(owners, return_inverse=True)
    images = compute_prototypes(data.image, head.weights)[classes]
    text, rows = _append_texts(data.text, texts)
    pairs = drop_repeated_pairs(len(data.image) + owners, rows, len(text))
    return replace(
        data,
        image=_append_rows(data.image, images),
        text=text,
        pairs=np.concatenate([data.pairs, pairs]),
        n_prototypes=len(images),
    )


def compute_prototypes(image: Any, weights: np.ndarray) -> np.ndarray:
    """Return estimated image features of each class from the weight vectors of a linear head.

    The weights of a trained head are scaled against the variances of the features. With the mean m
    and the covariance S = U L U' of the features, weights are multiplied by U L^.5 U', which
    undoes half of that scaling, and scaled to the mean distance of the images from m.
    """
    rows = np.arange(len(image))
    image_mean = compute_mean(image, rows)
    distances = [np.linalg.norm(part, axis=1) for part in iter_centered(image, rows, image_mean)]
    mean_distance = np.concatenate(distances).mean()
    values, vectors = np.linalg.eigh(
        compute_covariance(image, image, (rows, rows), (image_mean, image_mean))
    )
    centered_weights = weights - weights.mean(axis=0, dtype=np.float64)
    if not mean_distance or not values[-1] > 0:
        raise ValueError(
            "X has the same features for all images, so the prototypes of head_pairs cannot be "
            "computed. Pass images that differ."
        )
    scale = np.sqrt(np.maximum(values / values[-1], _MIN_EIGENVALUE))
    directions = (centered_weights @ vectors * scale) @ vectors.T
    mean_norm = np.linalg.norm(directions, axis=1).mean()
    if not mean_norm > 0:
        raise ValueError("weights of head_pairs are the same for all classes. Check the head.")
    return (image_mean + directions * (mean_distance / mean_norm)).astype(np.float32)


def _encode_head_texts(aligner: Any, head: HeadPairs) -> tuple[np.ndarray, np.ndarray]:
    """Return features of the texts, and the class of each."""
    n_classes = len(head.weights)
    if isinstance(head.texts, np.ndarray) and head.texts.dtype.kind in "fiub":
        return _check_head_features(aligner, head.texts, head.owners, n_classes)
    if len(head.texts) != n_classes or head.owners is not None:
        with_owners = "" if head.owners is None else " with owners"
        raise ValueError(
            f"head_pairs has weights of {n_classes} classes and texts of {len(head.texts)}"
            f"{with_owners}. Pass one list of texts per class, and owners=None."
        )
    if not hasattr(aligner, "text_encoder_"):
        raise ValueError(
            "head_pairs has texts, and y holds features. Pass captions with a text_encoder, or "
            "HeadPairs(weights, texts, owners) whose texts are features."
        )
    texts, owners = _flatten_head_texts(head.texts)
    features = aligner._encode_texts(list(dict.fromkeys(texts)), reset=False)
    return features[number_distinct(texts)], np.array(owners)


def _flatten_head_texts(texts_by_class: Iterable[Any]) -> tuple[list[str], list[int]]:
    """Return the texts of all classes, each of which has one or several, and the class of each."""
    texts: list[str] = []
    owners: list[int] = []
    for owner, class_texts in enumerate(texts_by_class):
        for text in [class_texts] if isinstance(class_texts, str) else class_texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"head_pairs has the text {text!r} for class {owner}. Pass a non-empty str."
                )
            texts.append(text)
            owners.append(owner)
    if not texts:
        raise ValueError("head_pairs has no texts. Pass at least one text.")
    return texts, owners


def _check_head_features(
    aligner: Any, texts: np.ndarray, owners: Any, n_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return valid features of texts, and the class of each."""
    owners = np.arange(n_classes) if owners is None else np.asarray(owners)
    n_texts = len(texts)
    if owners.shape != (n_texts,) or owners.dtype.kind not in "iu":
        raise ValueError(
            f"owners of head_pairs must be {n_texts} integers, the class of each of the "
            f"{n_texts} texts, or None with one text per class."
        )
    if n_texts and not (owners.min() >= 0 and owners.max() < n_classes):
        raise ValueError(f"owners of head_pairs must be from 0 to {n_classes - 1}, the classes.")
    if texts.shape[-1] != aligner.n_text_features_in_:
        raise ValueError(
            f"texts of head_pairs have {texts.shape[-1]} features, and y has "
            f"{aligner.n_text_features_in_}. Pass features of the same text encoder."
        )
    return aligner._get_text_features(texts, reset=False), owners


def _append_texts(text: Any, features: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the captions with the new texts appended, and the row of each of `features`."""
    distinct, inverse = np.unique(features, axis=0, return_inverse=True)
    nearest = _find_nearest_rows(distinct, text)
    # Features of equal texts may differ by rounding, because they depend on the batch.
    distance = np.linalg.norm(distinct - text[nearest], axis=1)
    is_caption = distance <= _MAX_DISTANCE * np.linalg.norm(distinct, axis=1)
    rows = np.where(is_caption, nearest, len(text) - 1 + np.cumsum(~is_caption))
    return _append_rows(text, distinct[~is_caption]), rows[inverse.reshape(-1)]


def _find_nearest_rows(queries: np.ndarray, text: Any) -> np.ndarray:
    """Return the row of `text` that is nearest to each query."""
    nearest, min_distance = np.zeros(len(queries), np.intp), np.full(len(queries), np.inf)
    for block in row_blocks(text):
        row, distance = pairwise_distances_argmin_min(queries, text[block])
        is_closer = distance < min_distance
        nearest[is_closer] = block.start + row[is_closer]
        min_distance[is_closer] = distance[is_closer]
    return nearest


def _append_rows(features: Any, rows: np.ndarray) -> Any:
    if isinstance(features, StoredRows):
        return features.append(rows)
    return np.concatenate([features, rows])
