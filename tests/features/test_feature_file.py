"""Feature files: format and damage of the journal, locks and syncing."""

import hashlib
import json
import os
import pickle
import stat
import time

import numpy as np
import pytest

from sklearn_ape.features import FileLockedError, OtherContentError
from sklearn_ape.features import feature_file as _file
from sklearn_ape.features.feature_file import FeatureFile

ROWS = np.arange(15 * 3, dtype=np.float32).reshape(15, 3)
CHUNK = 5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.npy"


def write_chunks(path, n_chunks, chunk_size=CHUNK):
    with FeatureFile(path, "source", len(ROWS), chunk_size, "float32") as file:
        file.resume()
        for number in range(n_chunks):
            if number not in file.finished:
                rows = ROWS[number * chunk_size : (number + 1) * chunk_size]
                file.write(number, rows, "items", {1: "is bad"} if number == 1 else {})


def read_finished(path, chunk_size=CHUNK):
    with FeatureFile(path, "source", len(ROWS), chunk_size, "float32") as file:
        file.resume()
        return sorted(file.finished)


def journal(path):
    return path.with_name(path.name + ".journal")


def write_complete(path):
    write_chunks(path, 3)
    with FeatureFile(path, "source", len(ROWS), CHUNK, "float32") as file:
        file.resume()
        # Errors of finished chunks are read from the journal.
        assert [chunk.errors for _, chunk in sorted(file.finished.items())] == [
            {},
            {1: "is bad"},
            {},
        ]
        features = file.finish()
    assert isinstance(features, np.memmap)
    np.testing.assert_array_equal(features, ROWS)


def test_file_format_is_unchanged(path):
    """A later version must be able to resume a stopped run."""
    write_chunks(path, 2)
    head, *lines = [json.loads(line) for line in journal(path).read_text().splitlines()]
    assert head == {
        "source": "source",
        "n_rows": 15,
        "chunk_size": 5,
        "dtype": "float32",
        "width": 3,
    }
    digests = [
        hashlib.blake2b(
            ROWS[start : start + 5].astype("<f4").tobytes(), digest_size=16
        ).hexdigest()
        for start in (0, 5)
    ]
    assert lines == [
        {"chunk": 0, "items": "items", "rows": digests[0], "errors": {}},
        {"chunk": 1, "items": "items", "rows": digests[1], "errors": {"1": "is bad"}},
    ]


def test_truncated_line_does_not_damage_the_next(path):
    write_chunks(path, 1)
    with journal(path).open("ab") as file:
        file.write(b'{"chunk": 1, "ite')
    write_chunks(path, 3)
    assert read_finished(path) == [0, 1, 2]


def test_damaged_line_invalidates_only_its_chunk(path):
    write_chunks(path, 3)
    lines = journal(path).read_bytes().splitlines(keepends=True)
    for bad in (
        b"{}\n",
        b"[]\n",
        b"7\n",
        b'{"chunk": 1}\n',
        lines[2].replace(b'"chunk"', b"chunk"),
    ):
        journal(path).write_bytes(b"".join([*lines[:2], bad, *lines[3:]]))
        assert read_finished(path) == [0, 2]


@pytest.mark.parametrize("head", [b"[]", b"7", b"", b"{", b"{}", b'"width"'])
def test_damaged_header_raises(path, head):
    write_chunks(path, 2)
    lines = journal(path).read_bytes().splitlines(keepends=True)
    journal(path).write_bytes(b"".join([head + b"\n", *lines[1:]]))
    with pytest.raises(FileExistsError, match="exists and has no readable journal"):
        read_finished(path)


def test_invalid_width_raises(path):
    write_chunks(path, 2)
    journal(path).write_bytes(journal(path).read_bytes().replace(b'"width": 3', b'"width": "3"'))
    with pytest.raises(FileExistsError, match="has no readable journal"):
        read_finished(path)


def test_chunk_beyond_the_last_is_ignored(path):
    """The digest of zero rows is always valid and must not replace a missing chunk."""
    write_complete(path)
    nothing = {"chunk": 3, "items": "items", "rows": _file._digest(b""), "errors": {}}
    lines = journal(path).read_bytes().splitlines(keepends=True)
    journal(path).write_bytes(b"".join([*lines[:3], json.dumps(nothing).encode() + b"\n"]))
    with pytest.raises(FileExistsError, match=r"rows\.npy' was damaged or changed after"):
        read_finished(path)


def test_bytes_after_the_last_row_are_cut_off(path):
    """The last chunk has fewer rows than the others."""
    write_chunks(path, 4, chunk_size=4)
    partial = path.with_name("rows.npy.partial")
    partial.write_bytes(partial.read_bytes() + b"more")
    with FeatureFile(path, "source", len(ROWS), 4, "float32") as file:
        file.resume()
        assert len(file.finished) == file.n_chunks
        file.finish()
    assert path.stat().st_size == 128 + ROWS.nbytes
    np.testing.assert_array_equal(np.load(path), ROWS)


def test_changed_shape_in_the_header_raises(path):
    """The rows have their digests, but other programs would read another array."""
    write_complete(path)
    path.write_bytes(path.read_bytes().replace(b"(15, 3)", b"(3, 15)"))
    with pytest.raises(FileExistsError, match=r"rows\.npy' was damaged or changed after"):
        read_finished(path)


def test_rows_of_other_type_are_cast_and_of_other_width_raise(path):
    with FeatureFile(path, "source", len(ROWS), CHUNK, "float32") as file:
        for number in range(3):
            rows = ROWS[number * CHUNK : (number + 1) * CHUNK]
            file.write(number, rows.astype(np.float64), "items", {})
        with pytest.raises(ValueError, match=r"Chunk 1 has 2 features, not 3\."):
            file.write(1, ROWS[:CHUNK, :2], "items", {})
        np.testing.assert_array_equal(file.finish(), ROWS)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_file_has_default_permissions(path):
    mask = os.umask(0o022)
    try:
        write_complete(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("n_chunks", [1, 3])
def test_file_that_appears_during_the_run_is_kept(path, n_chunks):
    """Another process wrote or finished it between the start and the first chunk of this run."""
    with FeatureFile(path, "source", len(ROWS), CHUNK, "float32") as file:
        file.resume()
        write_complete(path) if n_chunks == 3 else write_chunks(path, n_chunks)
        with pytest.raises(FileLockedError, match=r"rows\.npy' was written by another process"):
            file.write(0, -ROWS[:CHUNK], "items", {})
    assert path.with_name("rows.npy.partial").exists() == (n_chunks < 3)  # no empty file
    assert read_finished(path) == list(range(n_chunks))


def test_file_that_appears_during_the_run_is_overwritten_on_request(path):
    """As a file that existed at the start."""
    with FeatureFile(path, "source", len(ROWS), CHUNK, "float32") as file:
        file.resume(overwrite=True)
        write_complete(path)
        for number in range(3):
            file.write(number, -ROWS[number * CHUNK : (number + 1) * CHUNK], "items", {})
        np.testing.assert_array_equal(file.finish(), -ROWS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_process_cannot_finish_a_partial_file_that_is_read(path, monkeypatch, overwrite):
    """The other process renamed it, and this one replaced it by a file without these chunks."""
    pytest.importorskip("fcntl")
    write_chunks(path, 2)
    read_journal = FeatureFile._read_journal

    def write_before_reading(file):
        monkeypatch.undo()
        with pytest.raises(FileLockedError):
            write_complete(path)
        return read_journal(file)

    monkeypatch.setattr(FeatureFile, "_read_journal", write_before_reading)
    with FeatureFile(path, "source", len(ROWS), CHUNK, "float32") as file:
        file.resume(overwrite)
        file.write(2, ROWS[2 * CHUNK :], "items", {})
        np.testing.assert_array_equal(file.finish(), ROWS)


@pytest.mark.parametrize("is_complete", [True, False])
def test_file_that_another_process_replaces_is_not_returned(path, monkeypatch, is_complete):
    """It has features of other items, which were returned as those of this run."""

    def replace():
        with FeatureFile(path, "other", len(ROWS), CHUNK, "float32") as other:
            for number in range(3):
                other.write(number, -ROWS[number * CHUNK : (number + 1) * CHUNK], "items", {})
            other.finish()

    def rename_and_replace(*paths):
        monkeypatch.undo()
        os.replace(*paths)
        replace()

    write_complete(path) if is_complete else write_chunks(path, 3)
    with FeatureFile(path, "source", len(ROWS), CHUNK, "float32") as file:
        file.resume()
        if is_complete:
            replace()
        else:
            monkeypatch.setattr(os, "replace", rename_and_replace)
        with pytest.raises(FileLockedError, match=r"rows\.npy' was written by another process"):
            file.finish()
    np.testing.assert_array_equal(np.load(path), -ROWS)


class TestSync:
    """Data that must survive a power failure are synced to disk."""

    @pytest.fixture
    def fsync_calls(self, monkeypatch):
        kinds = []
        fsync = os.fsync

        def counted(descriptor):
            kinds.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", counted)
        return kinds

    @pytest.mark.skipif(os.name != "posix", reason="folders that can be opened")
    def test_rename_is_synced(self, path, fsync_calls):
        write_complete(path)
        assert fsync_calls[-1]

    def test_sync_is_not_called_for_every_chunk(self, path, fsync_calls, monkeypatch):
        """On a slow disk, syncing would take longer than encoding."""
        now = time.monotonic()
        monkeypatch.setattr(_file.time, "monotonic", lambda: now)
        write_chunks(path, 3)
        assert len(fsync_calls) == 2  # rows and journal of the first chunk
        now += _file._SYNC_EVERY_S + 1
        with FeatureFile(path, "source", len(ROWS), CHUNK, "float32") as file:
            file.resume()
            file.write(0, ROWS[:CHUNK], "items", {})
            file.write(1, ROWS[CHUNK : 2 * CHUNK], "items", {})
            now += _file._SYNC_EVERY_S + 1
            file.write(2, ROWS[2 * CHUNK :], "items", {})
        assert len(fsync_calls) == 6


def test_errors_have_compatible_base_classes():
    """Code that catches RuntimeError or FileExistsError keeps working; errors can be pickled."""
    assert issubclass(FileLockedError, RuntimeError)
    assert issubclass(FileLockedError, OSError)
    error = OtherContentError("It is there.")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, FileExistsError)
    assert (str(again), again.problem) == (str(error), "It is there.")
