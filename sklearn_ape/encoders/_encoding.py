"""Batched encoding with a cache, in memory and into a file of features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import clone

from ..devices import default_state
from ..features.cache import FeatureCache, iter_blocks, open_cache
from ..features.feature_file import FeatureFile, OtherContentError
from ..utils.concurrency import ForkSafeLock, LRUCache, delay_forks, map_threaded
from ..utils.messages import (
    HiddenBar,
    advance_within_block,
    escape_controls,
    make_block_bar,
    make_progress_bar,
)
from ..utils.validation import check_choice, check_integer
from ._engine import Engine
from .items import BYTES, EncodingError, ItemError, describe_item
from .weights import Network, find_random_weights, raise_for_random_weights

if TYPE_CHECKING:
    from tqdm import tqdm

    from .base import FrozenEncoder


class CacheInfo(NamedTuple):
    """Numbers of features that were available and that the network computed.

    Attributes
    ----------
    hits : int
        Number of features that were read from the cache, or are those of an equal item of the same
        call.
    misses : int
        Number of features that the network computed.
    """

    hits: int
    misses: int


# By identity. A parameter search creates many identities, so only the latest are kept.
_cache_counts: LRUCache[bytes, CacheInfo] = LRUCache(max_entries=1024)
# Numbers of features. Without them, a new encoder would have to compute its network.
n_features_by_identity: LRUCache[bytes, int] = LRUCache(max_entries=1024)
# Names of the random weights that features depend on.
_random_weights: LRUCache[bytes, list[str]] = LRUCache(max_entries=1024)

# Locks per weights. The weak reference drops a lock once no thread holds it or waits for it.
_locks_by_weights: WeakValueDictionary[str, ForkSafeLock] = WeakValueDictionary()

# Guards `_cache_counts` and `_locks_by_weights`.
_registry_lock = ForkSafeLock()


def cache_info(identity: bytes) -> CacheInfo:
    """Return the counts of all encoders with an identity."""
    return _cache_counts.get(identity) or CacheInfo(0, 0)


def _count(identity: bytes, hits: int = 0, misses: int = 0) -> None:
    with _registry_lock:
        counts = cache_info(identity)
        _cache_counts.put(identity, CacheInfo(counts.hits + hits, counts.misses + misses))


def encode(encoder: FrozenEncoder, items: list[Any]) -> tuple[np.ndarray, dict[int, str]]:
    """Return features of items, and the reasons for rows that cannot be encoded, which are NaN.

    Each content is encoded once, and stored in the cache.
    """
    identity = encoder._digest_identity()
    errors: dict[int, str] = {}
    first_rows: dict[bytes, int] = {}
    # The other rows of the same content. A list for every content would take much memory.
    duplicates: dict[bytes, list[int]] = {}
    with make_progress_bar(
        len(items), encoder.verbose, desc="Reading", unit=encoder._modality, leave=False
    ) as progress:
        for row, item in enumerate(items):
            try:
                key = _compute_key(encoder, identity, item)
            except ItemError as error:
                errors[row] = describe_item(item, error)
            else:
                if first_rows.setdefault(key, row) != row:
                    duplicates.setdefault(key, []).append(row)
            progress.update()

    # Threads that encode the same items wait for each other instead of encoding them twice.
    with _registry_lock:
        lock = _locks_by_weights.setdefault(encoder._get_weights_key(), ForkSafeLock())
    with default_state(), lock, open_cache(encoder.cache) as cache:
        features, cached = _read_cached(cache, first_rows, len(items))
        missing = {
            key: [row, *duplicates.get(key, ())]
            for key, row in first_rows.items()
            if key not in cached
        }
        _count(identity, hits=len(items) - len(errors) - len(missing))
        computed = _encode_missing(encoder, items, missing, cache, identity, errors)

    if features is None:
        width = len(next(iter(computed.values()))) if computed else encoder._n_features_out
        features = np.empty((len(items), width), dtype=np.float32)
    n_features_by_identity.put(identity, features.shape[1])
    for key, feature in computed.items():
        features[first_rows[key]] = feature
    for key, rows in duplicates.items():
        features[rows] = features[first_rows[key]]
    features[list(errors)] = np.nan
    return features, dict(sorted(errors.items()))


def _read_cached(
    cache: FeatureCache, rows: Mapping[bytes, int], n_rows: int
) -> tuple[np.ndarray | None, set[bytes]]:
    """Return a matrix with the cached features in their rows, or None, and the cached keys."""
    features = None
    cached: set[bytes] = set()
    for keys, block in iter_blocks(cache, rows):
        if features is None:
            features = np.empty((n_rows, block.shape[1]), dtype=np.float32)
        features[[rows[key] for key in keys]] = block
        cached.update(keys)
    return features, cached


def _compute_key(encoder: FrozenEncoder, identity: bytes, item: Any) -> bytes:
    return hashlib.sha256(identity + encoder._digest_item(item)).digest()


def _encode_missing(
    encoder: FrozenEncoder,
    items: list[Any],
    rows: Mapping[bytes, list[int]],
    cache: FeatureCache,
    identity: bytes,
    errors: dict[int, str],
) -> dict[bytes, np.ndarray]:
    """Encode the first item of every key; return features by key, and add errors by row."""

    def report(failures: Mapping[bytes, ItemError]) -> None:
        for key, error in failures.items():
            errors.update({row: describe_item(items[row], error) for row in rows[key]})
        encoder._raise_for(errors)

    valid = {}
    failures = {}
    for key, (row, *_) in rows.items():
        try:
            encoder._check_item(items[row])
        except ItemError as error:
            failures[key] = error
        else:
            valid[key] = items[row]
    report(failures)  # together with the errors of items that have no digest
    if not valid:
        return {}

    keys = list(valid)
    keys = [keys[position] for position in encoder._sort_rows(list(valid.values()))]
    features: dict[bytes, np.ndarray] = {}
    with _make_encoder_bar(encoder, identity, len(keys), encoder.verbose) as progress:
        for computed, failures in _iter_batches(encoder, valid, keys, identity):
            # Before an error is raised, so that finished batches are not computed again.
            cache.put_many(computed)
            if hasattr(cache, "round"):  # a cache on disk: as the next call will read them
                computed = {key: cache.round(feature) for key, feature in computed.items()}
            features |= computed
            _count(identity, misses=len(computed))
            progress.update(len(computed) + len(failures))
            report(failures)
    return features


def _make_encoder_bar(
    encoder: FrozenEncoder, identity: bytes, total: int, verbose: int | None
) -> tqdm | HiddenBar:
    name = escape_controls(encoder.model_name)
    # At once if the network is not loaded yet: this takes seconds before the first update.
    delay = None if identity in _random_weights else 0
    return make_block_bar(total, verbose, unit=encoder._modality, desc=name, delay=delay)


# With torch, a small number of items is split into this many batches, so that many cores compute
# one each, or read the next one while a GPU computes.
_N_CPU_BATCHES, _N_GPU_BATCHES = 16, 4


class _Batch(NamedTuple):
    """Prepared items, and errors of those that cannot be prepared; no tensors without keys."""

    keys: list[bytes]
    tensors: tuple[torch.Tensor, ...]
    failures: dict[bytes, ItemError]


def _iter_batches(
    encoder: FrozenEncoder, items: Mapping[bytes, Any], keys: list[bytes], identity: bytes
) -> Iterator[tuple[dict[bytes, np.ndarray], dict[bytes, ItemError]]]:
    """Yield the features of each batch and the errors of items without features."""
    network = encoder._get_network()
    _check_weights(encoder, network, identity)
    engine = encoder._get_engine(len(keys))
    n_threads = encoder._count_threads()
    size = encoder._choose_batch_size(network.device)
    if encoder.batch_size == "auto":
        size = _reduce_batch_size(size, len(keys), engine, n_threads)
    starts = range(0, len(keys), size)

    def prepare(start: int) -> _Batch:
        prepared, failures = {}, {}
        for key in keys[start : start + size]:
            item = items[key]
            try:
                inputs = encoder._prepare_item(network.prepare, item)
                # The key belongs to the content at the start. A file may have changed since then.
                if encoder._may_change(item) and _compute_key(encoder, identity, item) != key:
                    raise ItemError("changed while it was read. Encode it again.")
                prepared[key] = inputs
            except ItemError as error:
                failures[key] = error
        tensors = encoder._make_tensors(network, list(prepared.values())) if prepared else ()
        return _Batch(list(prepared), tensors, failures)

    def compute(batch: _Batch) -> tuple[dict[bytes, np.ndarray], dict[bytes, ItemError]]:
        if not batch.keys:
            return {}, batch.failures
        computed, failures = compute_features(engine, batch.keys, batch.tensors, encoder.dtype_)
        return computed, batch.failures | failures

    if engine.concurrent:
        yield from map_threaded(lambda start: compute(prepare(start)), starts, n_threads)
    else:
        yield from map(compute, map_threaded(prepare, starts, n_threads))


def _reduce_batch_size(size: int, n_items: int, engine: Engine, n_threads: int) -> int:
    """Return a smaller batch size for few items, which keeps all threads busy."""
    # torch's rounding depends on the batch size, which must not depend on n_threads.
    n_torch_batches = _N_CPU_BATCHES if engine.concurrent else _N_GPU_BATCHES
    n_batches = n_torch_batches if engine.name == "torch" else n_threads
    return max(1, min(size, -(-n_items // n_batches)))


def _check_weights(encoder: FrozenEncoder, network: Network, identity: bytes) -> None:
    """Raise ValueError if features depend on weights that the model's files lack."""

    def find() -> list[str]:
        blank = encoder._prepare_item(network.prepare, encoder._make_blank())
        inputs = encoder._make_tensors(network, [blank])
        return find_random_weights(network, encoder._make_module(network), inputs)

    raise_for_random_weights(encoder.model_name, _random_weights.get_or_create(identity, find))


def compute_features(
    engine: Engine, keys: list[bytes], tensors: tuple[torch.Tensor, ...], dtype: str
) -> tuple[dict[bytes, np.ndarray], dict[bytes, ItemError]]:
    """Return the finite features of a batch by key, and an error for every other item."""
    computed, failures = {}, {}
    with delay_forks:
        features = engine(tensors)
    if features.ndim != 2:
        raise ValueError(
            f"The network returns features of shape {features.shape[1:]} per item, not one "
            "vector. Pass another pooling, such as 'mean', or another encoder."
        )
    for key, feature in zip(keys, features, strict=True):
        if np.isfinite(feature).all():
            computed[key] = feature
        else:
            failures[key] = ItemError(
                f"has features that are NaN or infinite in {dtype}. Check the network's weights, "
                "or use a higher precision."
            )
    return computed, failures


class _Chunk(NamedTuple):
    """Result of a worker; `rows` is None if the rows in the file are still valid."""

    number: int
    items_digest: str
    rows: np.ndarray | None
    errors: dict[int, str]


def encode_to_file(
    encoder: FrozenEncoder,
    path: str | PathLike[str],
    X: Iterable[Any],
    chunk_size: int,
    n_jobs: int | None,
    dtype: str,
    overwrite: bool,
    verbose: int | None,
) -> tuple[np.memmap, dict[int, str]]:
    """Encode items into a file; see `FrozenEncoder.encode_to`."""
    check_choice(dtype, "dtype", ("float32", "float16"))
    check_integer(chunk_size, "chunk_size", 1)
    items: Any = X
    if not _is_stream(X):
        items = encoder._as_list(X)
        encoder._warn_about_unsuitable(items)
    n_rows = len(items)
    if not n_rows:
        raise ValueError(f"X is empty: 0 {encoder._modality}s to encode. Pass at least one.")
    identity = encoder._digest_identity()
    source = identity.hex()
    verbose = encoder.verbose if verbose is None else verbose
    progress = _make_encoder_bar(encoder, identity, n_rows, verbose)
    with progress, FeatureFile(path, source, n_rows, int(chunk_size), dtype) as file:
        try:
            file.resume(overwrite)
            _encode_chunks(encoder, items, file, source, n_jobs, progress)
        except OtherContentError:
            if not overwrite:
                raise
            file.restart()
            progress.reset()
            _encode_chunks(encoder, items, file, source, n_jobs, progress)
        errors = {
            number * file.chunk_size + row: message
            for number, chunk in sorted(file.finished.items())
            for row, message in sorted(chunk.errors.items())
        }
        encoder._raise_for(errors)  # chunks of an earlier run may have used on_error="nan"
        return file.finish(), errors


def _encode_chunks(
    encoder: FrozenEncoder,
    items: Iterable[Any],
    file: FeatureFile,
    source: str,
    n_jobs: int | None,
    progress: tqdm | HiddenBar,
) -> None:
    """Encode unfinished chunks, and check that the items of finished chunks have not changed."""
    # "auto" may mean another precision on the machine of a worker.
    worker = clone(encoder).set_params(verbose=0, dtype=encoder.dtype_)
    failures: list[Exception] = []
    encode_chunk = partial(_encode_chunk, worker, source, file.dtype.name)
    tasks = (
        delayed(encode_chunk)(number, chunk, number in file.finished)
        for number, chunk in _iter_chunks(items, file.n_rows, file.chunk_size, failures)
    )
    parallel = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")
    n_finished = 0
    # With one job, chunks are encoded in this thread, and the bar advances within them.
    with (
        advance_within_block(progress, encoder._modality),
        closing(parallel(tasks)) as results,
    ):
        for result in results:
            offset = result.number * file.chunk_size
            encoder._raise_for({offset + row: text for row, text in result.errors.items()})
            if result.rows is not None:
                _check_range(result.rows, offset)
                file.write(result.number, result.rows, result.items_digest, result.errors)
            elif result.items_digest != file.finished[result.number].items:
                raise OtherContentError(
                    f"{str(file.existing_path)!r} was made of other items: rows {offset} to "
                    f"{min(offset + file.chunk_size, file.n_rows) - 1} differ."
                )
            n_finished += min(file.chunk_size, file.n_rows - offset)
            progress.update(n_finished - progress.n)
    if failures:
        raise failures[0]


def _iter_chunks(
    items: Iterable[Any], n_rows: int, chunk_size: int, failures: list[Exception]
) -> Iterator[tuple[int, list[Any]]]:
    """Yield numbered chunks of items, and store an exception instead of raising it."""
    try:  # joblib iterates in its own thread
        iterator = iter(items)
        for number, start in enumerate(range(0, n_rows, chunk_size)):
            size = min(chunk_size, n_rows - start)
            chunk = list(islice(iterator, size))
            if len(chunk) < size:
                n_items = start + len(chunk)
                raise ValueError(
                    f"X has {n_items} items, but len(X) is {n_rows}. Make the two agree."
                )
            yield number, chunk
        for _ in iterator:
            raise ValueError(
                f"X has more items than len(X), which is {n_rows}. Make the two agree."
            )
    except Exception as error:
        failures.append(error)


def _encode_chunk(
    encoder: FrozenEncoder,
    source: str,
    dtype: str,
    number: int,
    items: list[Any],
    is_finished: bool,
) -> _Chunk:
    """Encode a chunk unless it is finished, in a worker."""
    digest = hashlib.sha256()
    for item in items:
        try:
            digest.update(encoder._digest_item(item))
        except ItemError as error:
            digest.update(f"bad: {error}".encode(errors="replace"))
    if is_finished:
        return _Chunk(number, digest.hexdigest(), None, {})
    if encoder._digest_identity().hex() != source:
        raise ValueError(
            f"model_name={encoder.model_name!r} has other weights, another version of "
            f"{encoder._library} or another precision for chunk {number} than when encode_to "
            "started. Do not replace the model during the run, and use the same model and the "
            "same versions on all workers."
        )
    rows = np.empty((0, 0), dtype=dtype)
    try:
        with np.errstate(over="ignore", under="ignore"):  # `_check_range` finds overflow
            features, errors = encode(encoder, encoder._as_list(items))
            rows = features.astype(dtype)
    except EncodingError as error:
        errors = error.errors
    return _Chunk(number, digest.hexdigest(), rows, errors)


def _check_range(rows: np.ndarray, offset: int) -> None:
    infinite = np.flatnonzero(np.isinf(rows).any(axis=1))
    if len(infinite):
        raise ValueError(
            f"The features of row {offset + infinite[0]} are beyond the range of float16 "
            "(65504). Pass dtype='float32'."
        )


def _is_stream(X: Any) -> bool:
    """Return whether X is read item by item, unlike the sequences that `transform` takes."""
    # Not Sequence, because a class of the user that loads its items lazily may be one.
    if isinstance(X, str | BYTES | PathLike | dict | set | frozenset | list | tuple):
        return False
    if any(hasattr(X, name) for name in ("columns", "column_names", "dtype", "getexif")):
        return False
    return hasattr(X, "__iter__") and hasattr(X, "__len__") and not hasattr(X, "to_pylist")
