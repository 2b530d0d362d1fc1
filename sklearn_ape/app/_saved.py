"""A visitor's aligner as a zip, and back."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ._alignment import Alignment
from ._captioned import down
from ._limits import Limits
from ._model import encoders_of
from ._refusal import Refusal, without_paths
from ._temporary import temporary_folder
from ._zip import unpack

_SUFFIXES = frozenset((".json", ".safetensors", ".md"))
_KINDS = {"APEAligner": "ape", "CCAAligner": "cca", "KernelAligner": "kernel"}
_NAME = "aligner"


class Download(NamedTuple):
    """A zip to download, and the folder that it lies in, which goes when this goes."""

    path: str
    folder: Any


def as_zip(alignment: Alignment) -> Download | None:
    """Return an aligner as a zip of what `save_pretrained` writes.

    None where an encoder of the server's own making has no form in a file.
    """
    folder = temporary_folder("download-")
    saved = Path(folder.name, _NAME)
    try:
        alignment.aligner.save_pretrained(saved, scores=alignment.scores())
    except TypeError:
        return None
    path = Path(folder.name, f"{_NAME}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for part in sorted(saved.iterdir()):
            file.write(part, f"{_NAME}/{part.name}")
    return Download(str(path), folder)


def from_zip(archive: Any, folder: str, served: Any, limits: Limits) -> Alignment:
    """Load an aligner that was downloaded from such a page.

    Parameters
    ----------
    archive : path-like
        The zip.
    folder : str
        An empty one.
    served : estimator
        The server's own aligner: encoders other than its own are not loaded, since a file may
        name any folder or address as an encoder's weights.
    limits : Limits
        Bounds on the zip.

    Returns
    -------
    alignment : Alignment
        Without figures.

    Raises
    ------
    Refusal
        When it is no such zip, is damaged, or of other encoders.
    """
    from ..persistence import load_pretrained
    from ..persistence._folder import read_model
    from ..persistence._values import Recorder

    unpack(archive, folder, _SUFFIXES, limits)
    inside = down(Path(folder))
    try:
        config, _ = read_model(inside)
        model = config["model"]
        kind = model["$class"]
        if kind not in _KINDS:
            raise Refusal(
                f"The zip holds a {str(kind)[:40]!r}: expected an aligner downloaded from here, "
                f"one of {', '.join(_KINDS)}."
            )
        own = [Recorder().object(encoder, "encoder") for encoder in encoders_of(served)]
        named = list(_encoders(model))
        if not named or any(encoder not in own for encoder in named):
            raise Refusal(
                "The aligner in the zip is made for other encoders than those of this page: ask "
                "whoever runs the page to start it with that aligner."
            )
        aligner = load_pretrained(inside)
        if None in encoders_of(aligner):
            raise Refusal("The aligner in the zip has no encoders: it takes features only.")
    except Refusal:
        raise
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise without_paths(error, inside) from error
    return Alignment(aligner, _KINDS[kind], 0, 0, [], "Loaded from your zip.")


def _encoders(value: Any) -> Iterator[dict[str, Any]]:
    """Yield what a file says of encoders, wherever it says it."""
    if isinstance(value, dict):
        if str(value.get("$class", "")).endswith("Encoder"):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _encoders(item)
