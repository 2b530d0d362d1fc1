"""Where a model of the transformers library comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._registry import (
    PACKAGED,
    folder_digest,
    hub_commit,
    is_for,
    nearest,
    packaged_file,
    verified,
)


def source_of(model_name: str) -> str:
    """Return the folder or the hub name that a model name stands for."""
    if model_name in PACKAGED:
        return str(packaged_file(model_name).parent)
    return model_name


def check_source(model_name: str, encoder: Any) -> None:
    """Raise ValueError for a name that stands for nothing, as far as can be told without a hub."""
    if model_name in PACKAGED:
        if not is_for(model_name, encoder):
            raise ValueError(
                f"{model_name!r} is for another encoder: use {PACKAGED[model_name].encoder}."
            )
        packaged_file(model_name)
    elif os.path.isdir(model_name):
        if not (Path(model_name) / "config.json").is_file():
            raise ValueError(
                f"The folder {model_name!r} holds no model: it has no config.json. Expected what "
                "save_pretrained of the transformers library writes."
            )
    elif nearest(model_name, PACKAGED) and "/" not in model_name:
        raise ValueError(
            f"No encoder is called {model_name!r}: it is no short name of list_encoders(), no "
            f"folder and no hub name (those read 'owner/name').{nearest(model_name, PACKAGED)}"
        )


def fingerprint_of(model_name: str, revision: str | None) -> str | None:
    """Return what tells these weights from others; None for a hub model not yet fetched."""
    if model_name in PACKAGED:
        return PACKAGED[model_name].sha256
    if os.path.isdir(model_name):
        return folder_digest(Path(model_name))
    commit = hub_commit(model_name, revision)
    return f"{model_name}@{commit}" if commit else None


def pretrained(loader: Any, model_name: str, revision: str | None, **options: Any) -> Any:
    """Call `loader.from_pretrained`, with an error that names the remedy."""
    source = source_of(model_name)
    if model_name in PACKAGED:
        verified(model_name, packaged_file(model_name))
    elif not os.path.isdir(source):
        # Weights and features must be of one commit even when the branch moves on.
        revision = hub_commit(source, revision) or revision
    with loading(model_name), _quiet():
        return loader.from_pretrained(source, revision=revision, **options)


@contextmanager
def loading(model_name: str, known: Iterable[str] = PACKAGED) -> Iterator[None]:
    """Turn what a library says of a model it cannot load into an error that names the remedy."""
    try:
        yield
    except Exception as error:  # the libraries raise anything on a damaged file
        if os.path.isdir(model_name):
            raise ValueError(
                f"No encoder could be loaded from the folder {model_name!r}; is it a whole model "
                f"of this kind? The library says: {error}"
            ) from error
        raise ValueError(
            f"No encoder could be loaded from {model_name!r}: it is no short name of "
            "list_encoders() and neither a folder nor a hub model that can be read from here."
            f"{nearest(model_name, known)} The library says: {error}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the bar that loading a small model flashes up."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def side_file(model_name: str, revision: str | None, filename: str) -> Any:
    """Return the content of a json file beside a model, or None when there is none."""
    source = source_of(model_name)
    if os.path.isdir(source):
        path = Path(source, filename)
        found = str(path) if path.is_file() else None
    else:
        from transformers.utils import cached_file

        found = cached_file(
            source,
            filename,
            # Of the same commit as the weights even when the branch moves on.
            revision=hub_commit(source, revision) or revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
