"""Entries of a disk cache: features as bytes with checksums."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

# The tables of the file, and the types of the numbers in them.
FLOAT32_TABLE = "features"
FLOAT16_TABLE = "features_float16"
DTYPES: dict[str, np.dtype[Any]] = {FLOAT32_TABLE: np.dtype("<f4"), FLOAT16_TABLE: np.dtype("<f2")}

CHECKSUM_SIZE = 16


def to_float16(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float16, and a mask of the rows within its range.

    >>> to_float16(np.array([[0.1], [1e6]]))[1]
    array([ True, False])
    """
    with np.errstate(over="ignore", under="ignore"):
        half = np.asarray(features).astype(DTYPES[FLOAT16_TABLE])
    return half, np.isfinite(half).all(axis=-1)


def pack(table: str, numbers: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return values by key: a checksum of the key and the numbers, then the numbers."""
    values: dict[bytes, bytes] = {}
    for keys, rows in _group_by_length(numbers.items()).values():
        checksums = _compute_checksums(table, keys, _to_matrix(rows))
        for key, row, checksum in zip(keys, rows, checksums, strict=True):
            values[key] = checksum.tobytes() + row
    return values


def unpack(
    table: str, entries: Iterable[tuple[bytes, bytes]]
) -> list[tuple[list[bytes], np.ndarray]]:
    """Return keys and a float32 matrix of their features, for each dimension.

    Damaged entries are left out.
    """
    dtype = DTYPES[table]
    blocks = []
    for n_bytes, (keys, values) in _group_by_length(entries).items():
        # A damaged entry may have any length.
        if n_bytes < CHECKSUM_SIZE or (n_bytes - CHECKSUM_SIZE) % dtype.itemsize:
            continue
        matrix = _to_matrix(values)
        stored, numbers = matrix[:, :CHECKSUM_SIZE], matrix[:, CHECKSUM_SIZE:]
        is_valid = (stored == _compute_checksums(table, keys, numbers)).all(axis=1)
        for row in np.flatnonzero(~is_valid):
            is_valid[row] = values[row].startswith(
                _compute_old_checksum(table, keys[row], values[row][CHECKSUM_SIZE:])
            )
        features = numbers.view(dtype).astype(np.float32, copy=False)
        if not is_valid.all():
            keys = [keys[row] for row in np.flatnonzero(is_valid)]
            features = features[is_valid]
        blocks.append((keys, features))
    return blocks


def _group_by_length(
    entries: Iterable[tuple[bytes, bytes]],
) -> dict[int, tuple[list[bytes], list[bytes]]]:
    """Return keys and values by the length of the values."""
    groups: dict[int, tuple[list[bytes], list[bytes]]] = {}
    for key, value in entries:
        if isinstance(key, bytes) and isinstance(value, bytes):  # damaged ones have any type
            keys, values = groups.setdefault(len(value), ([], []))
            keys.append(key)
            values.append(value)
    return groups


def _to_matrix(rows: list[bytes]) -> np.ndarray:
    """Return rows of the same length as a matrix of bytes."""
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), len(rows[0]))


def _compute_checksums(table: str, keys: list[bytes], numbers: np.ndarray) -> np.ndarray:
    """Return a checksum of 16 bytes for each row of a matrix of bytes.

    The first half is a sum of the 32-bit words of the row, multiplied by odd weights of 64 bits,
    modulo 2**64. A changed word always changes the sum, because its difference is less than 2**32
    and the weight is odd. If several words change, the sum stays equal with a probability of at
    most 2**-33, and usually about 2**-64. The second half is the CRC-32 of the table and the key,
    and the length of the row, because zeros at its end do not change the sum.
    """
    n_bytes = numbers.shape[1]
    if n_bytes % 4:
        numbers = np.pad(numbers, ((0, 0), (0, -n_bytes % 4)))
    words = numbers.view("<u4")
    crc_of_table = zlib.crc32(table.encode())
    tags = np.array([zlib.crc32(key, crc_of_table) for key in keys], dtype=np.uint64)
    tags |= np.uint64(n_bytes << 32)
    # NumPy converts the words to 64 bits in small buffers, which is faster than converting them
    # all at once. Integers overflow without a warning.
    sums = np.einsum("ij,j->i", words, _make_weights(words.shape[1])) + tags
    return np.stack([sums, tags], axis=1).astype("<u8", copy=False).view(np.uint8)


@lru_cache(maxsize=16)
def _make_weights(n: int) -> np.ndarray:
    """Return odd weights. They are part of the format of the file, so they never change."""
    weights = np.frombuffer(hashlib.shake_128(b"sklearn_ape").digest(8 * n), "<u8")
    return weights.astype(np.uint64) | np.uint64(1)


def _compute_old_checksum(table: str, key: bytes, numbers: bytes) -> bytes:
    """Return the checksum of entries that were written before `_compute_checksums` existed.

    It takes several times as long. Both have the same length, so the format of the file did not
    change. Previous versions of the package treat new entries as damaged, and compute them again.
    """
    person = b"" if table == FLOAT32_TABLE else table.encode()
    return hashlib.blake2b(key + numbers, digest_size=CHECKSUM_SIZE, person=person).digest()
