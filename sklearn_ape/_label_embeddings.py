"""Embeddings of the classes of a zero-shot classifier, computed once for an aligner."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import joblib
import numpy as np

_PROMPTS_AT_ONCE = 16_384
_MOST_LABEL_SETS = 8

# Kept outside the classifiers for as long as the aligner lives: predicting leaves a classifier as
# it was, and clones with one aligner share what was computed.
_kept: WeakKeyDictionary[Any, OrderedDict[str, np.ndarray]] = WeakKeyDictionary()
_lock = threading.Lock()


def embed_labels(text_side: Any, labels: list[Any], prompts: list[list[str]]) -> np.ndarray:
    """Return the mean embedding of every class's prompts, scaled to length 1.

    Parameters
    ----------
    text_side : aligner
        Has `transform_text`, and a ``fingerprint_`` of its weights if it is one of ours.
    labels : list of length n_classes
        For messages.
    prompts : list of list of str
        The sentences that stand for each class.

    Returns
    -------
    embeddings : ndarray of shape (n_classes, n_components)
        Not to be written to.
    """
    fingerprint = getattr(text_side, "fingerprint_", None) or joblib.hash(text_side)
    key = joblib.hash((prompts, fingerprint))
    with _lock:
        kept = _kept.setdefault(text_side, OrderedDict())
        embeddings = kept.get(key)
    if embeddings is None:
        parts = [_class_means(text_side, some) for some in _chunks(prompts)]
        embeddings = np.concatenate(parts)
        _warn_of_twins(labels, embeddings)
        with _lock:
            kept[key] = embeddings
            while len(kept) > _MOST_LABEL_SETS:
                kept.popitem(last=False)
    return embeddings


def _chunks(prompts: list[list[str]]) -> Iterable[list[list[str]]]:
    """Yield runs of classes whose prompts are embedded at once, to bound memory."""
    chunk: list[list[str]] = []
    n_prompts = 0
    for sentences in prompts:
        chunk.append(sentences)
        n_prompts += len(sentences)
        if n_prompts >= _PROMPTS_AT_ONCE:
            yield chunk
            chunk, n_prompts = [], 0
    if chunk:
        yield chunk


def _class_means(text_side: Any, prompts: list[list[str]]) -> np.ndarray:
    sentences = dict.fromkeys(sentence for some in prompts for sentence in some)
    row = {sentence: number for number, sentence in enumerate(sentences)}
    embeddings = np.asarray(text_side.transform_text(list(row)))
    means = np.stack(
        [embeddings[[row[sentence] for sentence in some]].mean(0) for some in prompts]
    )
    # All captions alike say nothing of any text: its embedding is zero.
    length = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.where(length > 0, length, 1)


def _warn_of_twins(labels: list[Any], embeddings: np.ndarray) -> None:
    """Tell of names that the text encoder cannot tell apart, such as characters unknown to it."""
    first: dict[bytes, Any] = {}
    # Rounded: the last bits depend on what else was in the batch.
    for label, row in zip(labels, embeddings.round(4) + 0.0, strict=True):
        twin = first.setdefault(row.tobytes(), label)
        if twin != label:
            warnings.warn(
                f"The classes {twin!r} and {label!r} have the same embedding: the text encoder "
                "cannot tell their names apart. Describe them in other words.",
                UserWarning,
                stacklevel=5,
            )
            return
