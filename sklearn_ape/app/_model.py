"""The served model, alignment on a visitor's images, and downloads and uploads of aligners."""

from __future__ import annotations

import copy
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.validation import check_is_fitted

from ..aligners.ape import APEAligner
from ..aligners.cca import CCAAligner
from ..aligners.kernel import KernelAligner
from ..aligners.pairs import flatten_captions
from ..aligners.wrapper import get_wrapped_aligner, resolve_aligner, unwrap, unwrap_aligner
from ..datasets import get_data_home
from ..encoders import HeadPairs, classifier_head_pairs
from ..encoders.images import group_images
from ..features import MemoryFeatureCache
from ..heads import TwoTower
from ..inspection import compute_similarity_maps
from ..persistence import load_pretrained
from ..persistence.files import TENSORS, read_model
from ..persistence.serialize import Serializer, iter_records
from ..prompts import resolve_class_names
from ..training import split_pairs
from ..utils.messages import escape_markdown
from ..utils.validation import number_distinct
from ..zero_shot import FewShotClassifier, MultiLabelZeroShotClassifier, ZeroShotClassifier
from ._limits import EpochReporter, Limits, Progress, UserError, scale_progress
from ._uploads import CaptionedImages, create_temporary_folder, skip_single_folder, unpack

# Items per batch: between two batches, progress is reported and other requests are served.
_BATCH_SIZE = 32

_FOLDER_NAME = "aligner"
_SUFFIXES = frozenset((".json", ".safetensors", ".md"))
_METHOD_BY_CLASS = {"APEAligner": "ape", "CCAAligner": "cca", "KernelAligner": "kernel"}
_ALIGNERS = {"extend": APEAligner, "kernel": KernelAligner, "ape": APEAligner, "cca": CCAAligner}

_HELD_OUT_FRACTION = 0.2
_SEED = 0
_RECALL_KS = (1, 5)
_MIN_IMAGES = 4

# Fractions of the total time at the end of each step: encode images, encode captions, fit the
# aligner for the evaluation, fit the final aligner.
_STEPS = (0.6, 0.7, 0.85, 0.98)

_RED, _BLUE, _OPACITY = (214, 39, 40), (31, 119, 180), 0.65
_POSITIONS = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)


class Recall(NamedTuple):
    """Recall@k in percent on the held-out images, averaged over both directions."""

    aligner_name: str
    at_1: float
    at_5: float


class Alignment(NamedTuple):
    """A fitted aligner, how it was fitted, and its recall next to the initial aligner's."""

    aligner: Any
    method: str
    n_images: int
    n_held_out: int
    recall: list[Recall]
    remark: str
    with_head: bool = False


class Model(NamedTuple):
    """A fitted aligner for images and texts, and the labels of a classifier that contained it.

    A multi-label `classifier` is replaced by a single-label one with its names and templates. The
    name is shown on the page. `names` are the texts that the classifier embeds for each label.
    """

    aligner: Any
    labels: list[str] | None = None
    classifier: ZeroShotClassifier | None = None
    name: str = "aligner"
    names: dict[str, list[str]] | None = None

    @property
    def few_shot(self) -> FewShotClassifier | None:
        """The classifier, if it has labelled images."""
        classifier: Any = self.classifier
        return classifier if hasattr(classifier, "coef_") else None


def load_model(aligner: Any) -> Model:
    """Return the model for the parameter ``aligner`` of `build_app`, without caches."""
    estimator = aligner
    is_clip = isinstance(aligner, str) and aligner.startswith("open_clip:")
    if aligner is not None and not hasattr(aligner, "fit") and not is_clip:
        estimator = load_pretrained(aligner)
    wrapped = get_wrapped_aligner(resolve_aligner(estimator))
    check_is_fitted(wrapped)
    estimator = unwrap(estimator, None)[1]  # the classifier of a Pipeline or of a search
    preprocessing, inner = unwrap(wrapped)
    fitted = inner if preprocessing is None else make_pipeline(preprocessing, inner)
    _check_has_encoders(fitted)
    # Uploads of visitors must not be stored in the caches of the encoders.
    fitted = replace_caches(fitted, None)
    labels, names = _get_labels(estimator)
    classifier = _copy_classifier(estimator, fitted) if labels else None
    if not isinstance(aligner, str | os.PathLike):  # otherwise, it names the model
        aligner = getattr(estimator, "aligner", aligner)  # of a classifier or retriever
    return Model(fitted, labels, classifier, _name_model(aligner, inner), names)


def _check_has_encoders(aligner: Any) -> None:
    for modality, encoder in zip(("image", "text"), get_encoders(aligner), strict=True):
        if encoder is None:
            raise ValueError(
                f"aligner has no {modality} encoder, because it was fitted on features, but the "
                "page needs images and texts. Pass make_pipeline(image_encoder, "
                "APEAligner(text_encoder=text_encoder)).fit(images, captions)."
            )


def _get_labels(estimator: Any) -> tuple[list[str] | None, dict[str, list[str]] | None]:
    """Return the labels of a classifier and the names of each label; None if it has none."""
    if not hasattr(estimator, "predict_proba"):
        return None, None
    # The classes_ of a multi-label classifier are 0 and 1 for each of its labels_.
    classes = getattr(estimator, "labels_", getattr(estimator, "classes_", []))
    labels = [str(label) for label in classes] or None
    if getattr(estimator, "labels", None) is None:
        return labels, None
    texts_by_label = resolve_class_names(estimator.labels)
    return labels, {str(label): texts for label, texts in texts_by_label.items()}


def _copy_classifier(estimator: Any, aligner: Any) -> ZeroShotClassifier | None:
    """Return a copy that predicts one label, as the page shows it; None for other classifiers."""
    if isinstance(estimator, MultiLabelZeroShotClassifier):
        classifier = ZeroShotClassifier(estimator._resolve_names(), templates=estimator.templates)
    elif isinstance(estimator, ZeroShotClassifier):
        classifier = copy.copy(estimator)
    else:
        return None
    classifier.aligner = classifier.aligner_ = aligner
    classifier._note_fit()
    return classifier


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
    # On disk, since the class names are the same at each start of the page.
    cached_encoder = clone_with_cache(text_encoder, get_data_home() / "features")
    unique_texts = list(dict.fromkeys(texts))
    features = encode(cached_encoder, unique_texts, progress, "Encoding class name")
    return HeadPairs(pairs.weights, features[number_distinct(texts)], owners)


def clone_with_cache(encoder: Any, cache: Any) -> Any:
    """Return an unfitted copy of an encoder with another feature cache."""
    cloned = clone(encoder)
    return cloned.set_params(cache=cache) if "cache" in cloned.get_params(deep=False) else cloned


def may_have_maps(aligner: Any) -> bool:
    """Return whether to offer similarity maps, which some encoders and heads do not support."""
    module = getattr(unwrap_aligner(aligner), "module_", None)
    return isinstance(module, TwoTower) and hasattr(get_encoders(aligner)[0], "transform_grid")


def draw_similarity_map(aligner: Any, path: str, texts: list[str]) -> tuple[Image.Image, str]:
    """Return an image in gray with the map of texts in color, and the position of the maximum."""
    maps, (pixels,) = compute_similarity_maps(aligner, [path], texts)
    values = maps[0].mean(axis=0)  # the map of the mean embedding
    size = pixels.shape[1], pixels.shape[0]
    resized = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
    relative = np.asarray(resized)[:, :, None] / (np.abs(values).max() or 1)
    # Without its own colors, the image does not hide those of the map.
    gray = pixels.mean(axis=2, keepdims=True)
    colors = np.where(relative > 0, _RED, _BLUE)
    blended = gray + (colors - gray) * _OPACITY * np.abs(relative)
    peak = np.unravel_index(values.argmax(), values.shape)
    row, column = (3 * cell // n for cell, n in zip(peak, values.shape, strict=True))
    return Image.fromarray(blended.astype(np.uint8)), _POSITIONS[3 * row + column]


def list_methods(initial_aligner: Any) -> list[str]:
    """Return the methods of `align`: not every aligner can be extended, such as CLIP models."""
    module = getattr(unwrap_aligner(initial_aligner), "module_", None)
    return [name for name in _ALIGNERS if name != "extend" or isinstance(module, TwoTower)]


def align(
    initial_aligner: Any,
    data: CaptionedImages,
    method: str,
    head_pairs: HeadPairs | None,
    progress: Progress,
) -> Alignment:
    """Fit an aligner on captioned images, with the encoders of another aligner.

    With the method "extend", the pairs are added to that aligner. The aligner is fitted on all
    pairs. The recall is that of an aligner fitted without the held-out pairs, next to the recall
    of `initial_aligner` on the same pairs.
    """
    methods = list_methods(initial_aligner)
    if method not in methods:
        raise UserError(f"{method!r} is not a method. Choose one of {', '.join(methods)}.")
    n_images = len(data.images)
    if n_images < _MIN_IMAGES:
        raise UserError(
            f"The number of readable images with captions is {n_images}, but at least "
            f"{_MIN_IMAGES} are needed. Add images; a hundred or more give good results."
        )
    cache = MemoryFeatureCache()  # the images are encoded once for all steps below
    image_encoder, text_encoder = (
        clone_with_cache(encoder, cache) for encoder in get_encoders(initial_aligner)
    )
    encode(image_encoder, data.images, scale_progress(progress, 0, _STEPS[0]), "Encoding image")
    texts, rows = flatten_captions(data.captions)
    encode(text_encoder, texts, scale_progress(progress, *_STEPS[:2]), "Encoding caption")

    def fit(rows: np.ndarray, start: float, end: float) -> Any:
        options: dict[str, Any] = {"head_pairs": head_pairs}
        if method == "extend":
            options["init"] = initial_aligner
        if method == "ape":
            reporter = EpochReporter(scale_progress(progress, start, end))
            options |= {"random_state": _SEED, "callbacks": [reporter]}
        aligner = _ALIGNERS[method](
            image_encoder=image_encoder, text_encoder=text_encoder, **options
        )
        progress(start, f"Fitting on {len(rows)} pairs")
        try:
            selected = data.select(rows)
            return aligner.fit(selected.images, selected.captions)
        except (ValueError, FloatingPointError) as error:
            raise UserError(
                "The aligner cannot be fitted on these images and captions. Choose another "
                "method, or add images with other captions."
            ) from error

    held_out = _choose_held_out(data, texts, rows)
    recall, remark = [], ""
    if len(held_out):
        evaluated = fit(np.setdiff1d(rows, held_out), *_STEPS[1:3])
        test_data = data.select(held_out)
        recall = [
            _measure_recall("initial aligner", initial_aligner, test_data),
            _measure_recall("your aligner", evaluated, test_data),
        ]
    else:
        remark = (
            "Not evaluated: a held-out test needs at least 50 pairs without a common image or "
            "caption. Try the aligner on other images."
        )
    aligner = fit(np.arange(n_images), *_STEPS[2:4])
    return Alignment(
        _remove_training_objects(aligner),
        method,
        n_images=n_images,
        n_held_out=len(held_out),
        recall=recall,
        remark=remark,
        with_head=head_pairs is not None,
    )


def _choose_held_out(data: CaptionedImages, texts: list[str], rows: np.ndarray) -> np.ndarray:
    """Return rows of images to evaluate on, or none of them if there are too few pairs."""
    # The two parts have no image, nor a copy of one, and no caption in common.
    image_ids = number_distinct(group_images(data.images).tolist())
    pairs = np.column_stack([image_ids[rows], number_distinct(texts)])
    split = split_pairs(pairs, _HELD_OUT_FRACTION, np.random.RandomState(_SEED))
    return np.array([], int) if split.valid is None else np.unique(rows[split.valid])


def _remove_training_objects(aligner: Any) -> Any:
    """Remove caches, callbacks and head pairs, which are not needed after the fit."""
    for name in ("image_encoder", "text_encoder", "image_encoder_", "text_encoder_"):
        setattr(aligner, name, clone_with_cache(getattr(aligner, name), None))
    aligner.head_pairs = None
    if hasattr(aligner, "callbacks"):
        aligner.callbacks = None
    return aligner


def _measure_recall(name: str, aligner: Any, data: CaptionedImages) -> Recall:
    inner = unwrap_aligner(aligner)
    X = data.images if inner is aligner else aligner[:-1].transform(data.images)
    groups = group_images(data.images)
    report = inner.retrieval_report(X, data.captions, ks=_RECALL_KS, groups=groups)
    means = (np.mean([direction[k] for direction in report.values()]) for k in _RECALL_KS)
    return Recall(name, *(100 * float(mean) for mean in means))


def describe_model(alignment: Alignment | None) -> str:
    """Return a sentence about the aligner in use."""
    if alignment is None:
        return "You are using the **initial aligner** of this page."
    return f"You are using **your own aligner** ({alignment.method}) in all three tabs."


def describe_alignment(alignment: Alignment | None, remark: str) -> str:
    """Describe the result of an alignment in Markdown."""
    if alignment is None:
        return "The initial aligner is in use again."
    lines = []
    if alignment.recall:
        n = alignment.n_held_out
        lines = [
            f"## Evaluation on {n} held-out images",
            "Recall of captions for images and of images for captions: how often is the correct "
            "result the first, or among the first five?",
            "",
            "| | first | first five |",
            "|---|---|---|",
            *(f"| {r.aligner_name} | {r.at_1:.0f} % | {r.at_5:.0f} % |" for r in alignment.recall),
            f"| chance | {100 / n:.0f} % | {min(100, 500 / n):.0f} % |",
            "",
            f"Your aligner was then fitted on all {alignment.n_images} images.",
            "",
            _compare_recalls(alignment),
        ]
    elif alignment.n_images:
        lines = [f"Your aligner was fitted on all {alignment.n_images} images."]
    # The remark may contain names of uploaded files.
    return "\n".join([*lines, "", alignment.remark, "", escape_markdown(remark)]).strip()


def _compare_recalls(alignment: Alignment) -> str:
    """Compare the two aligners, if their difference is larger than its standard error."""
    initial, own = alignment.recall[0].at_1, alignment.recall[-1].at_1
    mean = (initial + own) / 200
    # Standard error of the difference of two proportions with a common mean.
    error = 100 * math.sqrt(2 * mean * (1 - mean) / alignment.n_held_out)
    if abs(own - initial) <= error:
        return "The difference is within the standard error for so few images."
    if own > initial:
        return "**Your aligner is better on these images.**"
    advice = "" if alignment.with_head else ", also train on the class names"
    return (
        f"**The initial aligner is better on these images.** Upload more images{advice}, or reset "
        "to the initial aligner."
    )


class Download(NamedTuple):
    """Path of a zip file, and its temporary folder, which is deleted with this object."""

    path: str
    folder: Any


def save_zip(alignment: Alignment) -> Download | None:
    """Save an aligner as a zip; None if `save_pretrained` does not support its encoders."""
    folder = create_temporary_folder("download-")
    saved = Path(folder.name, _FOLDER_NAME)
    scores = None
    if alignment.recall:
        own = alignment.recall[-1]
        scores = {"recall@1": own.at_1 / 100, "recall@5": own.at_5 / 100}
    try:
        alignment.aligner.save_pretrained(saved, scores=scores)
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
        # Other classes, such as CLIPAligner, load encoders that have no records of their own.
        classes = (*_METHOD_BY_CLASS, "HeadPairs")
        if any(r not in allowed and r["$class"] not in classes for r in iter_records(record)):
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
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            "The aligner in the zip is damaged or was saved by another version of sklearn-ape. "
            "Upload the file that the button 'Download the aligner' of this page saved."
        ) from error
    method = _METHOD_BY_CLASS[class_name]
    return Alignment(aligner, method, 0, 0, [], "The aligner was loaded from your zip file.")
