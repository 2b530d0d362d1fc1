"""Pairs of a classification head, appended to the training pairs of an aligner."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from ..encoders import HeadPairs, classifier_head_pairs
from ..encoders.resolve import resolve_encoder
from ..training import StoredRows, row_blocks
from ..training.data import PairDataset
from ..utils.linalg import centered, covariance, mean
from ..utils.validation import check_sequence

_SMALLEST_EIGENVALUE = 1e-6
_SAME_TEXT = 1e-4


def resolve_head_pairs(given: Any) -> HeadPairs:
    """Return the pairs of an image encoder's head, or those given, checked by themselves."""
    if isinstance(given, str):
        given = resolve_encoder(given, "image", "head_pairs")
    head = given if isinstance(given, HeadPairs) else classifier_head_pairs(given)
    check_sequence(head.texts, "texts of head_pairs", "text", "lists of texts, one per class,")
    weights = np.asarray(head.weights, dtype=np.float64)
    if weights.ndim != 2 or len(weights) < 2 or not np.isfinite(weights).all():
        raise ValueError(
            "The weights of head_pairs must be finite numbers of shape (n_classes, n_features) "
            f"with at least 2 classes, not of shape {weights.shape}."
        )
    return HeadPairs(weights, head.texts, head.owners)


def with_head_pairs(aligner: Any, head: HeadPairs, data: PairDataset) -> PairDataset:
    """Append one image a class, its prototype, and the class's texts.

    A class with several texts is several pairs of one image. A text that is among the captions
    already is not added a second time.
    """
    if head.weights.shape[1] != data.image.shape[1]:
        raise ValueError(
            f"The weights of head_pairs have {head.weights.shape[1]} features, and X has "
            f"{data.image.shape[1]}: head_pairs must be of the network that the features of X "
            "come from, with the same pooling."
        )
    texts, owners = _texts(aligner, head)
    known = ~np.isnan(texts[:, 0])  # an encoder may have given a text up
    if not known.any():
        raise ValueError("None of the texts of head_pairs could be encoded.")
    texts, owners = texts[known], owners[known]
    classes, owners = np.unique(owners, return_inverse=True)
    images = prototypes(data.image, head.weights)[classes]
    text, rows = _shared(data.text, texts)
    new = np.column_stack([len(data.image) + owners, rows])
    return data.replace(
        image=_appended(data.image, images),
        text=text,
        pairs=np.concatenate([data.pairs, np.unique(new, axis=0)]),
        n_prototypes=len(images),
    )


def prototypes(image: Any, weights: np.ndarray) -> np.ndarray:
    """Return what images of classes would look like, given the head's weight vectors.

    Weight vectors answer to the spread of the features: with mean m and covariance S = U L U' of
    the features, half of the spread is put back by U L^.5 U', and their mean norm is made that of
    the images around m.

    Parameters
    ----------
    image : ndarray of shape (n_images, n_features)
        Features of distinct images.
    weights : ndarray of shape (n_classes, n_features)
        The head's weight matrix.

    Returns
    -------
    prototypes : ndarray of shape (n_classes, n_features) and dtype float32
        In the space of the features.
    """
    rows = np.arange(len(image))
    middle = mean(image, rows)
    distances = [np.linalg.norm(part, axis=1) for part in centered(image, rows, middle)]
    spread = np.concatenate(distances).mean()
    values, vectors = np.linalg.eigh(covariance(image, image, (rows, rows), (middle, middle)))
    around = weights - weights.mean(axis=0, dtype=np.float64)
    if not spread or not values[-1] > 0:
        raise ValueError(
            "head_pairs needs images that differ: all features of X are the same, so they do "
            "not say where the classes of the head lie."
        )
    scale = np.sqrt(np.maximum(values / values[-1], _SMALLEST_EIGENVALUE))
    directions = (around @ vectors * scale) @ vectors.T
    length = np.linalg.norm(directions, axis=1).mean()
    if not length > 0:
        raise ValueError("The weights of head_pairs are the same for all classes.")
    return (middle + directions * (spread / length)).astype(np.float32)


def _texts(aligner: Any, head: HeadPairs) -> tuple[np.ndarray, np.ndarray]:
    """Return features of the texts, and the class of each."""
    n_classes = len(head.weights)
    if isinstance(head.texts, np.ndarray):
        owners = np.arange(n_classes) if head.owners is None else np.asarray(head.owners)
        _check_owners(owners, len(head.texts), n_classes)
        return aligner._text_features(head.texts, reset=False), owners
    if len(head.texts) != n_classes:
        raise ValueError(
            f"head_pairs has weights of {n_classes} classes and texts of {len(head.texts)}."
        )
    if not hasattr(aligner, "text_encoder_"):
        raise ValueError(
            "head_pairs has texts as words, and y holds features: pass captions with a "
            "text_encoder, or HeadPairs(weights, texts, owners) whose texts are features too."
        )
    words: list[str] = []
    owner_of_word: list[int] = []
    for number, texts in enumerate(head.texts):
        for text in [texts] if isinstance(texts, str) else texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"Text {text!r} of class {number} of head_pairs is no text.")
            words.append(text)
            owner_of_word.append(number)
    if not words:
        raise ValueError("head_pairs has no texts.")
    distinct = list(dict.fromkeys(words))
    features = aligner._encoded_texts(distinct, reset=False)
    at = {text: row for row, text in enumerate(distinct)}
    return features[[at[text] for text in words]], np.array(owner_of_word)


def _check_owners(owners: np.ndarray, n_texts: int, n_classes: int) -> None:
    if owners.shape != (n_texts,) or owners.dtype.kind not in "iu":
        raise ValueError(
            f"head_pairs has {n_texts} texts: owners must be as many integers, the class of each "
            "text (or None with one text a class)."
        )
    if n_texts and not (owners.min() >= 0 and owners.max() < n_classes):
        raise ValueError(f"owners of head_pairs must be from 0 to {n_classes - 1}, the classes.")


def _shared(text: Any, new: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the captions with the new texts behind, and the row of each new text there."""
    new, number = np.unique(new, axis=0, return_inverse=True)
    nearest = _nearest(new, text)
    # An encoder's batches differ in the last bits, so equal texts need not have equal features.
    away = np.linalg.norm(new - text[nearest], axis=1)
    known = away <= _SAME_TEXT * np.linalg.norm(new, axis=1)
    rows = np.where(known, nearest, len(text) - 1 + np.cumsum(~known))
    return _appended(text, new[~known]), rows[number.reshape(-1)]


def _nearest(new: np.ndarray, text: Any) -> np.ndarray:
    """Return which row of text is nearest to each new one."""
    nearest, least = np.zeros(len(new), dtype=np.intp), np.full(len(new), np.inf)
    for rows in row_blocks(text):
        at, distance = pairwise_distances_argmin_min(new, text[rows])
        closer = distance < least
        nearest[closer], least[closer] = rows.start + at[closer], distance[closer]
    return nearest


def _appended(features: Any, rows: np.ndarray) -> Any:
    if isinstance(features, StoredRows):
        return features.append(rows)
    return np.concatenate([features, rows])
