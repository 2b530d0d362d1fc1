"""Arrays as a safetensors file, with a text in its header."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ENTRY = "sklearn_ape"
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")
_MOST_HEADER_BYTES = 3 * 2**25
_DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64"}
NEVER_OPENED = "Pickles and torch checkpoints (.pkl, .joblib, .pt, .bin) are never opened."


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], text: str) -> None:
    """Write arrays by name, and a text for the header.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata={_ENTRY: text})
    except SafetensorError as error:
        # It wraps errors of the system: "(os error 28)", and once "Os { code: 28, ... }".
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1] or found[2])
        raise OSError(number, os.strerror(number), str(path)) from error


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of a file and the text in its header.

    Raises
    ------
    ValueError
        When the file is damaged, or another kind of file.
    OSError
        When it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    header = _header(path)
    for name, entry in header.items():
        if name != "__metadata__" and str(entry.get("dtype")) not in _DTYPES:
            raise ValueError(
                f"{str(path)!r} holds numbers of type {str(entry.get('dtype'))[:20]}."
            )
    try:
        with safe_open(path, framework="np") as file:
            own = (file.metadata() or {}).get(_ENTRY, "")
            # Copies: aligned as arrays in memory are, so that sums come out the same.
            found = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    return found, own


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the header of a safetensors file, bounded in size before it is read."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        whole = os.fstat(file.fileno()).st_size
        if len(start) < 8 or length > min(_MOST_HEADER_BYTES, whole - 8):
            is_other = start[:2] == b"PK" or start[:1] == b"\x80"
            raise ValueError(
                f"{str(path)!r} is damaged, or no safetensors file: its header would be {length} "
                f"bytes long, of {whole}. {NEVER_OPENED if is_other else ''}".rstrip()
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{str(path)!r} is damaged: its header is no JSON.") from None
    if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
        raise ValueError(f"{str(path)!r} is damaged: its header is not that of safetensors.")
    return header


def metadata_of(path: Path) -> str:
    """Return the text in the header alone; empty where there is none."""
    text = _header(path).get("__metadata__", {}).get(_ENTRY)
    return text if isinstance(text, str) else ""


def described(tensors: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Return dtype and shape by name."""
    return {name: [tensors[name].dtype.str, list(tensors[name].shape)] for name in sorted(tensors)}


def digest_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Return a digest of names, dtypes, shapes and numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {tensors[name].shape} ".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk; not every system can do it for folders."""
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except OSError:
        if is_folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not is_folder:
            raise
    finally:
        os.close(handle)
