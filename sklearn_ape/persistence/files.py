"""Model folders, safetensors files, models in one file, and versions of the format."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import atomic_directory
from ..utils.validation import format_list
from ..utils.warnings import warn
from ._serialize import Rebuilder, Recorder, dumped, loaded

FORMAT = 1


# From the number of a format to what turns its config into that of the next.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def migrated(config: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a config in the present format.

    Raises
    ------
    ValueError
        When it is of a newer format, or of none.
    """
    number = config.get("format")
    if type(number) is not int or number < 1 or config.get("library") != "sklearn-ape":
        raise ValueError(
            f"{what} describes no model of sklearn-ape: it has no 'library' and 'format' of ours."
        )
    if number > FORMAT:
        raise ValueError(
            f"{what} is of format {number}, written by sklearn-ape "
            f"{str(config.get('version'))[:40]}; this version reads formats up to {FORMAT}. "
            "Upgrade: pip install --upgrade sklearn-ape."
        )
    for old in range(number, FORMAT):
        config = _MIGRATIONS[old](config)
    return config


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


def describe_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
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


CONFIG, TENSORS, CARD = FILES = ("config.json", "model.safetensors", "README.md")


def write_model(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    card: str,
) -> None:
    """Write a model, making the folder or replacing the model in it.

    The tensors' file carries the config as well, so that replacing this one file, which is
    atomic, replaces the model; other files in the folder stay.

    Raises
    ------
    OSError
        When it cannot be written; also (FileExistsError) for a folder that holds other things.
    """
    target = Path(folder)
    whole = {**config, "tensors": describe_tensors(tensors), "digest": digest_of(tensors)}
    written = dumped(whole)
    try:
        _write(target, tensors, written, card)
    except OSError as error:
        if error.strerror is None:  # one of ours, which says enough
            raise
        # Named by the folder that was given, not by a file that was there for a moment.
        told = f"{error.strerror}; the model is not saved"
        raise OSError(error.errno, told, str(folder)) from error


def _write(target: Path, tensors: Mapping[str, np.ndarray], config: str, card: str) -> None:
    if target.is_dir():
        _check_ours(target)
        _replace(target, tensors, config, card)
        return
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{str(target)!r} is a file: a model is saved as a folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target) as fresh:
        _replace(fresh, tensors, config, card)
        os.rename(fresh, target)
    sync(target.parent)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the config, in the present format, and the tensors of a model.

    Raises
    ------
    ValueError
        When the folder holds no model of sklearn-ape, or a damaged one.
    OSError
        When it cannot be read.
    """
    if not (folder / TENSORS).is_file():
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise ValueError(
            f"{str(folder)!r} holds no model of sklearn-ape: expected {CONFIG} and {TENSORS}, as "
            f"save_pretrained writes them, and found {format_list(names, str) or 'nothing'}. "
            f"{NEVER_OPENED}"
        )
    tensors, own = read_tensors(folder / TENSORS)
    config: dict[str, Any] | None = None
    if (folder / CONFIG).is_file():
        with open(folder / CONFIG, "rb") as file:
            config = loaded(file.read(2**26 + 1), repr(str(folder / CONFIG)))
    digest = digest_of(tensors)
    what = repr(str(folder / CONFIG))
    if config is not None:
        config = migrated(config, what)
    if config is None or config.get("digest") != digest:
        # A save was killed between two files, or one of them was changed or comes from elsewhere.
        embedded = migrated(loaded(own, f"The config within {TENSORS}"), f"{str(folder)!r}")
        if embedded.get("digest") != digest:
            raise ValueError(
                f"{str(folder / TENSORS)!r} is damaged: its numbers are not those that were saved."
            )
        if config is not None:
            warn(
                f"{what} is not of the model beside it (a save was interrupted?): the copy of it "
                f"within {TENSORS} is used. Saving again mends it.",
            )
        config = embedded
    if config.get("tensors") != describe_tensors(tensors):
        raise ValueError(f"The shapes and types in {TENSORS} are not those that {what} says.")
    return config, tensors


def _check_ours(folder: Path) -> None:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if not names:
        return
    for name, length in ((CONFIG, 2**26), (TENSORS, 0)):
        with suppress(OSError, ValueError):
            if name == TENSORS:
                text: str | bytes = metadata_of(folder / TENSORS)
            else:
                with open(folder / name, "rb") as file:
                    text = file.read(length)
            if loaded(text, name).get("library") == "sklearn-ape":
                return
    raise FileExistsError(
        f"The folder {str(folder)!r} holds {format_list(names, str)} and no model of sklearn-ape: "
        "save into another folder, so that nothing of yours is overwritten."
    )


def _replace(folder: Path, tensors: Mapping[str, np.ndarray], config: str, card: str) -> None:
    with atomic_directory(folder / TENSORS) as fresh:
        write_tensors(fresh / TENSORS, tensors, config)
        (fresh / CONFIG).write_text(config, encoding="utf-8")
        (fresh / CARD).write_text(card, encoding="utf-8")
        # safetensors writes for the owner alone: who may read config.json may read the tensors.
        (fresh / TENSORS).chmod((fresh / CONFIG).stat().st_mode & 0o777)
        for name in FILES:
            sync(fresh / name)
        # The tensors' file first: from then on the folder holds the new model.
        for name in (TENSORS, CONFIG, CARD):
            os.replace(fresh / name, folder / name)
        sync(folder)


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
        "tensors": describe_tensors(tensors),
        "digest": digest_of(tensors),
    }
    with atomic_directory(path) as folder:
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
    if config.get("digest") != digest_of(tensors) or config.get("tensors") != describe_tensors(
        tensors
    ):
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
