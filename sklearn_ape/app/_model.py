"""The served model, and downloads and uploads of aligners."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ..aligners.wrapper import resolve_aligner, unwrap_aligner
from ..datasets import get_data_home
from ..encoders import HeadPairs, classifier_head_pairs
from ._limits import Limits, Report, UserError, without_paths
from ._uploads import down, temporary_folder, unpack


class Recall(NamedTuple):
    """Recall@k in %, of one aligner on the images held out, over both directions."""

    who: str
    at_1: float
    at_5: float


class Alignment(NamedTuple):
    """A fitted aligner, what was measured and whether class names were learned as well."""

    aligner: Any
    method: str
    n_pairs: int
    n_held_out: int
    recall: list[Recall]
    remark: str
    with_head: bool = False

    def scores(self) -> dict[str, float] | None:
        """Return what a model card says of it, or None where nothing was held out."""
        if not self.recall:
            return None
        after = self.recall[-1]
        return {"recall@1": after.at_1 / 100, "recall@5": after.at_5 / 100}


_AT_ONCE = 32


class Model(NamedTuple):
    """A fitted aligner of images and texts, and names of classes where it came with some."""

    aligner: Any
    labels: list[str] | None = None


def load_model(aligner: Any) -> Model:
    """Return what the person who starts the page named.

    Parameters
    ----------
    aligner : None, str, path-like or estimator
        None is the starter model, ``"open_clip:..."`` a CLIP; any other str is a saved folder or
        a hub id. An estimator is an aligner, a Pipeline that ends in one, or a classifier or
        retriever around it.

    Returns
    -------
    model : Model
        Takes images and texts.

    Raises
    ------
    NotFittedError
        When it is not fitted.
    ValueError
        When it takes features instead of images and texts.
    """
    if aligner is not None and not hasattr(aligner, "fit") and not _is_clip(aligner):
        from .. import load_pretrained

        aligner = load_pretrained(aligner)
    labels = None
    while hasattr(aligner, "aligner"):  # a classifier or a retriever
        if hasattr(aligner, "predict_proba"):
            labels = [str(label) for label in getattr(aligner, "classes_", [])] or None
        aligner = getattr(aligner, "aligner_", aligner.aligner)
    aligner = resolve_aligner(aligner)
    check_is_fitted(aligner)
    if hasattr(aligner, "best_estimator_"):  # a search
        aligner = aligner.best_estimator_
    if isinstance(aligner, FrozenEstimator):
        aligner = aligner.estimator
    image_encoder, text_encoder = encoders_of(aligner)
    if image_encoder is None or text_encoder is None:
        side = "image" if image_encoder is None else "text"
        raise ValueError(
            f"This aligner was fitted on features and has no {side} encoder, and the page takes "
            "images and words: pass make_pipeline(image_encoder, "
            "APEAligner(text_encoder=text_encoder)).fit(images, captions)."
        )
    # What visitors send is to be forgotten, whatever cache the aligner came with.
    return Model(with_caches(aligner, None, None), labels)


def _is_clip(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("open_clip:")


def encoders_of(aligner: Any) -> tuple[Any, Any]:
    """Return the encoders of images and of texts in a fitted aligner, None where it has none."""
    inner = unwrap_aligner(aligner)
    image, text = (
        getattr(inner, f"{side}_encoder_", getattr(inner, f"{side}_encoder", None))
        for side in ("image", "text")
    )
    if image is None and isinstance(aligner, Pipeline) and len(aligner.steps) > 1:
        image = aligner.steps[0][1] if len(aligner.steps) == 2 else aligner[:-1]
    return image, text


def with_caches(aligner: Any, image: Any, text: Any) -> Any:
    """Return a copy of a fitted aligner whose encoders keep features in these caches.

    Weights and solutions are shared with the original.
    """
    changed = copy.copy(aligner)
    if isinstance(changed, Pipeline):
        changed.steps = [(name, with_caches(step, image, text)) for name, step in changed.steps]
        return changed
    for name, cache in (("image_encoder_", image), ("text_encoder_", text)):
        if hasattr(changed, name):
            setattr(changed, name, with_caches(getattr(changed, name), cache, cache))
    if "cache" in changed.get_params(deep=False):  # an encoder, or CLIP's two in one
        changed.cache = image
    return changed


def encode(encoder: Any, items: Sequence[Any], report: Report, what: str) -> np.ndarray:
    """Encode items a few at a time, so that others' requests come in between."""
    parts = []
    for start in range(0, len(items), _AT_ONCE):
        report(start / len(items), f"{what} {start + 1} of {len(items)}")
        parts.append(encoder.transform(items[start : start + _AT_ONCE]))
    return np.concatenate(parts)


def head_pairs_of(image_encoder: Any, text_encoder: Any, report: Report) -> HeadPairs | None:
    """Return the names that the image encoder's own classes have, with features of them.

    None for an encoder without a classification head. They are kept on disk: the same names are
    read at every start.
    """
    try:
        pairs = classifier_head_pairs(image_encoder)
    except (ValueError, TypeError):
        return None
    texts = [text for texts in pairs.texts for text in texts]
    owners = np.repeat(np.arange(len(pairs.texts)), [len(texts) for texts in pairs.texts])
    unique = list(dict.fromkeys(texts))
    reader = clone(text_encoder)
    if "cache" in reader.get_params(deep=False):
        reader.set_params(cache=get_data_home() / "features")
    features = encode(reader, unique, report, "Reading class name")
    row = {text: number for number, text in enumerate(unique)}
    return HeadPairs(pairs.weights, features[[row[text] for text in texts]], owners)


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
    from ..persistence.files import read_model
    from ..persistence.serialize import Serializer

    unpack(archive, folder, _SUFFIXES, limits)
    inside = down(Path(folder))
    try:
        config, _ = read_model(inside)
        model = config["model"]
        kind = model["$class"]
        if kind not in _KINDS:
            raise UserError(
                f"The zip holds a {str(kind)[:40]!r}: expected an aligner downloaded from here, "
                f"one of {', '.join(_KINDS)}."
            )
        own = [
            Serializer().encode_estimator(encoder, "encoder") for encoder in encoders_of(served)
        ]
        named = list(_encoders(model))
        if not named or any(encoder not in own for encoder in named):
            raise UserError(
                "The aligner in the zip is made for other encoders than those of this page: ask "
                "whoever runs the page to start it with that aligner."
            )
        aligner = load_pretrained(inside)
        if None in encoders_of(aligner):
            raise UserError("The aligner in the zip has no encoders: it takes features only.")
    except UserError:
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
