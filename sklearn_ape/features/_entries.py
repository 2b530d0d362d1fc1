"""Features as bytes that tell when they were damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

_DIGEST_SIZE = 16

# The tables of the file, and what the numbers in them are.
EXACT = "features"
ROUNDED = "features_float16"
NUMBERS: dict[str, np.dtype[Any]] = {EXACT: np.dtype("<f4"), ROUNDED: np.dtype("<f2")}


def rounded(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features as float16, and which rows float16 can hold.

    >>> rounded(np.array([[0.1], [1e6]]))[1]
    array([ True, False])
    """
    with np.errstate(over="ignore", under="ignore"):
        half = np.asarray(features).astype(NUMBERS[ROUNDED])
    return half, np.isfinite(half).all(axis=-1)


def pack(table: str, key: bytes, numbers: bytes) -> bytes:
    """Return the entry of a table: a digest of key and numbers, then the numbers."""
    return _digest(table, key, numbers) + numbers


def unpack(table: str, entries: Iterable[tuple[bytes, bytes]]) -> dict[bytes, np.ndarray]:
    """Return entries as float32, without the damaged ones."""
    dtype = NUMBERS[table]
    good: dict[bytes, np.ndarray] = {}
    for key, value in entries:
        # What is damaged may be of any type and any length.
        if not isinstance(value, bytes) or len(value) < _DIGEST_SIZE:
            continue
        numbers = value[_DIGEST_SIZE:]
        if value.startswith(_digest(table, key, numbers)):
            good[key] = np.frombuffer(numbers, dtype).astype(np.float32, copy=False)
    return good


def _digest(table: str, key: bytes, numbers: bytes) -> bytes:
    # Named apart, so that a damaged file cannot pass one table's entry for another's.
    person = b"" if table == EXACT else table.encode()
    return hashlib.blake2b(key + numbers, digest_size=_DIGEST_SIZE, person=person).digest()
