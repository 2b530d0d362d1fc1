"""The served model, and downloads and uploads of aligners."""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.validation import check_is_fitted

from ..aligners.pairs import flatten_captions
from ..aligners.wrapper import get_wrapped_aligner, resolve_aligner, unwrap
from ..datasets import get_data_home
from ..encoders import HeadPairs, classifier_head_pairs
from ..persistence import load_pretrained
from ..persistence.files import TENSORS, read_model
from ..persistence.serialize import Serializer, iter_encoder_records
from ..zero_shot import FewShotClassifier
from ._limits import Limits, Progress, UserError, hide_folder
from ._uploads import create_temporary_folder, skip_single_folder, unpack

# Items per batch: between two batches, progress is reported and other requests are served.
_BATCH_SIZE = 32

_FOLDER_NAME = "aligner"
_SUFFIXES = frozenset((".json", ".safetensors", ".md"))
_METHOD_BY_CLASS = {"APEAligner": "ape", "CCAAligner": "cca", "KernelAligner": "kernel"}


class Recall(NamedTuple):
    """Recall@k in percent on the held-out images, averaged over both directions."""

    aligner_name: str
    at_1: float
    at_5: float


class Alignment(NamedTuple):
    """A fitted aligner, how it was fitted, and its recall next to the initial aligner's."""

    aligner: Any
    method: str
    n_pairs: int
    n_held_out: int
    recall: list[Recall]
    remark: str
    with_head: bool = False

    def make_card_scores(self) -> dict[str, float] | None:
        """Return the scores for the model card; None if nothing was held out."""
        if not self.recall:
            return None
        own = self.recall[-1]
        return {"recall@1": own.at_1 / 100, "recall@5": own.at_5 / 100}


class Model(NamedTuple):
    """A fitted aligner for images and texts, and the labels of a classifier that contained it.

    If that was a few-shot classifier with labelled images, it is kept as well. The name is shown
    on the page.
    """

    aligner: Any
    labels: list[str] | None = None
    few_shot: FewShotClassifier | None = None
    name: str = "aligner"


def load_model(aligner: Any) -> Model:
    """Return the model for the parameter ``aligner`` of `build_app`, without caches."""
    estimator = aligner
    is_clip = isinstance(aligner, str) and aligner.startswith("open_clip:")
    if aligner is not None and not hasattr(aligner, "fit") and not is_clip:
        estimator = load_pretrained(aligner)
    labels = None
    if hasattr(estimator, "predict_proba"):
        labels = [str(label) for label in getattr(estimator, "classes_", [])] or None
    wrapped = get_wrapped_aligner(resolve_aligner(estimator))
    check_is_fitted(wrapped)
    preprocessing, inner = unwrap(wrapped)
    fitted = inner if preprocessing is None else make_pipeline(preprocessing, inner)
    for modality, encoder in zip(("image", "text"), get_encoders(fitted), strict=True):
        if encoder is None:
            raise ValueError(
                f"aligner has no {modality} encoder, because it was fitted on features, but the "
                "page needs images and texts. Pass make_pipeline(image_encoder, "
                "APEAligner(text_encoder=text_encoder)).fit(images, captions)."
            )
    # Uploads of visitors must not be stored in the caches of the encoders.
    fitted = replace_caches(fitted, None)
    few_shot = None
    if isinstance(estimator, FewShotClassifier) and hasattr(estimator, "coef_"):
        few_shot = copy.copy(estimator)
        few_shot.aligner = few_shot.aligner_ = fitted
        few_shot._note_fit()
    return Model(fitted, labels, few_shot, _name_model(aligner, inner))


def _name_model(source: Any, aligner: Any) -> str:
    if source is None:
        return "starter model"
    if isinstance(source, str | os.PathLike):
        return _hide_parents(os.fspath(source))
    return type(aligner).__name__


def _hide_parents(name: str) -> str:
    """Return the name of a folder, or the name of a model unchanged."""
    return Path(name).name if os.path.isdir(name) else name


def describe_encoders(aligner: Any) -> str:
    """Return the names of the encoders of a fitted aligner."""
    image, text = (
        _hide_parents(str(getattr(encoder, "model_name", type(encoder).__name__)))
        for encoder in get_encoders(aligner)
    )
    return f"image encoder {image}, text encoder {text}"


def get_encoders(aligner: Any) -> tuple[Any, Any]:
    """Return the image encoder and the text encoder of a fitted aligner; None if it has none."""
    preprocessing, inner = unwrap(aligner)
    image, text = (
        getattr(inner, f"{modality}_encoder_", getattr(inner, f"{modality}_encoder", None))
        for modality in ("image", "text")
    )
    return preprocessing if image is None else image, text


def replace_caches(aligner: Any, cache: Any, on_error: str | None = None) -> Any:
    """Return a copy of a fitted aligner with a cache of image features, and none of texts.

    The copy has the same weights. `on_error` replaces the parameter of its encoders, unless it is
    None.
    """
    copied = copy.copy(aligner)
    if isinstance(copied, Pipeline):
        copied.steps = [
            (name, replace_caches(step, cache, on_error)) for name, step in copied.steps
        ]
        return copied
    for name, encoder_cache in (("image_encoder_", cache), ("text_encoder_", None)):
        if hasattr(copied, name):
            setattr(copied, name, replace_caches(getattr(copied, name), encoder_cache, on_error))
    if "cache" in copied.get_params(deep=False):  # an encoder, or CLIP with both encoders
        copied.cache = cache
        copied.on_error = on_error or copied.on_error
    return copied


def encode(encoder: Any, items: Sequence[Any], progress: Progress, step: str) -> np.ndarray:
    """Encode items in batches and report the progress."""
    batches = []
    for start in range(0, len(items), _BATCH_SIZE):
        progress(start / len(items), f"{step} {start + 1} of {len(items)}")
        batches.append(encoder.transform(items[start : start + _BATCH_SIZE]))
    return np.concatenate(batches)


def make_head_pairs(image_encoder: Any, text_encoder: Any, progress: Progress) -> HeadPairs | None:
    """Return pairs of the image encoder's classification head, if it has one, with features."""
    try:
        pairs = classifier_head_pairs(image_encoder)
    except (ValueError, TypeError):
        return None
    texts, owners = flatten_captions(list(pairs.texts))
    unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    # On disk, since the class names are the same at each start of the page.
    cached_encoder = clone_with_cache(text_encoder, get_data_home() / "features")
    features = encode(cached_encoder, list(unique), progress, "Encoding class name")
    return HeadPairs(pairs.weights, features[[unique[text] for text in texts]], owners)


def clone_with_cache(encoder: Any, cache: Any) -> Any:
    """Return an unfitted copy of an encoder with another feature cache."""
    cloned = clone(encoder)
    return cloned.set_params(cache=cache) if "cache" in cloned.get_params(deep=False) else cloned


class Download(NamedTuple):
    """Path of a zip file, and its temporary folder, which is deleted with this object."""

    path: str
    folder: Any


def save_zip(alignment: Alignment) -> Download | None:
    """Save an aligner as a zip; None if `save_pretrained` does not support its encoders."""
    folder = create_temporary_folder("download-")
    saved = Path(folder.name, _FOLDER_NAME)
    try:
        alignment.aligner.save_pretrained(saved, scores=alignment.make_card_scores())
    except TypeError:
        return None
    path = Path(folder.name, f"{_FOLDER_NAME}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(saved.iterdir()):
            archive.write(file, f"{_FOLDER_NAME}/{file.name}")
    return Download(str(path), folder)


def load_zip(archive: Any, folder: str, served_aligner: Any, limits: Limits) -> Alignment:
    """Load an aligner that was downloaded from the page, using an empty folder.

    Only the encoders of the served aligner are allowed in the zip file, because the file could
    otherwise make the server load any folder or download any model.
    """
    unpack(archive, folder, _SUFFIXES, limits)
    saved = skip_single_folder(Path(folder))
    if not (saved / TENSORS).is_file():
        raise UserError(
            "The zip is not an aligner that was downloaded from this page, which contains "
            f"{TENSORS}. Upload the file that the button 'Download the aligner' saved."
        )
    try:
        config, _ = read_model(saved)
        record = config["model"]
        class_name = record["$class"]
        if class_name not in _METHOD_BY_CLASS:
            raise UserError(
                f"The zip contains a {str(class_name)[:40]!r}, not an aligner of this page. "
                f"Upload a downloaded aligner: one of {', '.join(_METHOD_BY_CLASS)}."
            )
        served = get_encoders(served_aligner)
        allowed = [Serializer().encode_estimator(encoder, "encoder") for encoder in served]
        encoders = list(iter_encoder_records(record))
        if not encoders or any(encoder not in allowed for encoder in encoders):
            raise UserError(
                "The aligner in the zip uses other encoders than this page. Ask the person who "
                "runs the page to start it with this aligner."
            )
        aligner = load_pretrained(saved)
        if None in get_encoders(aligner):
            raise UserError(
                "The aligner in the zip has no encoders, because it was fitted on features. "
                "Upload an aligner that was downloaded from this page."
            )
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise hide_folder(error, saved) from error
    method = _METHOD_BY_CLASS[class_name]
    return Alignment(aligner, method, 0, 0, [], "The aligner was loaded from your zip file.")
