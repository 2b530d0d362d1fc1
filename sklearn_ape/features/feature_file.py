"""A file of features that is written in chunks and goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

_SYNC_EVERY_S = 1.0


class FileLockedError(OSError, RuntimeError):
    """Another process is writing the same file."""


class OtherContentError(FileExistsError):
    """A file of features exists, and is of other items, another encoder or other parameters.

    Parameters
    ----------
    problem : str
        Sentence that says how the file differs.

    Attributes
    ----------
    problem : str
        The message without the advice, which names parameters of `encode_to`.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem} Pass overwrite=True to replace it, or give another path.")
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem,)


class FinishedChunk(NamedTuple):
    """What the journal says of a chunk: digests of its items and rows, and its bad rows."""

    items: str
    rows: str
    errors: dict[int, str]


class FeatureFile:
    """Features of n rows on their way to one ``.npy`` file.

    Rows are written to ``path + ".partial"``, which becomes ``path`` when it is whole. Beside
    it, ``path + ".journal"`` has a line for every finished chunk. A line may be lost or torn and
    rows may be damaged: digests tell, and such a chunk is not finished.

    Parameters
    ----------
    path : path-like
        The file to be.
    source : str
        Digest of what makes the features, but for the items.
    n_rows, chunk_size : int
        Number of rows, and of those in a chunk.
    dtype : {"float32", "float16"}
        Of the numbers in the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], source: str, n_rows: int, chunk_size: int, dtype: str
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.n_rows = n_rows
        self.chunk_size = chunk_size
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.found = self.path  # or the partial file
        self.finished: dict[int, FinishedChunk] = {}
        self._head = {"source": source, "n_rows": n_rows, "chunk_size": chunk_size, "dtype": dtype}
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._journal = self.path.with_name(f"{self.path.name}.journal")
        self._file: BinaryIO | None = None
        self._log: BinaryIO | None = None
        self._width = self._offset = 0
        self._next_sync = 0.0

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for file in (self._file, self._log):
            if file is not None:
                # What a full disk did not take is tried again here; it is not in the journal.
                with suppress(OSError):
                    file.close()
        self._file = self._log = None

    @property
    def n_chunks(self) -> int:
        """Number of chunks, the last of which may be short."""
        return -(-self.n_rows // self.chunk_size)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to write."""
        return len(self.finished) == self.n_chunks

    def resume(self) -> None:
        """Find the chunks that are finished.

        Raises
        ------
        OtherContentError
            When what is there was made in another way.
        """
        is_begun = self._partial.exists() and self._partial.stat().st_size > 0
        self.found = source = self._partial if is_begun else self.path
        if not source.exists():
            return
        head, chunks, length = self._read_journal()
        if head is None or {key: head.get(key) for key in self._head} != self._head:
            raise OtherContentError(f"{str(source)!r} {self._difference(head)}.")
        self._width = head["width"]
        with open(source, "rb") as file:
            self._offset = _length_of_header(file, (self.n_rows, self._width), self.dtype)
            self.finished = {
                number: chunk
                for number, chunk in chunks.items()
                if self._offset and chunk.rows == _digest(self._read(file, number))
            }
        if not is_begun and not self.is_whole:
            raise OtherContentError(
                f"{str(source)!r} is damaged or was changed since it was made."
            )
        if is_begun and self.finished:
            self._file = self._locked()
            self._log = self._journal.open("r+b")
            self._log.truncate(length)
            self._log.seek(length)

    def start_anew(self) -> None:
        """Forget what is there; a whole file stays until the new one is."""
        self.__exit__()
        self.finished = {}

    def write(self, number: int, rows: np.ndarray, items: str, errors: Mapping[int, str]) -> None:
        """Write a chunk and say in the journal that it is finished.

        Parameters
        ----------
        number : int
            Of the chunk, from 0.
        rows : ndarray of shape (n_rows_of_chunk, n_features)
            Rows of NaN are allowed.
        items : str
            Digest of the items.
        errors : dict of {int: str}
            What is wrong with the bad rows, by their place in the chunk.

        Raises
        ------
        ValueError
            When numbers are too large for the dtype, or the width is not that of other chunks.
        OSError
            When it cannot be written.
        """
        if self._file is None:
            with self._named_errors():
                self._create(rows.shape[1])
        if rows.shape[1] != self._width:
            raise ValueError(f"Chunk {number} has {rows.shape[1]} features, not {self._width}.")
        assert self._file is not None
        assert self._log is not None
        content = np.ascontiguousarray(rows, dtype=self.dtype).tobytes()
        chunk = FinishedChunk(items, _digest(content), dict(errors))
        with self._named_errors():
            self._file.seek(self._place(number))
            self._file.write(content)
            self._file.flush()
            self._log.write(_line({"chunk": number, **chunk._asdict()}))
            self._log.flush()
            if time.monotonic() > self._next_sync:
                self._sync()
        self.finished[number] = chunk

    def finish(self) -> np.memmap:
        """Give the whole file its name, and open it to read."""
        if self._file is not None:
            with self._named_errors():
                self._sync()
                self._file.truncate(self._offset + self.n_rows * self._row_bytes)
            if os.name == "nt":  # where an open file cannot be renamed, nor locked here
                self.__exit__()
            os.replace(self._partial, self.path)
            _sync_folder(self.path.parent)
            self.__exit__()
        return np.load(self.path, mmap_mode="r")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileLockedError:
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"The features cannot be written: {error.strerror}. {len(self.finished)} of "
                f"{self.n_chunks} chunks are kept; run it again when this is mended",
                str(self._partial),
            ) from error

    def _create(self, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._width = width
        self._file = self._locked()
        self._file.truncate(0)
        # The journal first: a partial file that is not empty has its own.
        self._log = self._journal.open("wb")
        self._log.write(_line(self._head | {"width": width}))
        self._log.flush()
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False}
        npy.write_array_header_1_0(self._file, header | {"shape": (self.n_rows, width)})
        self._offset = self._file.tell()

    def _locked(self) -> BinaryIO:
        """Open the partial file, alone among processes."""
        file = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            _lock(file)
            # Another process may have finished it between the two calls.
            if os.fstat(file.fileno()).st_ino == os.stat(self._partial).st_ino:
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        file.close()
        raise FileLockedError(
            f"{str(self._partial)!r} is being written by another process. Wait for it, or give "
            "another path."
        )

    def _read_journal(self) -> tuple[dict[str, Any] | None, dict[int, FinishedChunk], int]:
        """Return the head, the chunks by number, and the length of the lines that are whole."""
        try:
            content = self._journal.read_bytes()
        except FileNotFoundError:
            return None, {}, 0
        whole = content[: content.rfind(b"\n") + 1]
        head, *lines = [_parsed(line) for line in whole.splitlines()] or [{}]
        chunks = {}
        for line in lines:
            try:
                errors = {int(row): str(message) for row, message in line["errors"].items()}
                chunk = FinishedChunk(line["items"], line["rows"], errors)
                if 0 <= line["chunk"] < self.n_chunks:
                    chunks[line["chunk"]] = chunk
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # a damaged line
        return head if isinstance(head.get("width"), int) else None, chunks, len(whole)

    def _difference(self, head: Mapping[str, Any] | None) -> str:
        if head is None:
            return "is there already and has no journal that could be read"
        told = {
            "n_rows": "rows",
            "chunk_size": "rows in a chunk (chunk_size)",
            "dtype": "as dtype",
        }
        for key, words in told.items():
            if head.get(key) != self._head[key]:
                return f"is there already with {head.get(key)} {words}, not {self._head[key]}"
        return "is there already and was made by another encoder, or one with other parameters"

    def _place(self, number: int) -> int:
        return self._offset + number * self.chunk_size * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self._width * self.dtype.itemsize

    def _read(self, file: BinaryIO, number: int) -> bytes:
        file.seek(self._place(number))
        n_rows = min(self.chunk_size, self.n_rows - number * self.chunk_size)
        return file.read(n_rows * self._row_bytes)

    def _sync(self) -> None:
        # In any order: rows that the disk lost do not have the digest in the journal.
        for file in (self._file, self._log):
            assert file is not None
            os.fsync(file.fileno())
        self._next_sync = time.monotonic() + _SYNC_EVERY_S


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _length_of_header(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype) -> int:
    """Return where the rows begin; 0 when the file is not of this shape and dtype."""
    try:
        if npy.read_magic(file) != (1, 0):
            return 0
        found, is_fortran, found_dtype = npy.read_array_header_1_0(file)
    except ValueError:
        return 0
    return file.tell() if (found, is_fortran, found_dtype) == (shape, False, dtype) else 0


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _lock(file: BinaryIO) -> None:
    try:
        import fcntl
    except ImportError:  # not a system that has it
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # not a file system that has it
        return


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut, where a folder can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
