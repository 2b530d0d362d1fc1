"""ImageNet-Captions: ImageNet images with the texts that their Flickr authors gave."""

import html
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import Bunch

from ..utils.warnings import warn
from .base import deliver, existing_folder, listed, require

_FIELDS = ("title", "tags", "description")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_NAMED = 5

_DESCR = """\
ImageNet-Captions
-----------------
{n} images of ImageNet's training set with captions made of: {fields}.

:Source: captions from {table}, images from {folder}
:Authors: Fang et al., "Data Determines Distributional Robustness in Contrastive Language Image
    Pre-training (CLIP)", ICML 2022; the texts are by the users of Flickr who took the images.
:Left out: {missing} entries without an image here, {empty} without a text.
:Captions: as people write on Flickr: in many languages, with places, dates and names of cameras.
"""


def load_imagenet_captions(
    images_root: str | os.PathLike[str],
    captions_json: str | os.PathLike[str],
    *,
    fields: Sequence[str] = _FIELDS,
    on_missing: Literal["warn", "raise", "ignore"] = "warn",
    return_X_y: bool = False,
) -> Any:
    r"""Load the images of ImageNet that have captions in ImageNet-Captions.

    Neither is downloaded: `captions_json` comes from the repository of [1]_, and the images are
    those of ImageNet's training set (ILSVRC 2012). Images are named, not opened.

    Parameters
    ----------
    images_root : path-like
        Folder with the images, as ``<wnid>/<filename>`` or all in one folder.
    captions_json : path-like
        ``imagenet_captions.json``: a list of objects with the keys ``filename`` (such as
        "n01440764_10026.JPEG"), ``wnid``, ``title``, ``description`` and ``tags`` (a list).
    fields : sequence of {"title", "tags", "description"}, default=("title", "tags", "description")
        What a caption is made of, in this order with spaces between, as in [1]_. HTML is taken
        out.
    on_missing : {"warn", "raise", "ignore"}, default="warn"
        What to do about entries whose image is not there: leave them out with a warning that
        counts and names them, raise an error, or leave them out in silence.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the fields

        images : list of str, length n_images
            Absolute paths, in the order of the file. Entries whose chosen `fields` are all empty
            are left out.
        captions : list of str, length n_images
            Texts on one line.
        labels : ndarray of str, shape (n_images,)
            Name of the class, the first of its synonyms: "tench". Where two classes share it, all
            of them, and the definition if these are shared too.
        wnids : ndarray of str, shape (n_images,)
            WordNet id of the class: "n01440764".
        class_names : dict
            Label: list of synonyms, of the classes that are there; ``labels`` of a
            `ZeroShotClassifier`.
        DESCR : str
            Source, and how many entries were left out.

    (images, captions) : tuple of lists
        If `return_X_y` is True.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If a path is not there, or no image is, or one is not and ``on_missing="raise"``.
    ValueError
        If the file is not of this form, or nothing is left.
    ImportError
        If timm, which knows the names of the classes, is not installed.

    See Also
    --------
    load_image_folder : Any folder of images.
    load_pairs : Images and captions listed in a table.

    References
    ----------
    .. [1] A. Fang et al., "Data Determines Distributional Robustness in Contrastive Language
       Image Pre-training (CLIP)", ICML 2022, https://github.com/mlfoundations/imagenet-captions

    Examples
    --------
    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from sklearn_ape.datasets import load_imagenet_captions
    >>> entry = {
    ...     "filename": "n01440764_10026.JPEG",
    ...     "wnid": "n01440764",
    ...     "title": "My catch",
    ...     "tags": ["lake", "fish"],
    ...     "description": "Taken by <b>Ann</b> &amp; Bob",
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image = Path(folder, entry["wnid"], entry["filename"])
    ...     image.parent.mkdir()
    ...     _ = image.write_bytes(b"")
    ...     table = Path(folder, "imagenet_captions.json")
    ...     _ = table.write_text(json.dumps([entry]))
    ...     data = load_imagenet_captions(folder, table)
    >>> data.captions, data.labels.tolist()
    (['My catch lake fish Taken by Ann & Bob'], ['tench'])
    """
    chosen = _checked_fields(fields)
    if on_missing not in ("warn", "raise", "ignore"):
        raise ValueError(f"on_missing must be 'warn', 'raise' or 'ignore', not {on_missing!r}.")
    folder = existing_folder(images_root, "a folder with the images as <wnid>/<filename>")
    file = Path(captions_json).expanduser().absolute()
    entries = _read(file)
    paths = _find(folder, entries)
    missing = [entry["filename"] for entry, path in zip(entries, paths, strict=True) if not path]
    _report_missing(missing, len(entries), folder, on_missing)
    images, captions, wnids, n_empty = [], [], [], 0
    for row, (entry, path) in enumerate(zip(entries, paths, strict=True)):
        if not path:
            continue
        caption = _caption(entry, chosen, row, file)
        if not caption:
            n_empty += 1
            continue
        images.append(path)
        captions.append(caption)
        wnids.append(entry["wnid"])
    if not images:
        raise ValueError(f"No entry of {str(file)!r} has a text in {', '.join(chosen)}.")
    names = _class_names(wnids)
    bunch = Bunch(
        images=images,
        captions=captions,
        labels=np.array([names[wnid][0] for wnid in wnids]),
        wnids=np.array(wnids),
        class_names=dict(names[wnid] for wnid in sorted(set(wnids))),
        DESCR=_DESCR.format(
            n=len(images),
            fields=", ".join(chosen),
            table=file,
            folder=folder,
            missing=len(missing),
            empty=n_empty,
        ),
    )
    return deliver(bunch, return_X_y)


def _checked_fields(fields: Sequence[str]) -> tuple[str, ...]:
    chosen = (fields,) if isinstance(fields, str) else tuple(fields)
    unknown = [field for field in chosen if field not in _FIELDS]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"fields must be some of {_FIELDS}, each once, not {fields!r}.")
    return chosen


def _read(file: Path) -> list[dict[str, Any]]:
    """Return the entries, each with a file name and a class."""
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no file {str(file)!r}; expected imagenet_captions.json from "
            "https://github.com/mlfoundations/imagenet-captions, unpacked."
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"{str(file)!r} is not JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{str(file)!r} must hold a list of entries that is not empty.")
    for row, entry in enumerate(entries):
        texts = [
            entry.get(key) if isinstance(entry, dict) else None for key in ("filename", "wnid")
        ]
        name, wnid = texts
        if not (isinstance(name, str) and name and isinstance(wnid, str) and wnid):
            raise ValueError(
                f"Entry {row} of {str(file)!r} (the first is 0) must be an object with the texts "
                f"'filename' and 'wnid', not {str(entry)[:80]}."
            )
        if not re.fullmatch(r"[\w.\-]+", name):  # a bare name, no way out of the folder
            raise ValueError(f"Entry {row} of {str(file)!r}: {name!r} is no file name.")
    return entries


def _find(folder: Path, entries: list[dict[str, Any]]) -> list[str | None]:
    """Return the path of each entry's image, None where it is not there."""
    # Lists of folders: half a million questions for single files take minutes on a network disk.
    flat = set(os.listdir(folder))
    inside = {
        wnid: set(os.listdir(folder / wnid)) if (folder / wnid).is_dir() else set[str]()
        for wnid in {entry["wnid"] for entry in entries} & flat
    }
    paths: list[str | None] = []
    for entry in entries:
        wnid, name = entry["wnid"], entry["filename"]
        if name in inside.get(wnid, ()):
            paths.append(str(folder / wnid / name))
        else:
            paths.append(str(folder / name) if name in flat else None)
    return paths


def _report_missing(missing: list[str], n_entries: int, folder: Path, on_missing: str) -> None:
    if not missing:
        return
    message = (
        f"{len(missing)} of {n_entries} images are not in {str(folder)!r} (neither in a folder "
        f"of their wnid nor in it itself): {listed(missing, _NAMED)}."
    )
    if len(missing) == n_entries:
        raise FileNotFoundError(f"{message} Pass the folder that holds n01440764 and the others.")
    if on_missing == "raise":
        raise FileNotFoundError(f'{message} on_missing="warn" leaves them out.')
    if on_missing == "warn":
        warn(f"{message} They are left out.")


def _caption(entry: dict[str, Any], fields: tuple[str, ...], row: int, file: Path) -> str:
    parts: list[str] = []
    for field in fields:
        value = entry.get(field) or ""
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"Entry {row} of {str(file)!r} (the first is 0): {field!r} must be a text"
                f"{' or a list of texts' if field == 'tags' else ''}, not {value!r}."
            )
        parts += texts
    text = html.unescape(_TAG.sub(" ", " ".join(parts)))
    return " ".join(text.split())


def _class_names(wnids: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Return for each class a label that no other of ImageNet has, and its synonyms."""
    data = require("timm.data", package="timm", extra="starter", purpose="load_imagenet_captions")
    info = data.ImageNetInfo()
    known = info.label_names()
    unknown = sorted(set(wnids) - set(known))
    if unknown:
        raise ValueError(
            f"{len(unknown)} wnids are none of ImageNet's 1,000 classes: "
            f"{listed(unknown, _NAMED)}."
        )
    synonyms = {wnid: info.label_name_to_description(wnid) for wnid in known}
    firsts = Counter(text.split(", ")[0] for text in synonyms.values())
    wholes = Counter(synonyms.values())
    names = {}
    for wnid in set(wnids):
        whole = synonyms[wnid]
        label = whole.split(", ")[0]
        if wholes[whole] > 1:
            definition = info.label_name_to_description(wnid, detailed=True).split(": ", 1)[1]
            label = f"{whole} ({definition})"
        elif firsts[label] > 1:
            label = whole
        names[wnid] = (label, whole.split(", "))
    return names
