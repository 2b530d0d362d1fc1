"""Entries of the disk cache: tables, checksums and conversion to float16."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

# The tables of the file, and the types of the numbers in them.
FLOAT32_TABLE = "features"
FLOAT16_TABLE = "features_float16"
DTYPES: dict[str, np.dtype[Any]] = {FLOAT32_TABLE: np.dtype("<f4"), FLOAT16_TABLE: np.dtype("<f2")}

DIGEST_SIZE = 16


def to_float16(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float16, and a mask of the rows within its range.

    >>> to_float16(np.array([[0.1], [1e6]]))[1]
    array([ True, False])
    """
    with np.errstate(over="ignore", under="ignore"):
        half = np.asarray(features).astype(DTYPES[FLOAT16_TABLE])
    return half, np.isfinite(half).all(axis=-1)


def pack(table: str, key: bytes, numbers: bytes) -> bytes:
    """Return the entry of a table: a digest of the key and the numbers, then the numbers."""
    return _digest(table, key, numbers) + numbers


def unpack(table: str, entries: Iterable[tuple[bytes, bytes]]) -> dict[bytes, np.ndarray]:
    """Return features by key as float32, without damaged entries."""
    dtype = DTYPES[table]
    features: dict[bytes, np.ndarray] = {}
    for key, value in entries:
        # A damaged entry may have any type and any length.
        if not (isinstance(key, bytes) and isinstance(value, bytes) and len(value) >= DIGEST_SIZE):
            continue
        numbers = value[DIGEST_SIZE:]
        if value.startswith(_digest(table, key, numbers)):
            features[key] = np.frombuffer(numbers, dtype).astype(np.float32, copy=False)
    return features


def _digest(table: str, key: bytes, numbers: bytes) -> bytes:
    # The digest depends on the table, so that an entry of one table is invalid in the other.
    person = b"" if table == FLOAT32_TABLE else table.encode()
    return hashlib.blake2b(key + numbers, digest_size=DIGEST_SIZE, person=person).digest()
