"""Reading and writing of strict JSON, safetensors files, model folders and checkpoint files."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..utils.files import expand_user, sync, write_file_atomically, write_folder_atomically
from ..utils.messages import warn
from ..utils.validation import format_list, parse_json
from .serialize import Deserializer, Serializer

# Bounds the memory for a forged file. The config of a model is much smaller.
_MAX_JSON_BYTES = 2**26


def dump_json(value: Any) -> str:
    """Return indented JSON; raise ValueError if it is longer than `load_json` accepts."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > _MAX_JSON_BYTES:
        raise ValueError(
            f"config.json would be longer than {_MAX_JSON_BYTES >> 20} MiB. Fit the model on "
            "fewer labels or texts."
        )
    return text


def load_json(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in a text; `what` is its name for error messages.

    NaN, infinity and repeated keys raise ValueError, as do texts that are too long or nested too
    deeply.
    """
    if len(text) > _MAX_JSON_BYTES:
        raise ValueError(
            f"{what} is longer than {_MAX_JSON_BYTES >> 20} MiB, so it does not describe a model."
        )
    value = parse_json(
        text, what, parse_constant=_reject_constant, parse_float=_parse_finite_float
    )
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, not a {type(value).__name__}.")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parse_finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


FORMAT = 1


def _check_format(config: Mapping[str, Any], what: str) -> None:
    """Raise ValueError unless a config describes a model in a format that is supported."""
    number = config.get("format")
    if type(number) is not int or number < 1 or config.get("library") != "sklearn-ape":
        raise ValueError(
            f"{what} does not describe a model of sklearn-ape: it has no valid 'library' and "
            "'format'."
        )
    if number > FORMAT:
        raise ValueError(
            f"{what} has format {number}, written by sklearn-ape "
            f"{str(config.get('version'))[:40]}, and this version reads formats up to {FORMAT}. "
            "Upgrade: pip install --upgrade sklearn-ape."
        )


_METADATA_KEY = "sklearn_ape"
# safetensors hides the system's error in its text: "(os error 28)", or "Os { code: 28".
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")
_DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64"}
_PICKLE_NOTE = "Pickles and torch checkpoints (.pkl, .joblib, .pt, .bin) are never opened."


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], text: str) -> None:
    """Write a safetensors file of arrays by name, with a text in the header."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata={_METADATA_KEY: text})
    except SafetensorError as error:
        match = _SYSTEM_ERROR.search(str(error))
        if match is None:
            raise
        number = int(match[1] or match[2])
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def _open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file. The library checks its header and limits the size of the header."""
    from safetensors import SafetensorError, safe_open

    # Opened first, because safetensors says of every file that it cannot open that it is missing.
    with open(path, "rb") as opened:
        is_pickle = opened.read(2).startswith((b"PK", b"\x80"))
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged, or not a safetensors file: {error}."
            f"{f' {_PICKLE_NOTE}' if is_pickle else ''}"
        ) from None


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of a safetensors file and the text in its header."""
    with _open_tensors(path) as file:
        names = list(file.keys())
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise ValueError(f"{str(path)!r} has an array of the unsupported type {dtype}.")
        # Copy the arrays, because their alignment decides the order of additions in sums.
        arrays = {name: np.array(file.get_tensor(name)) for name in names}
        return arrays, (file.metadata() or {}).get(_METADATA_KEY, "")


def read_metadata(path: Path) -> str:
    """Return the text in the header of a safetensors file, or "" if there is none."""
    with _open_tensors(path) as file:
        return (file.metadata() or {}).get(_METADATA_KEY, "")


def describe_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Return the dtype and shape of each array by name."""
    return {name: [tensors[name].dtype.str, list(tensors[name].shape)] for name in sorted(tensors)}


def compute_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return a digest of the names, dtypes, shapes and values of arrays."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {tensors[name].shape} ".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, TENSORS, CARD)


def write_model(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    card: str,
) -> None:
    """Write a model to a new folder, or replace the model in a folder.

    The safetensors file contains the config as well, so replacing this one file, which is atomic,
    replaces the model. Other files in the folder are not touched.
    """
    target = expand_user(folder)
    config = {**config, "tensors": describe_tensors(tensors), "digest": compute_digest(tensors)}
    text = dump_json(config)
    try:
        _write(target, tensors, text, card)
    except OSError as error:
        if error.strerror is None:  # raised by this module
            raise
        # Name the folder that the user passed, not a temporary file.
        message = f"{error.strerror}; the model is not saved"
        if error.errno == errno.ENOSPC:
            size = math.ceil(sum(tensor.nbytes for tensor in tensors.values()) / 2**20)
            message += f". It needs about {size:,} MiB. Free some disk space, or choose another"
            message += " folder"
        raise OSError(error.errno, message, str(folder)) from error


def _write(target: Path, tensors: Mapping[str, np.ndarray], config: str, card: str) -> None:
    if target.is_dir():
        check_replaceable(target)
        _replace(target, tensors, config, card)
        return
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{str(target)!r} is a file. Pass a folder to save the model to.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_folder_atomically(target) as temporary:
        _replace(temporary, tensors, config, card)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
            _write(target, tensors, config, card)  # another process has created it meanwhile
    sync(target.parent)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the config and the arrays of a model."""
    if not (folder / TENSORS).is_file():
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise ValueError(
            f"{str(folder)!r} has no model of sklearn-ape: expected the files {CONFIG} and "
            f"{TENSORS} that save_pretrained writes, got {format_list(names, str) or 'no files'}. "
            f"{_PICKLE_NOTE}"
        )
    tensors, embedded_text = read_tensors(folder / TENSORS)
    config = _choose_config(folder, embedded_text, compute_digest(tensors))
    if config.get("tensors") != describe_tensors(tensors):
        what = repr(str(folder / CONFIG))
        raise ValueError(f"{what} gives other shapes or types of arrays than {TENSORS}.")
    return config, tensors


def _choose_config(folder: Path, embedded_text: str, digest: str) -> dict[str, Any]:
    """Return the config of arrays with a digest: that of its own file, or the embedded one."""
    is_file = (folder / CONFIG).is_file()
    if is_file:
        config = _load_config(folder)
        _check_format(config, repr(str(folder / CONFIG)))
        if config.get("digest") == digest:
            return config
    # A save was interrupted between the two files, or one of them was changed.
    config = load_json(embedded_text, f"The config in {TENSORS}")
    _check_format(config, repr(str(folder)))
    if config.get("digest") != digest:
        raise ValueError(
            f"{str(folder / TENSORS)!r} is damaged: its arrays differ from the saved ones."
        )
    if is_file:
        warn(
            f"{str(folder / CONFIG)!r} does not belong to {TENSORS}, perhaps because saving was "
            f"interrupted, so the copy in {TENSORS} is used. Save the model again to replace it."
        )
    return config


def _load_config(folder: Path) -> dict[str, Any]:
    with open(folder / CONFIG, "rb") as file:
        # Read one byte more than is valid, so that `load_json` rejects a longer file.
        return load_json(file.read(_MAX_JSON_BYTES + 1), repr(str(folder / CONFIG)))


def check_replaceable(folder: Path) -> None:
    """Raise FileExistsError unless a folder is empty or has a model of sklearn-ape."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if not names:
        return
    # One of the two files is enough, because saving may have been interrupted between them.
    for load in (
        lambda: _load_config(folder),
        lambda: load_json(read_metadata(folder / TENSORS), TENSORS),
    ):
        with suppress(OSError, ValueError):
            if load().get("library") == "sklearn-ape":
                return
    raise FileExistsError(
        f"The folder {str(folder)!r} has other files ({format_list(names, str)}) and no model of "
        "sklearn-ape. Save to another folder, so that no other files are overwritten."
    )


def read_class_name(folder: Path) -> str | None:
    """Return the name of the class of a saved model, or None if there is no valid config."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(_load_config(folder)["model"]["$class"])
    return None


def _replace(folder: Path, tensors: Mapping[str, np.ndarray], config: str, card: str) -> None:
    with write_folder_atomically(folder / TENSORS) as temporary:
        write_tensors(temporary / TENSORS, tensors, config)
        (temporary / CONFIG).write_text(config, encoding="utf-8")
        (temporary / CARD).write_text(card, encoding="utf-8")
        # safetensors gives read access to the owner only. Use the permissions of config.json.
        (temporary / TENSORS).chmod((temporary / CONFIG).stat().st_mode & 0o777)
        for name in FILES:
            sync(temporary / name)
        # Replace the safetensors file first, because it alone decides which model the folder has.
        for name in (TENSORS, CONFIG, CARD):
            os.replace(temporary / name, folder / name)
        sync(folder)


_CHECKSUM_LENGTH = 64  # hexadecimal digits of SHA-256


def write_file(path: Path, description: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write a checkpoint file atomically: if interrupted, the previous file is untouched.

    The description is plain data that `read_description` returns without reading the arrays. The
    values are numbers, texts, lists, dicts and arrays.
    """
    serializer = Serializer()
    encoded = {name: serializer.encode(value, name) for name, value in values.items()}
    tensors = serializer.tensors
    config = {
        "head": dict(description),
        "values": encoded,
        "tensors": describe_tensors(tensors),
        "digest": compute_digest(tensors),
    }
    with write_file_atomically(path) as temporary:
        write_tensors(temporary, tensors, _add_checksum(dump_json(config)))


def read_description(path: Path) -> dict[str, Any]:
    """Return the description in a file of `write_file`; raise ValueError if it is damaged."""
    description = _verify_checksum(read_metadata(path), path).get("head")
    if not isinstance(description, dict):
        raise ValueError(f"{str(path)!r} has no 'head'.")
    return description


def read_file(path: Path) -> dict[str, Any]:
    """Return the `values` of a file that `write_file` wrote; raise ValueError if it is damaged."""
    tensors, text = read_tensors(path)
    config = _verify_checksum(text, path)
    expected = compute_digest(tensors), describe_tensors(tensors)
    if (config.get("digest"), config.get("tensors")) != expected:
        raise ValueError(f"{str(path)!r} is damaged: its arrays differ from the saved ones.")
    deserializer = Deserializer(tensors, {})
    values = deserializer.decode(config.get("values"))
    deserializer.close()
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} has no 'values'.")
    return values


def _add_checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() + text


def _verify_checksum(signed: str, path: Path) -> dict[str, Any]:
    text = signed[_CHECKSUM_LENGTH:]
    if _add_checksum(text) != signed:
        raise ValueError(f"{str(path)!r} is damaged: its header differs from the saved one.")
    return load_json(text, repr(str(path)))
