"""Embeddings of labels: means of the embeddings of their prompts, and their caches."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from scipy.sparse import csc_array
from sklearn.base import BaseEstimator, clone

from ..aligners.fitted_images import digest_embedding, number_object
from ..encoders.base import FrozenEncoder
from ..features import DiskFeatureCache, open_cache
from ..prompts import describe_similar_label, prompts_of, resolve_templates
from ..utils.concurrency import LRUCache
from ..utils.linalg import normalize_rows
from ..utils.messages import make_progress_bar, warn
from ..utils.validation import ignores_underflow, number_distinct

# Maximum number of prompts that are encoded together. It bounds the memory for thousands of labels
# with many templates each.
_BLOCK_PROMPTS = 16_384
# Bytes of the embeddings of a block. Embeddings of ASIF have one component per anchor.
_BLOCK_BYTES = 2**27
# Decimals to which embeddings must agree to be reported as equal. The last bits depend on the
# batch in which a prompt was encoded.
_DECIMALS = 4
# The cache is not stored in the classifiers, so that predicting leaves a classifier unchanged, and
# clones, refits and copies in a worker share embeddings. It holds one embedding per class, because
# the embeddings of all prompts would be too many.
_cache: LRUCache[bytes, np.ndarray] = LRUCache(max_bytes=2**28, keep_newest=True)
# With fewer prompts, reading embeddings from disk does not save a noticeable time.
_MIN_STORED_PROMPTS = 1000
# Embeddings of ASIF have one component per anchor, and would fill the disk.
_MAX_STORED_COMPONENTS = 4096


def embed_labels(
    aligner: BaseEstimator, names: Mapping[Any, list[str]], templates: str | Sequence[str]
) -> np.ndarray:
    """Return the mean embedding of each class, L2-normalized, in a cached array: do not write."""
    templates = resolve_templates(templates)
    named_classes = [[str(label), *class_names] for label, class_names in names.items()]
    parts = json.dumps([_identify(aligner), templates, named_classes])
    key = hashlib.sha256(parts.encode()).digest()
    embeddings = _cache.get(key)
    if embeddings is not None:
        return embeddings
    embeddings = _embed_with_disk_cache(aligner, names, templates)
    failed = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if failed.size:
        raise ValueError(
            f"labels has the class {list(names)[failed[0]]!r}, for which the text encoder returns "
            "NaN. Describe it by other texts."
        )
    _warn_if_indistinguishable(names, embeddings)
    _cache.put(key, embeddings)
    return embeddings


def _identify(aligner: BaseEstimator) -> str:
    """Return a text that changes with everything that embeddings of texts depend on."""
    digest = digest_embedding(aligner)
    if isinstance(getattr(aligner, "text_encoder_", None), FrozenEncoder):
        return digest
    weights = getattr(aligner, "_weights_fingerprint", None)  # of a CLIP model on the hub
    # Encoders of other libraries may depend on more than their parameters, so each object differs.
    return f"{digest} {weights} {number_object(aligner)}"


def _embed_with_disk_cache(
    aligner: Any, names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Return the embeddings of the classes; many of them are stored in the cache of the encoder.

    A new process then reads them, instead of computing the head for the features of all prompts.
    """
    prompts = [prompts_of(label, class_names, templates) for label, class_names in names.items()]
    if not _may_store_embeddings(aligner) or sum(map(len, prompts)) < _MIN_STORED_PROMPTS:
        return _embed_classes(aligner, prompts)
    encoder = aligner.text_encoder_
    parts = [type(aligner).__name__, aligner.fingerprint_, str(getattr(aligner, "dtype", None))]
    identity = hashlib.sha256(encoder._digest_identity() + json.dumps(parts).encode()).digest()
    keys = [hashlib.sha256(identity + json.dumps(texts).encode()).digest() for texts in prompts]
    with open_cache(encoder.cache) as cache:
        embeddings = cache.get_many(keys)
    missing = {
        key: texts for key, texts in zip(keys, prompts, strict=True) if key not in embeddings
    }
    if missing:
        computed = dict(zip(missing, _embed_classes(aligner, [*missing.values()]), strict=True))
        with open_cache(encoder.cache) as cache:
            cache.put_many({key: row for key, row in computed.items() if np.isfinite(row).all()})
        embeddings |= computed
    return np.stack([embeddings[key] for key in keys])


def _may_store_embeddings(aligner: Any) -> bool:
    """Return whether embeddings may be stored: in full precision, and with few components."""
    encoder = getattr(aligner, "text_encoder_", None)
    if not isinstance(encoder, FrozenEncoder) or not hasattr(aligner, "fingerprint_"):
        return False
    if getattr(aligner, "n_components_", 1) > _MAX_STORED_COMPONENTS:
        return False
    cache = open_cache(encoder.cache)
    return isinstance(cache, DiskFeatureCache) and cache.dtype == "float32"


@ignores_underflow
def _embed_classes(aligner: BaseEstimator, prompts: list[list[str]]) -> np.ndarray:
    """Return the mean embedding of the prompts of each class; each prompt is encoded once."""
    flat_prompts = list(chain.from_iterable(prompts))
    unique_prompts = list(dict.fromkeys(flat_prompts))
    class_indices = np.repeat(np.arange(len(prompts)), [len(texts) for texts in prompts])
    membership = csc_array(
        (np.ones(len(class_indices), np.float32), (class_indices, number_distinct(flat_prompts))),
        shape=(len(prompts), len(unique_prompts)),
    )
    # The sums depend on the order of the blocks in the last bits, so the order is fixed.
    sums: np.ndarray | None = None
    for start, embeddings in _embed_in_blocks(aligner, unique_prompts):
        block_membership = membership[:, start : start + len(embeddings)]
        rows = np.unique(block_membership.indices)
        if sums is None:
            sums = np.zeros((len(prompts), embeddings.shape[1]), embeddings.dtype)
        sums[rows] += block_membership[rows] @ embeddings
    assert sums is not None
    return normalize_rows(sums)


def _embed_in_blocks(
    aligner: BaseEstimator, prompts: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index of the first prompt of each block, and the embeddings of the block."""
    n_components = int(getattr(aligner, "n_components_", 1))
    size = min(_BLOCK_PROMPTS, _BLOCK_BYTES // (4 * n_components) + 1)
    if len(prompts) <= size:
        yield 0, np.asarray(aligner.transform_text(prompts))
        return
    silent_aligner, verbose = _silence(aligner)
    with make_progress_bar(len(prompts), verbose, unit="prompt", desc="labels") as progress:
        for start in range(0, len(prompts), size):
            block = prompts[start : start + size]
            yield start, np.asarray(silent_aligner.transform_text(block))
            progress.update(len(block))


def _silence(aligner: BaseEstimator) -> tuple[Any, int | None]:
    """Return an aligner for thousands of prompts, and ``verbose`` of its encoder.

    Its encoder shows no bar per call. It does not use the memory cache, from which so many prompts
    would evict all other features. A cache on disk is used, so that an interrupted run can resume.
    """
    encoder = getattr(aligner, "text_encoder_", None)
    if isinstance(encoder, FrozenEncoder):
        silent_aligner = copy.copy(aligner)
        silent_aligner.text_encoder_ = _silence_estimator(encoder)
        return silent_aligner, encoder.verbose
    if isinstance(getattr(aligner, "text_encoder", None), FrozenEncoder) and hasattr(
        aligner, "cache"
    ):  # CLIPAligner makes its encoder from its own parameters
        return _silence_estimator(aligner), aligner.verbose
    return aligner, 0


def _silence_estimator(estimator: Any) -> Any:
    cache = None if estimator.cache == "memory" else estimator.cache
    return clone(estimator).set_params(cache=cache, verbose=0)


def _warn_if_indistinguishable(classes: Iterable[Any], embeddings: np.ndarray) -> None:
    """Warn if two classes have the same embedding, for example if the encoder lacks the script."""
    label_of_digest: dict[bytes, Any] = {}
    for label, row in zip(classes, embeddings, strict=True):
        rounded = row.round(_DECIMALS) + 0.0  # adding 0 turns -0 into 0
        digest = hashlib.blake2b(rounded.tobytes(), digest_size=16).digest()
        first = label_of_digest.setdefault(digest, label)
        if first != label:
            advice = describe_similar_label(
                label, [first], "labels, or describe them by other texts"
            )
            warn(
                f"labels has the classes {first!r} and {label!r}, which have the same embedding: "
                "the text encoder cannot distinguish their names. "
                f"{advice or 'Describe them by other texts.'}"
            )
            return
