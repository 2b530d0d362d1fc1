"""Plain data and arrays as one safetensors file, replaced in one step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._unfinished import unfinished
from ._json import dumped, loaded
from ._tensors import described, digest_of, metadata_of, read_tensors, sync, write_tensors
from ._values import Rebuilder, Recorder

_DIGITS = 64


def write_file(path: Path, head: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write a file, or replace it: killed at any moment, the old one or the new one is there.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    head : mapping of str to object
        Plain data that `read_head` returns without reading the rest.
    values : mapping of str to object
        Numbers, texts, lists, dicts and arrays.

    Raises
    ------
    OSError
        When it cannot be written; the old file is as it was.
    """
    recorder = Recorder()
    body = {name: recorder.value(value, name) for name, value in values.items()}
    tensors = recorder.tensors
    config = {
        "head": dict(head),
        "values": body,
        "tensors": described(tensors),
        "digest": digest_of(tensors),
    }
    with unfinished(path) as folder:
        staged = folder / path.name
        write_tensors(staged, tensors, _sealed(dumped(config)))
        sync(staged)
        os.replace(staged, path)
        sync(path.parent)


def read_head(path: Path) -> dict[str, Any]:
    """Return what `write_file` was given as `head`.

    Raises
    ------
    ValueError
        When the file is damaged, or another kind of file.
    OSError
        When it cannot be read.
    """
    head = _unsealed(metadata_of(path), path).get("head")
    if not isinstance(head, dict):
        raise ValueError(f"{str(path)!r} has no 'head'.")
    return head


def read_file(path: Path) -> dict[str, Any]:
    """Return what `write_file` was given as `values`.

    Raises
    ------
    ValueError
        When the file is damaged, or another kind of file.
    OSError
        When it cannot be read.
    """
    tensors, text = read_tensors(path)
    config = _unsealed(text, path)
    if config.get("digest") != digest_of(tensors) or config.get("tensors") != described(tensors):
        raise ValueError(f"{str(path)!r} is damaged: its numbers are not those that were saved.")
    rebuilder = Rebuilder(tensors, {})
    values = rebuilder.value(config.get("values"))
    rebuilder.close()
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} has no 'values'.")
    return values


def _sealed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() + text


def _unsealed(sealed: str, path: Path) -> dict[str, Any]:
    text = sealed[_DIGITS:]
    if _sealed(text) != sealed:
        raise ValueError(f"{str(path)!r} is damaged: its header is not that which was written.")
    return loaded(text, repr(str(path)))
