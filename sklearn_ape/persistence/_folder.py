"""A model as a folder of three files, written so that a killed save leaves a whole model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .._unfinished import unfinished
from .._warnings import warn
from ._format import migrated
from ._json import dumped, loaded
from ._tensors import (
    NEVER_OPENED,
    described,
    digest_of,
    metadata_of,
    read_tensors,
    sync,
    write_tensors,
)

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
    whole = {**config, "tensors": described(tensors), "digest": digest_of(tensors)}
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
    with unfinished(target) as fresh:
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
        there = sorted(p.name for p in folder.iterdir())[:5] if folder.is_dir() else []
        raise ValueError(
            f"{str(folder)!r} holds no model of sklearn-ape: expected {CONFIG} and {TENSORS}, as "
            f"save_pretrained writes them, and found {', '.join(there) or 'nothing'}. "
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
    if config.get("tensors") != described(tensors):
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
        f"The folder {str(folder)!r} holds {', '.join(names[:3])}{', ...' * (len(names) > 3)} and "
        "no model of sklearn-ape: save into another folder, so that nothing of yours is "
        "overwritten."
    )


def _replace(folder: Path, tensors: Mapping[str, np.ndarray], config: str, card: str) -> None:
    with unfinished(folder / TENSORS) as fresh:
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
