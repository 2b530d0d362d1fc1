"""Encode more than fits in memory into one file, here or on the workers of a cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import clone
from tqdm import tqdm

from ..features.feature_file import FeatureFile, OtherContentError
from ..utils.escape import escape_controls
from .items import EncodingError, ItemError

if TYPE_CHECKING:
    from .base import FrozenEncoder


class _Chunk(NamedTuple):
    """What a worker gives back; no rows where those in the file are still right."""

    number: int
    items: str
    rows: np.ndarray | None
    errors: dict[int, str]


class EncodesToFile:
    """Give an encoder `encode_to`."""

    def encode_to(
        self,
        path: str | PathLike[str],
        X: Iterable[Any],
        *,
        chunk_size: int = 1024,
        n_jobs: int | None = None,
        dtype: str = "float32",
        overwrite: bool = False,
        verbose: int | None = None,
    ) -> np.memmap:
        """Encode items into a ``.npy`` file, chunk by chunk, in bounded memory.

        A run that was killed goes on where it stopped when it is started again. Run again with
        the same items when the file is whole, it only checks.

        Parameters
        ----------
        path : str or path-like
            The file to be. Until it is whole, the rows are in ``path + ".partial"``; what is
            finished stands in ``path + ".journal"``, which stays.
        X : sequence or sized iterable of length n_samples
            What `transform` takes, or a side of
            :func:`~sklearn_ape.datasets.load_webdataset`, which is read chunk by chunk.
        chunk_size : int, default=1024
            Rows that are encoded, written and, if the run is killed, lost together.
        n_jobs : int or None, default=None
            Chunks encoded at a time, by joblib. Under
            ``joblib.parallel_config(backend="dask")``, the workers of the cluster encode them;
            this process writes. None is 1 unless a backend is chosen.
        dtype : {"float32", "float16"}, default="float32"
            Of the numbers in the file.
        overwrite : bool, default=False
            Whether to replace a file that was made of other items or in another way.
        verbose : int or None, default=None
            1 shows a progress bar; None takes the encoder's own.

        Returns
        -------
        features : memmap of shape (n_samples, n_features)
            The file, opened to read. With ``on_error="nan"``, a row of NaN for each bad item,
            which ``errors_`` names.

        Raises
        ------
        EncodingError
            With ``on_error="raise"``, when items cannot be encoded. Finished chunks are kept.
        OtherContentError
            A `FileExistsError`, when the file, or the partial file, is of other items or another
            encoder.
        ValueError
            When a feature does not fit in float16, or a parameter is wrong.
        OSError
            When the file cannot be written, for instance on a full disk.
        FileLockedError
            An `OSError` and `RuntimeError`, when another process is writing this file.

        See Also
        --------
        sklearn_ape.features.DiskFeatureCache : Features by content, for items that come again.

        Notes
        -----
        Items are told by their content, so checking what is finished reads every image, but
        encodes none. A chunk that a dying worker leaves unfinished is encoded by another worker,
        as far as the backend does so (dask does).

        Examples
        --------
        >>> import tempfile
        >>> from sklearn_ape.encoders import TransformersTextEncoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encoder = TransformersTextEncoder()
        ...     encoder.encode_to(f"{folder}/captions.npy", ["a cat", "a dog"]).shape
        (2, 384)
        """
        encoder: FrozenEncoder = self  # type: ignore[assignment]
        encoder._check_parameters()
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be float32 or float16, not {dtype!r}.")
        if not isinstance(chunk_size, int | np.integer) or chunk_size < 1:
            raise ValueError(f"chunk_size must be an integer >= 1, not {chunk_size!r}.")
        items = X if _is_stream(X) else encoder._as_list(X)
        n_rows = len(items)  # type: ignore[arg-type]
        if not n_rows:
            raise ValueError(f"X is empty: 0 {encoder._modality}s to encode.")
        source = encoder._identity_digest().hex()
        progress = tqdm(
            total=n_rows,
            unit=encoder._modality,
            desc=escape_controls(encoder.model_name),
            disable=not (encoder.verbose if verbose is None else verbose),
            delay=0.5,
        )
        with progress, FeatureFile(path, source, n_rows, int(chunk_size), dtype) as file:
            try:
                file.resume()
                _encode_all(encoder, items, file, n_jobs, progress.update)
            except OtherContentError:
                if not overwrite:
                    raise
                file.restart()
                progress.reset()
                _encode_all(encoder, items, file, n_jobs, progress.update)
            errors = {
                number * file.chunk_size + row: message
                for number, chunk in sorted(file.finished.items())
                for row, message in sorted(chunk.errors.items())
            }
            encoder._raise_or_go_on(errors)  # of a run that was told to go on with them
            features = file.finish()
        encoder.errors_ = errors
        encoder._report(errors)
        return features


def _encode_all(
    encoder: FrozenEncoder,
    items: Iterable[Any],
    file: FeatureFile,
    n_jobs: int | None,
    done: Callable[[int], Any],
) -> None:
    """Encode all chunks that are not finished, and check those that are."""
    worker = clone(encoder).set_params(verbose=0)
    chunks = _Chunks(items, file.n_rows, file.chunk_size)
    tasks = (
        delayed(_encoded)(worker, number, some, _known(file, number), file.dtype.name)
        for number, some in chunks
    )
    parallel = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")
    with closing(parallel(tasks)) as results:
        for chunk in results:
            n_before = chunk.number * file.chunk_size
            encoder._raise_or_go_on({n_before + row: m for row, m in chunk.errors.items()})
            if chunk.rows is not None:
                _check_range(chunk, n_before)
                file.write(chunk.number, chunk.rows, chunk.items, chunk.errors)
            elif chunk.items != file.finished[chunk.number].items:
                raise OtherContentError(
                    f"{str(file.existing_path)!r} was made of other items: rows {n_before} to "
                    f"{min(n_before + file.chunk_size, file.n_rows) - 1} differ."
                )
            done(min(file.chunk_size, file.n_rows - n_before))
    if chunks.failure is not None:
        raise chunks.failure


class _Chunks:
    """Numbered chunks of items, which never raise: joblib iterates in a thread of its own."""

    def __init__(self, items: Iterable[Any], n_rows: int, size: int) -> None:
        self._items, self._n_rows, self._size = items, n_rows, size
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        try:
            yield from self._chunks()
        except Exception as error:
            self.failure = error

    def _chunks(self) -> Iterator[tuple[int, list[Any]]]:
        items = iter(self._items)
        for number, start in enumerate(range(0, self._n_rows, self._size)):
            size = min(self._size, self._n_rows - start)
            some = list(islice(items, size))
            if len(some) < size:
                raise ValueError(
                    f"X says that it has {self._n_rows} items, and has {start + len(some)}."
                )
            yield number, some
        if next(items, self) is not self:
            raise ValueError(f"X says that it has {self._n_rows} items, and has more.")


def _encoded(
    encoder: FrozenEncoder, number: int, items: list[Any], known: str | None, dtype: str
) -> _Chunk:
    """Encode a chunk, if its items are not known to be in the file; runs in a worker."""
    digest = hashlib.sha256()
    for item in items:
        try:
            digest.update(encoder._digest(item))
        except ItemError as error:
            digest.update(f"bad: {error}".encode(errors="replace"))
    if known is not None:
        return _Chunk(number, digest.hexdigest(), None, {})
    # A clone, since several threads may have been given the same; of arrays, not of tables.
    encoder = clone(encoder).set_output(transform="default")
    encoder._report = lambda errors: None  # type: ignore[method-assign]
    rows = np.empty((0, 0), dtype=dtype)
    try:
        with np.errstate(over="ignore", under="ignore"):  # seen by the caller
            rows = encoder.transform(items).astype(dtype)
        errors = encoder.errors_
    except EncodingError as error:
        errors = error.errors
    return _Chunk(number, digest.hexdigest(), rows, errors)


def _check_range(chunk: _Chunk, n_before: int) -> None:
    assert chunk.rows is not None
    bad = np.flatnonzero(np.isinf(chunk.rows).any(axis=1))
    if len(bad):
        raise ValueError(
            f"The features of row {n_before + bad[0]} are beyond the range of float16 (65504): "
            "pass dtype='float32'."
        )


def _known(file: FeatureFile, number: int) -> str | None:
    return file.finished[number].items if number in file.finished else None


def _is_stream(X: Any) -> bool:
    """Tell what is read item by item from what `transform` takes as a whole."""
    if isinstance(X, str | bytes | PathLike | dict | set | frozenset | list | tuple | np.ndarray):
        return False
    if any(hasattr(X, name) for name in ("columns", "column_names", "dtype", "getexif")):
        return False
    return hasattr(X, "__iter__") and hasattr(X, "__len__") and not hasattr(X, "to_pylist")
