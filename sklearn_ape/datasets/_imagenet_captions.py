"""Loader of ImageNet-Captions: ImageNet images with texts by their Flickr authors."""

import html
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import Bunch

from ..utils.files import expand_user
from ..utils.messages import warn
from ..utils.validation import check_choice, format_list, parse_json
from .base import check_folder, make_result

_FIELDS = ("title", "tags", "description")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")

_DESCR = """\
ImageNet-Captions
-----------------
{n} images of ImageNet's training set, with captions from the fields: {fields}.

:Source: captions from {table}, images from {folder}
:Authors: Fang et al., "Data Determines Distributional Robustness in Contrastive Language Image
    Pre-training (CLIP)", ICML 2022; the texts are by the users of Flickr who took the images.
:Skipped: {missing} entries without an image, {empty} without a text.
:Captions: texts of Flickr in many languages, with places, dates and names of cameras.
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

    Nothing is downloaded. Get `captions_json` from the repository of [1]_ and the images from
    ImageNet's training set (ILSVRC 2012).

    Parameters
    ----------
    images_root : path-like
        Folder with the images, either as ``<wnid>/<filename>`` or without subfolders.
    captions_json : path-like
        File ``imagenet_captions.json``. It contains a list of objects with the keys ``filename``
        (such as "n01440764_10026.JPEG"), ``wnid``, ``title``, ``description`` and ``tags`` (a
        list).
    fields : sequence of {"title", "tags", "description"}, default=("title", "tags", "description")
        Fields that are joined to a caption, in this order and separated by spaces, as in [1]_.
        HTML is removed.
    on_missing : {"warn", "raise", "ignore"}, default="warn"
        Treatment of entries whose image does not exist: skip them and warn, raise an error, or
        skip them without a warning.
    return_X_y : bool, default=False
        Whether to return ``(images, captions)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Bunch with these fields:

        images : list of str, length n_images
            Absolute paths, in the order of the file. Entries whose `fields` are all empty are
            skipped.
        captions : list of str, length n_images
            Captions, each on one line.
        labels : ndarray of str, shape (n_images,)
            First name of the class, such as "tench". If two classes share it, all names of the
            class, with the definition if two classes share all names.
        wnids : ndarray of str, shape (n_images,)
            WordNet id of the class, such as "n01440764".
        class_names : dict
            List of names per label, for the parameter ``labels`` of a `ZeroShotClassifier`.
        DESCR : str
            Description of the source, and numbers of skipped entries.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If a path or all images do not exist, or some do not with ``on_missing="raise"``.
    ValueError
        If the file does not have this format, or no entry has a caption.

    See Also
    --------
    load_image_folder : Load any folder of images.
    load_pairs : Load images and captions that are listed in a table.

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
    fields = _validate_fields(fields)
    check_choice(on_missing, "on_missing", ("warn", "raise", "ignore"))
    folder = check_folder(images_root, "a folder with images as <wnid>/<filename>")
    file = expand_user(captions_json).absolute()
    entries = _read_entries(file)
    paths = _find_images(folder, entries)
    missing = [entry["filename"] for entry, path in zip(entries, paths, strict=True) if not path]
    _report_missing(missing, len(entries), folder, on_missing)
    images, captions, wnids = [], [], []
    for row, (entry, path) in enumerate(zip(entries, paths, strict=True)):
        if path and (caption := _make_caption(entry, fields, row, file)):
            images.append(path)
            captions.append(caption)
            wnids.append(entry["wnid"])
    if not images:
        raise ValueError(
            f"{str(file)!r} has no text in the fields {', '.join(fields)}. Pass other fields."
        )
    names = _look_up_names(wnids)
    bunch = Bunch(
        images=images,
        captions=captions,
        labels=np.array([names[wnid][0] for wnid in wnids]),
        wnids=np.array(wnids),
        class_names=dict(names[wnid] for wnid in sorted(set(wnids))),
        DESCR=_DESCR.format(
            n=len(images),
            fields=", ".join(fields),
            table=file,
            folder=folder,
            missing=len(missing),
            empty=len(entries) - len(missing) - len(images),
        ),
    )
    return make_result(bunch, return_X_y)


def _validate_fields(fields: Sequence[str]) -> tuple[str, ...]:
    names = (fields,) if isinstance(fields, str) else tuple(fields)
    if not names or not set(names) <= set(_FIELDS) or len(set(names)) < len(names):
        raise ValueError(f"fields must be distinct names of {_FIELDS}, not {fields!r}.")
    return names


def _read_entries(file: Path) -> list[dict[str, Any]]:
    """Return the entries; check that each has a file name and a class."""
    if not file.is_file():
        raise FileNotFoundError(
            f"File {str(file)!r} does not exist. Pass imagenet_captions.json from "
            "https://github.com/mlfoundations/imagenet-captions, unpacked."
        )
    entries = parse_json(file.read_bytes(), repr(str(file)), "Download it again.")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{str(file)!r} must contain a list with at least one entry.")
    for row, entry in enumerate(entries):
        is_dict = isinstance(entry, dict)
        name, wnid = (entry.get(key) if is_dict else None for key in ("filename", "wnid"))
        if not (isinstance(name, str) and name and isinstance(wnid, str) and wnid):
            raise ValueError(
                f"Entry {row} of {str(file)!r} (the first is 0) must be an object with the texts "
                f"'filename' and 'wnid', not {str(entry)[:80]}."
            )
        if not re.fullmatch(r"[\w.\-]+", name):  # a path could lead out of the folder
            raise ValueError(
                f"Entry {row} of {str(file)!r} has the filename {name!r}. Use a name without "
                "folders."
            )
    return entries


def _find_images(folder: Path, entries: list[dict[str, Any]]) -> list[str | None]:
    """Return the path of each entry's image, or None if it does not exist."""
    # Folders are listed, because checking half a million files takes minutes on a network disk.
    flat = set(os.listdir(folder))
    wnids = {entry["wnid"] for entry in entries} & flat
    inside = {wnid: set(os.listdir(folder / wnid)) for wnid in wnids if (folder / wnid).is_dir()}
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
        f"{str(folder)!r} has no file for {len(missing)} of {n_entries} images, neither in "
        f"subfolders named by wnid nor in the folder itself: {format_list(missing)}."
    )
    if len(missing) == n_entries:
        raise FileNotFoundError(f"{message} Pass the folder that contains n01440764.")
    if on_missing == "raise":
        raise FileNotFoundError(f'{message} Pass on_missing="warn" to skip them.')
    if on_missing == "warn":
        warn(f'{message} They are skipped; pass on_missing="ignore" to silence this warning.')


def _make_caption(entry: dict[str, Any], fields: tuple[str, ...], row: int, file: Path) -> str:
    parts: list[str] = []
    for field in fields:
        value = entry.get(field) or ""
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"Entry {row} of {str(file)!r} (the first is 0) must have a text"
                f"{' or a list of texts' if field == 'tags' else ''} as {field!r}, not {value!r}."
            )
        parts += texts
    text = html.unescape(_TAG.sub(" ", " ".join(parts)))
    return " ".join(text.split())


def _look_up_names(wnids: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Return for each class a label that is unique in ImageNet, and its names."""
    from timm.data import ImageNetInfo  # timm takes seconds to import

    info = ImageNetInfo()
    imagenet_wnids = info.label_names()
    unknown = sorted(set(wnids) - set(imagenet_wnids))
    if unknown:
        raise ValueError(
            f"{len(unknown)} wnids are not among ImageNet's 1,000 classes: "
            f"{format_list(unknown)}. Remove their entries."
        )
    synonyms = {wnid: info.label_name_to_description(wnid) for wnid in imagenet_wnids}
    n_by_first_name = Counter(text.split(", ")[0] for text in synonyms.values())
    n_by_names = Counter(synonyms.values())
    names = {}
    for wnid in set(wnids):
        joined = synonyms[wnid]
        label = joined.split(", ")[0]
        if n_by_names[joined] > 1:
            definition = info.label_name_to_description(wnid, detailed=True).split(": ", 1)[1]
            label = f"{joined} ({definition})"
        elif n_by_first_name[label] > 1:
            label = joined
        names[wnid] = (label, joined.split(", "))
    return names
