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

    def card_scores(self) -> dict[str, float] | None:
        """Return the scores for the model card; None if nothing was held out."""
        if not self.recall:
            return None
        own = self.recall[-1]
        return {"recall@1": own.at_1 / 100, "recall@5": own.at_5 / 100}


class Model(NamedTuple):
    """A fitted aligner for images and texts, and the labels of a classifier that contained it."""

    aligner: Any
    labels: list[str] | None = None


def load_model(aligner: Any) -> Model:
    """Return the model to serve.

    Parameters
    ----------
    aligner : None, str, path-like or estimator
        None is the starter model, and ``"open_clip:..."`` a CLIP model. Any other str is the
        folder of a saved model or a Hub id. An estimator is an aligner, a Pipeline that ends in
        one, or a classifier or retriever that contains one.

    Returns
    -------
    model : Model
        The aligner, without caches, and the labels if there are any.

    Raises
    ------
    NotFittedError
        If the aligner is not fitted.
    ValueError
        If the aligner was fitted on features and has no encoders.
    """
    is_clip = isinstance(aligner, str) and aligner.startswith("open_clip:")
    if aligner is not None and not hasattr(aligner, "fit") and not is_clip:
        from ..persistence import load_pretrained

        aligner = load_pretrained(aligner)
    labels = None
    while hasattr(aligner, "aligner"):  # a classifier or a retriever
        if hasattr(aligner, "predict_proba"):
            labels = [str(label) for label in getattr(aligner, "classes_", [])] or None
        aligner = getattr(aligner, "aligner_", aligner.aligner)
    aligner = resolve_aligner(aligner)
    check_is_fitted(aligner)
    if hasattr(aligner, "best_estimator_"):  # a hyper-parameter search
        aligner = aligner.best_estimator_
    if isinstance(aligner, FrozenEstimator):
        aligner = aligner.estimator
    image_encoder, text_encoder = get_encoders(aligner)
    if image_encoder is None or text_encoder is None:
        modality = "image" if image_encoder is None else "text"
        raise ValueError(
            f"aligner has no {modality} encoder, because it was fitted on features, but the page "
            "needs images and texts. Pass make_pipeline(image_encoder, "
            "APEAligner(text_encoder=text_encoder)).fit(images, captions)."
        )
    # Uploads of visitors must not be stored in the caches of the encoders.
    return Model(replace_caches(aligner, None, None), labels)


def get_encoders(aligner: Any) -> tuple[Any, Any]:
    """Return the image encoder and the text encoder of a fitted aligner; None if it has none."""
    inner = unwrap_aligner(aligner)
    image, text = (
        getattr(inner, f"{modality}_encoder_", getattr(inner, f"{modality}_encoder", None))
        for modality in ("image", "text")
    )
    if image is None and isinstance(aligner, Pipeline) and len(aligner.steps) > 1:
        image = aligner.steps[0][1] if len(aligner.steps) == 2 else aligner[:-1]
    return image, text


def replace_caches(aligner: Any, image_cache: Any, text_cache: Any) -> Any:
    """Return a copy of a fitted aligner whose encoders use other feature caches.

    The copy shares the weights with the original.
    """
    copied = copy.copy(aligner)
    if isinstance(copied, Pipeline):
        copied.steps = [
            (name, replace_caches(step, image_cache, text_cache)) for name, step in copied.steps
        ]
        return copied
    for name, cache in (("image_encoder_", image_cache), ("text_encoder_", text_cache)):
        if hasattr(copied, name):
            setattr(copied, name, replace_caches(getattr(copied, name), cache, cache))
    if "cache" in copied.get_params(deep=False):  # an encoder, or CLIP with both encoders
        copied.cache = image_cache
    return copied


def encode(encoder: Any, items: Sequence[Any], progress: Progress, step: str) -> np.ndarray:
    """Encode items in batches and report the progress."""
    batches = []
    for start in range(0, len(items), _BATCH_SIZE):
        progress(start / len(items), f"{step} {start + 1} of {len(items)}")
        batches.append(encoder.transform(items[start : start + _BATCH_SIZE]))
    return np.concatenate(batches)


def make_head_pairs(image_encoder: Any, text_encoder: Any, progress: Progress) -> HeadPairs | None:
    """Return pairs of the image encoder's classification head, with the texts encoded.

    None if the encoder has no classification head. The features are cached on disk, since the
    class names are the same at each start of the page.
    """
    try:
        pairs = classifier_head_pairs(image_encoder)
    except (ValueError, TypeError):
        return None
    texts = [text for class_texts in pairs.texts for text in class_texts]
    owners = np.repeat(
        np.arange(len(pairs.texts)), [len(class_texts) for class_texts in pairs.texts]
    )
    unique = list(dict.fromkeys(texts))
    cached_encoder = clone(text_encoder)
    if "cache" in cached_encoder.get_params(deep=False):
        cached_encoder.set_params(cache=get_data_home() / "features")
    features = encode(cached_encoder, unique, progress, "Encoding class name")
    row_by_text = {text: row for row, text in enumerate(unique)}
    return HeadPairs(pairs.weights, features[[row_by_text[text] for text in texts]], owners)


class Download(NamedTuple):
    """Path of a zip file, and its temporary folder, which is deleted with this object."""

    path: str
    folder: Any


def save_zip(alignment: Alignment) -> Download | None:
    """Save an aligner as a zip of its `save_pretrained` folder.

    None if the server uses an encoder of its own that `save_pretrained` does not support.
    """
    folder = create_temporary_folder("download-")
    saved = Path(folder.name, _FOLDER_NAME)
    try:
        alignment.aligner.save_pretrained(saved, scores=alignment.card_scores())
    except TypeError:
        return None
    path = Path(folder.name, f"{_FOLDER_NAME}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(saved.iterdir()):
            archive.write(file, f"{_FOLDER_NAME}/{file.name}")
    return Download(str(path), folder)


def load_zip(archive: Any, folder: str, served_aligner: Any, limits: Limits) -> Alignment:
    """Load an aligner that was downloaded from the page.

    Parameters
    ----------
    archive : path-like
        Zip file of the visitor.
    folder : str
        Empty folder for the unpacked files.
    served_aligner : estimator
        Aligner of the server. Only its encoders are allowed in the zip file, because the file
        could otherwise make the server load any folder or download any model.
    limits : Limits
        Limits on the zip file.

    Returns
    -------
    alignment : Alignment
        The aligner, without recall.

    Raises
    ------
    UserError
        If the zip file does not contain such an aligner, is damaged, or has other encoders.
    """
    from ..persistence import load_pretrained
    from ..persistence._serialize import Recorder
    from ..persistence.files import read_model

    unpack(archive, folder, _SUFFIXES, limits)
    saved = skip_single_folder(Path(folder))
    try:
        config, _ = read_model(saved)
        record = config["model"]
        class_name = record["$class"]
        if class_name not in _METHOD_BY_CLASS:
            raise UserError(
                f"The zip contains a {str(class_name)[:40]!r}, not an aligner of this page. "
                f"Upload a downloaded aligner: one of {', '.join(_METHOD_BY_CLASS)}."
            )
        allowed = [
            Recorder().object(encoder, "encoder") for encoder in get_encoders(served_aligner)
        ]
        encoders = list(_iter_encoder_records(record))
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


def _iter_encoder_records(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the records of encoders at any depth of a model's configuration."""
    if isinstance(value, dict):
        if str(value.get("$class", "")).endswith("Encoder"):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _iter_encoder_records(item)
