"""Embeddings of the classes of a zero-shot classifier, computed once for an aligner."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import csc_array
from sklearn.base import clone
from tqdm import tqdm

from ._forks import ForkSafeLock
from ._numbers import ignores_underflow
from ._warnings import warn
from .aligners._embedding_digest import embedding_digest
from .encoders._base import FrozenEncoder
from .prompts import prompts_of

_PROMPTS_AT_ONCE = 16_384
_EMBEDDING_BYTES = 2**27
_MOST_BYTES = 2**28
_DIGITS = 4

# Kept outside the classifiers: predicting leaves a classifier as it was, and clones, refits and
# copies in a worker share what was computed. Without the prompts' own features, which are many.
_kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
_lock = ForkSafeLock()
_tokens: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_next_token = itertools.count()


def embed_labels(
    text_side: Any, names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Return the mean embedding of every class's prompts, scaled to length 1.

    Parameters
    ----------
    text_side : aligner
        Has `transform_text`, and a ``fingerprint_`` of its weights if it is one of ours.
    names : mapping of length n_classes
        The names of every class, in the order of the rows returned.
    templates : tuple of str
        What the names are put into.

    Returns
    -------
    embeddings : ndarray of shape (n_classes, n_components)
        Not to be written to.

    Raises
    ------
    ValueError
        When the text encoder gives up a prompt; the message names the class.
    """
    asked = [
        _identity(text_side),
        templates,
        [[str(label), *some] for label, some in names.items()],
    ]
    key = hashlib.sha256(json.dumps(asked).encode()).digest()
    with _lock:
        embeddings = _kept.get(key)
        if embeddings is not None:
            _kept.move_to_end(key)
            return embeddings
    embeddings = _class_means(text_side, names, templates)
    lost = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if lost.size:
        raise ValueError(
            f"The text encoder gives no numbers for the class {list(names)[lost[0]]!r}: describe "
            "it in other words."
        )
    _warn_of_twins(names, embeddings)
    with _lock:
        _kept[key] = embeddings
        while len(_kept) > 1 and sum(some.nbytes for some in _kept.values()) > _MOST_BYTES:
            _kept.popitem(last=False)
    return embeddings


def _identity(text_side: Any) -> str:
    """Say what embeddings of texts depend on besides the texts."""
    digest = embedding_digest(text_side)
    if isinstance(getattr(text_side, "text_encoder_", None), FrozenEncoder):
        return digest
    # Other encoders may depend on more than their parameters, so each object has an identity.
    with _lock:
        token = _tokens.get(text_side)
        if token is None:
            token = _tokens[text_side] = next(_next_token)
    return f"{digest} {token}"


@ignores_underflow
def _class_means(
    text_side: Any, names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Add up the embeddings of distinct prompts, some at a time, over the classes they are of."""
    numbers: dict[str, int] = {}
    class_of: list[int] = []
    number_of: list[int] = []
    for row, (label, some) in enumerate(names.items()):
        prompts = prompts_of(label, some, templates)
        number_of += [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
        class_of += [row] * len(prompts)
    belongs = csc_array(
        (np.ones(len(class_of), np.float32), (class_of, number_of)),
        shape=(len(names), len(numbers)),
    )
    sums: np.ndarray | None = None
    for start, embeddings in _embedded(text_side, list(numbers)):
        some_of = belongs[:, start : start + len(embeddings)]
        rows = np.unique(some_of.indices)
        if sums is None:
            sums = np.zeros((len(names), embeddings.shape[1]), embeddings.dtype)
        sums[rows] += some_of[rows] @ embeddings
    assert sums is not None
    # All captions alike say nothing of any text: its embedding is zero.
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    sums /= np.where(length > 0, length, 1)
    return sums


def _embedded(text_side: Any, prompts: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the embeddings of runs of prompts, each with the place of the first of them."""
    size = min(_PROMPTS_AT_ONCE, _EMBEDDING_BYTES // (4 * _width(text_side)) + 1)
    if len(prompts) <= size:
        yield 0, np.asarray(text_side.transform_text(prompts))
        return
    quiet, verbose = _for_many(text_side)
    with tqdm(
        total=len(prompts), unit="prompt", desc="labels", disable=not verbose, delay=0.5
    ) as progress:
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            yield start, np.asarray(quiet.transform_text(some))
            progress.update(len(some))


def _width(text_side: Any) -> int:
    return int(getattr(text_side, "n_components_", 1))


def _for_many(text_side: Any) -> tuple[Any, bool]:
    """Return the aligner for prompts by the thousand, and whether to show how far it is.

    Its encoder shows no bar a call, and does not drive all other features out of the memory that
    encoders share. A cache on disk is used: a run that was stopped goes on from there.
    """
    encoder = getattr(text_side, "text_encoder_", None)
    if isinstance(encoder, FrozenEncoder):
        quiet = copy.copy(text_side)
        quiet.text_encoder_ = _quiet(encoder)
        return quiet, bool(encoder.verbose)
    if isinstance(getattr(text_side, "text_encoder", None), FrozenEncoder) and hasattr(
        text_side, "cache"
    ):  # CLIP's is made of its own parameters
        return _quiet(text_side), bool(text_side.verbose)
    return text_side, False


def _quiet(estimator: Any) -> Any:
    cache = None if estimator.cache == "memory" else estimator.cache
    return clone(estimator).set_params(cache=cache, verbose=0)


def _warn_of_twins(classes: Iterable[Any], embeddings: np.ndarray) -> None:
    """Tell of names that the text encoder cannot tell apart, such as characters unknown to it."""
    first: dict[bytes, Any] = {}
    for label, row in zip(classes, embeddings, strict=True):
        # Rounded: the last bits depend on what else was in the batch. Nor is -0 another number.
        rounded = row.round(_DIGITS) + 0.0
        digest = hashlib.blake2b(rounded.tobytes(), digest_size=16).digest()
        twin = first.setdefault(digest, label)
        if twin != label:
            warn(
                f"The classes {twin!r} and {label!r} have the same embedding: the text encoder "
                "cannot tell their names apart. Describe them in other words.",
            )
            return
