"""Feature files that are written in chunks and can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ..utils.files import expand_user, lock_file, sync

# Files are synced at most once in this time, since syncing can take longer than writing a chunk.
_SYNC_EVERY_S = 1.0


class FileLockedError(OSError, RuntimeError):
    """Another process is writing the same file, or wrote it during the run."""


class OtherContentError(FileExistsError):
    """The existing feature file was written for different items or with a different encoder.

    Parameters
    ----------
    problem : str
        Sentence that states how the file differs.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem} Pass overwrite=True to replace it, or pass another path.")
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem,)


class FinishedChunk(NamedTuple):
    """Journal entry of a chunk: digests of its items and rows, and errors by row in the chunk."""

    items: str
    rows: str
    errors: dict[int, str]


class FeatureFile:
    """Writer of an ``.npy`` file of features that can be resumed after an interruption.

    Rows are written to ``path + ".partial"``, which is renamed to ``path`` when it is complete.
    The file ``path + ".journal"`` has a line for every finished chunk. A chunk whose line is lost
    or damaged, or whose rows do not have the digest in the journal, is not finished. `source` is a
    digest of everything that the features depend on, except for the items.
    """

    def __init__(
        self, path: str | os.PathLike[str], source: str, n_rows: int, chunk_size: int, dtype: str
    ) -> None:
        self.path = expand_user(path).absolute()
        self.n_rows = n_rows
        self.chunk_size = chunk_size
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.n_chunks = -(-n_rows // chunk_size)  # the last one may have fewer rows
        self.existing_path = self.path  # set to the partial file by `resume` if there is one
        self.finished: dict[int, FinishedChunk] = {}
        sizes = {"n_rows": n_rows, "chunk_size": chunk_size}
        self._header = {"source": source, **sizes, "dtype": dtype}
        self._partial_path = self.path.with_name(f"{self.path.name}.partial")
        self._journal_path = self.path.with_name(f"{self.path.name}.journal")
        self._rows_file: BinaryIO | None = None
        self._journal_file: BinaryIO | None = None
        self._width = self._offset = 0
        self._next_sync = 0.0
        # Signatures of the files that may be replaced; None if all files may be.
        self._replaceable: list[tuple[int, ...] | None] | None = None
        self._signature: tuple[int, ...] | None = None  # of the complete file with these features

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close_files()

    def _close_files(self) -> None:
        # Opening created the file to lock it. Nothing was written if another process was faster.
        if self._rows_file is not None and os.fstat(self._rows_file.fileno()).st_size == 0:
            with suppress(OSError):  # Windows cannot delete open files
                self._partial_path.unlink()
        for file in (self._rows_file, self._journal_file):
            if file is not None:
                # Closing writes buffered data again, which fails on a full disk. The journal does
                # not list the chunk, so the error can be ignored.
                with suppress(OSError):
                    file.close()
        self._rows_file = self._journal_file = None

    def resume(self, overwrite: bool = False) -> None:
        """Find the finished chunks of an existing file; raise OtherContentError if it differs.

        With `overwrite`, a file that another process writes during the run may be replaced, too.
        """
        if self.path.is_dir():
            raise IsADirectoryError(f"{str(self.path)!r} is a folder. Pass the path of a file.")
        _, partial_signature = self._compute_signatures()
        is_partial = partial_signature is not None
        if is_partial:
            # Locked before it is read, since another process could finish and rename it meanwhile.
            self._rows_file = self._open_locked()
            is_partial = os.fstat(self._rows_file.fileno()).st_size > 0
        if not is_partial:
            self._close_files()
        signatures = self._compute_signatures()
        self._signature, self._replaceable = signatures[0], None if overwrite else signatures
        self.existing_path = path = self._partial_path if is_partial else self.path
        if not path.exists():
            return
        header, chunks, n_bytes = self._read_journal()
        if {key: header.get(key) for key in self._header} != self._header:
            raise OtherContentError(f"{str(path)!r} {self._describe_difference(header)}.")
        self._width = header["width"]
        with open(path, "rb") as file:
            self._offset = _read_header_length(file, (self.n_rows, self._width), self.dtype)
            self.finished = {
                number: chunk
                for number, chunk in chunks.items()
                if self._offset and chunk.rows == _digest(self._read(file, number))
            }
        if not is_partial and len(self.finished) < self.n_chunks:
            raise OtherContentError(f"{str(path)!r} was damaged or changed after it was written.")
        if not self.finished:
            self._close_files()
        elif is_partial:
            self._journal_file = self._journal_path.open("r+b")
            self._journal_file.truncate(n_bytes)
            self._journal_file.seek(n_bytes)

    def restart(self) -> None:
        """Discard finished chunks. A complete file stays until the new one replaces it."""
        self._close_files()
        self.finished = {}
        self._replaceable = None

    def write(self, number: int, rows: np.ndarray, items: str, errors: Mapping[int, str]) -> None:
        """Write a chunk, and add the digest of its items and its errors by row to the journal."""
        if self._rows_file is None:
            with self._explain_errors():
                self._create(rows.shape[1])
        if rows.shape[1] != self._width:
            raise ValueError(f"Chunk {number} has {rows.shape[1]} features, not {self._width}.")
        assert self._rows_file is not None
        assert self._journal_file is not None
        content = np.ascontiguousarray(rows, dtype=self.dtype).tobytes()
        chunk = FinishedChunk(items, _digest(content), dict(errors))
        with self._explain_errors():
            self._rows_file.seek(self._compute_position(number))
            self._rows_file.write(content)
            self._rows_file.flush()
            self._journal_file.write(_format_line({"chunk": number, **chunk._asdict()}))
            self._journal_file.flush()
            if time.monotonic() > self._next_sync:
                self._sync()
        self.finished[number] = chunk

    def finish(self) -> np.memmap:
        """Rename the partial file, and return the features as a memory map."""
        if self._rows_file is not None:
            with self._explain_errors():
                self._sync()
                self._rows_file.truncate(self._offset + self.n_rows * self._row_bytes)
            if os.name == "nt":  # Windows cannot rename open files
                self._close_files()
            # Before it is renamed, since another process could replace it immediately afterwards.
            self._signature = self._compute_signatures()[1]
            os.replace(self._partial_path, self.path)
            sync(self.path.parent)
            self._close_files()
        features = np.load(self.path, mmap_mode="r")
        self._check_unchanged(self._signature, self._compute_signatures()[0])
        return features

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except FileLockedError:
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"The features cannot be written: {error.strerror}. {len(self.finished)} of "
                f"{self.n_chunks} chunks are finished; fix the problem and run again to resume",
                str(self._partial_path),
            ) from error

    def _create(self, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._width = width
        self._rows_file = self._open_locked()
        if self._replaceable is not None:
            self._check_unchanged(self._replaceable, self._compute_signatures())
        self._rows_file.truncate(0)
        # The journal first, so that a partial file that is not empty has a journal.
        self._journal_file = self._journal_path.open("wb")
        self._journal_file.write(_format_line(self._header | {"width": width}))
        self._journal_file.flush()
        npy_header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False}
        npy.write_array_header_1_0(self._rows_file, npy_header | {"shape": (self.n_rows, width)})
        self._offset = self._rows_file.tell()

    def _check_unchanged(self, before: object, now: object) -> None:
        if before != now:
            raise FileLockedError(
                f"{str(self.path)!r} was written by another process during this run. Run again to "
                "compare it with X, or pass another path."
            )

    def _open_locked(self) -> BinaryIO:
        """Open the partial file and lock it against other processes."""
        file = os.fdopen(os.open(self._partial_path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            lock_file(file.fileno())
            # Another process may have renamed the file between opening and locking.
            if os.fstat(file.fileno()).st_ino == os.stat(self._partial_path).st_ino:
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        file.close()
        raise FileLockedError(
            f"{str(self._partial_path)!r} is being written by another process. Wait until it has "
            "finished, or pass another path."
        )

    def _compute_signatures(self) -> list[tuple[int, ...] | None]:
        """Return what identifies the contents of the file and the partial file, if any."""
        signatures: list[tuple[int, ...] | None] = []
        for path in (self.path, self._partial_path):
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                signatures.append(None)
                continue
            # Locking creates an empty file.
            signatures.append((status.st_ino, status.st_mtime_ns) if status.st_size else None)
        return signatures

    def _read_journal(self) -> tuple[dict[str, Any], dict[int, FinishedChunk], int]:
        """Return the header or {}, the chunks by number, and the length of the complete lines."""
        content = self._journal_path.read_bytes() if self._journal_path.exists() else b""
        lines_end = content.rfind(b"\n") + 1  # an interrupted write leaves an incomplete line
        header, *lines = [_parse_line(line) for line in content[:lines_end].splitlines()] or [{}]
        chunks = {}
        for line in lines:
            try:
                errors = {int(row): str(message) for row, message in line["errors"].items()}
                chunk = FinishedChunk(line["items"], line["rows"], errors)
                if 0 <= line["chunk"] < self.n_chunks:
                    chunks[line["chunk"]] = chunk
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # a damaged line
        return header if isinstance(header.get("width"), int) else {}, chunks, lines_end

    def _describe_difference(self, header: Mapping[str, Any]) -> str:
        if not header:
            return "exists and has no readable journal"
        for key, name in (
            ("n_rows", "rows"),
            ("chunk_size", "rows per chunk (chunk_size)"),
            ("dtype", "as dtype"),
        ):
            if header.get(key) != self._header[key]:
                return f"exists with {header.get(key)} {name}, not {self._header[key]}"
        return "exists and was written with another encoder or other parameters"

    def _compute_position(self, number: int) -> int:
        return self._offset + number * self.chunk_size * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self._width * self.dtype.itemsize

    def _read(self, file: BinaryIO, number: int) -> bytes:
        file.seek(self._compute_position(number))
        n_rows = min(self.chunk_size, self.n_rows - number * self.chunk_size)
        return file.read(n_rows * self._row_bytes)

    def _sync(self) -> None:
        # The order does not matter: rows that were lost do not have the digest in the journal.
        for file in (self._rows_file, self._journal_file):
            assert file is not None
            os.fsync(file.fileno())
        self._next_sync = time.monotonic() + _SYNC_EVERY_S


def _format_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_header_length(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype) -> int:
    """Return the offset of the first row, or 0 if the file has another shape or dtype."""
    try:
        if npy.read_magic(file) != (1, 0):
            return 0
        header = npy.read_array_header_1_0(file)
    except ValueError:
        return 0
    return file.tell() if header == (shape, False, dtype) else 0


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
