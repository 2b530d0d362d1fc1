"""Pairs of a classification head, appended to the training pairs of an aligner."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from ..encoders.head_pairs import HeadPairs, classifier_head_pairs
from ..encoders.resolve import resolve_encoder
from ..features.memmap import StoredRows, row_blocks
from ..training.data import PairDataset
from ..utils.linalg import centered, covariance, mean
from ..utils.validation import check_sequence

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
    texts, owners = _text_features(aligner, head)
    is_encoded = ~np.isnan(texts[:, 0])
    if not is_encoded.any():
        raise ValueError("texts of head_pairs could not be encoded. Check the text encoder.")
    texts, owners = texts[is_encoded], owners[is_encoded]
    classes, owners = np.unique(owners, return_inverse=True)
    images = compute_prototypes(data.image, head.weights)[classes]
    text, rows = _append_texts(data.text, texts)
    pairs = np.column_stack([len(data.image) + owners, rows])
    return data.replace(
        image=_append(data.image, images),
        text=text,
        pairs=np.concatenate([data.pairs, np.unique(pairs, axis=0)]),
        n_prototypes=len(images),
    )


def compute_prototypes(image: Any, weights: np.ndarray) -> np.ndarray:
    """Return estimated image features of each class from the weight vectors of a linear head.

    The weights of a trained head are scaled against the variances of the features. With the mean m
    and the covariance S = U L U' of the features, weights are multiplied by U L^.5 U', which
    undoes half of that scaling, and scaled to the mean distance of the images from m.
    """
    rows = np.arange(len(image))
    image_mean = mean(image, rows)
    distances = [np.linalg.norm(part, axis=1) for part in centered(image, rows, image_mean)]
    mean_distance = np.concatenate(distances).mean()
    values, vectors = np.linalg.eigh(
        covariance(image, image, (rows, rows), (image_mean, image_mean))
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


def _text_features(aligner: Any, head: HeadPairs) -> tuple[np.ndarray, np.ndarray]:
    """Return features of the texts, and the class of each."""
    n_classes = len(head.weights)
    if isinstance(head.texts, np.ndarray):
        owners = np.arange(n_classes) if head.owners is None else np.asarray(head.owners)
        _check_owners(owners, len(head.texts), n_classes)
        if head.texts.shape[-1] != aligner.n_text_features_in_:
            raise ValueError(
                f"texts of head_pairs have {head.texts.shape[-1]} features, and y has "
                f"{aligner.n_text_features_in_}. Pass features of the same text encoder."
            )
        return aligner._text_features(head.texts, reset=False), owners
    if len(head.texts) != n_classes:
        raise ValueError(
            f"head_pairs has weights of {n_classes} classes and texts of {len(head.texts)}. Pass "
            "one list of texts per class."
        )
    if not hasattr(aligner, "text_encoder_"):
        raise ValueError(
            "head_pairs has texts, and y holds features. Pass captions with a text_encoder, or "
            "HeadPairs(weights, texts, owners) whose texts are features."
        )
    texts: list[str] = []
    owners_of_texts: list[int] = []
    for number, class_texts in enumerate(head.texts):
        for text in [class_texts] if isinstance(class_texts, str) else class_texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"head_pairs has the text {text!r} for class {number}. Pass a non-empty str."
                )
            texts.append(text)
            owners_of_texts.append(number)
    if not texts:
        raise ValueError("head_pairs has no texts. Pass at least one text.")
    distinct = list(dict.fromkeys(texts))
    features = aligner._encode_texts(distinct, reset=False)
    rows = {text: row for row, text in enumerate(distinct)}
    return features[[rows[text] for text in texts]], np.array(owners_of_texts)


def _check_owners(owners: np.ndarray, n_texts: int, n_classes: int) -> None:
    if owners.shape != (n_texts,) or owners.dtype.kind not in "iu":
        raise ValueError(
            f"owners of head_pairs must be {n_texts} integers, the class of each of the "
            f"{n_texts} texts, or None with one text per class."
        )
    if n_texts and not (owners.min() >= 0 and owners.max() < n_classes):
        raise ValueError(f"owners of head_pairs must be from 0 to {n_classes - 1}, the classes.")


def _append_texts(text: Any, features: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the captions with the new texts appended, and the row of each of `features`."""
    distinct, inverse = np.unique(features, axis=0, return_inverse=True)
    nearest = _nearest_rows(distinct, text)
    # Features of equal texts may differ by rounding, because they depend on the batch.
    distance = np.linalg.norm(distinct - text[nearest], axis=1)
    is_caption = distance <= _MAX_DISTANCE * np.linalg.norm(distinct, axis=1)
    rows = np.where(is_caption, nearest, len(text) - 1 + np.cumsum(~is_caption))
    return _append(text, distinct[~is_caption]), rows[inverse.reshape(-1)]


def _nearest_rows(queries: np.ndarray, text: Any) -> np.ndarray:
    """Return the row of `text` that is nearest to each query."""
    nearest, min_distance = np.zeros(len(queries), np.intp), np.full(len(queries), np.inf)
    for block in row_blocks(text):
        row, distance = pairwise_distances_argmin_min(queries, text[block])
        is_closer = distance < min_distance
        nearest[is_closer] = block.start + row[is_closer]
        min_distance[is_closer] = distance[is_closer]
    return nearest


def _append(features: Any, rows: np.ndarray) -> Any:
    if isinstance(features, StoredRows):
        return features.append(rows)
    return np.concatenate([features, rows])
