"""Actions of the web app: classify an image, search images, fit an aligner on own images."""

from __future__ import annotations

import copy
import os
import re
from typing import Any, NamedTuple

import numpy as np
from skorch.callbacks import Callback

from ..aligners.ape import APEAligner
from ..aligners.cca import CCAAligner
from ..aligners.kernel import KernelAligner
from ..aligners.pairs import flatten_captions
from ..aligners.wrapper import unwrap_aligner
from ..encoders import HeadPairs
from ..encoders.items import image_groups
from ..features import MemoryFeatureCache
from ..heads import TwoTower
from ..prompts import TEMPLATES
from ..retrieval import CrossModalRetriever
from ..training import split_pairs
from ..utils.messages import escape_markdown
from ..zero_shot import FewShotClassifier, ZeroShotClassifier
from ._limits import Limits, Progress, UserError, check_text, quote, scale_progress
from ._model import Alignment, Recall, clone_with_cache, encode, get_encoders, replace_caches
from ._uploads import CaptionedImages, check_image

_ALIGNERS = {"extend": APEAligner, "kernel": KernelAligner, "ape": APEAligner, "cca": CCAAligner}

_HELD_OUT_FRACTION = 0.2
_SEED = 0
_RECALL_KS = (1, 5)
_MIN_IMAGES = 4

# Fractions of the total time at the end of each step: encode images, encode captions, fit the
# aligner for the evaluation, fit the final aligner.
_STEPS = (0.6, 0.7, 0.85, 0.98)


class Classification(NamedTuple):
    """Labels with probabilities in decreasing order, and a summary in Markdown."""

    probabilities: dict[str, float]
    summary: str


def parse_labels(text: str | None, limits: Limits) -> list[str]:
    """Return the distinct label names of a text, separated by commas, or one per line.

    Several lines are names with commas, unless a line has two commas: then a list was continued on
    another line. List markers before a name and commas behind it are ignored.
    """
    lines = [line.strip(" \t,;") for line in re.split(r"\r\n|\r|\n", text or "")]
    lines = [re.sub(r"^[-*•]\s+", "", line) for line in lines if line]
    has_one_per_line = len(lines) > 1 and all(len(re.findall("[,;]", x)) < 2 for x in lines)
    names = lines if has_one_per_line else re.split(r"[,;\n]", "\n".join(lines))
    labels = list(dict.fromkeys(" ".join(name.split()) for name in names if name.strip()))
    if not labels:
        raise UserError("There are no labels yet. Enter at least two, such as 'cat, dog, car'.")
    if len(labels) == 1:
        raise UserError(
            f"{quote(labels[0])} is the only label, so its probability would be 100%. Enter at "
            "least two labels."
        )
    if len(labels) > limits.labels:
        raise UserError(
            f"There are {len(labels):,} labels; the limit is {limits.labels:,}. Enter fewer "
            "labels."
        )
    for label in labels:
        check_text(label, limits, "label")
    return labels


def classify(
    aligner: Any,
    image: str | os.PathLike[str] | None,
    labels: str | None,
    templates: str,
    threshold: float,
    limits: Limits,
    few_shot: FewShotClassifier | None = None,
) -> Classification:
    """Classify an image; below the threshold, the summary says "unknown".

    A few-shot classifier is used if its classes are the labels.
    """
    path = check_image(image, limits)
    names = parse_labels(labels, limits)
    _check_templates(templates)
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise UserError("The threshold must be between 0 and 1.")
    try:
        classifier = _select_few_shot(few_shot, names) or ZeroShotClassifier(
            names, aligner=aligner, templates=templates
        )
        top_labels, top_probabilities = classifier.predict_top_k([path], k=len(names))
    except ValueError as error:  # about the labels, since the image was checked above
        raise UserError(str(error).replace(path, "The image")) from error
    probabilities = {
        str(label): float(p) for label, p in zip(top_labels[0], top_probabilities[0], strict=True)
    }
    best, probability = next(iter(probabilities.items()))
    if probability < threshold:
        summary = (
            f"**Unknown.** The most probable label, {escape_markdown(best)}, has "
            f"{probability:.0%}, less than the threshold of {threshold:.0%}."
        )
    else:
        summary = (
            f"**{escape_markdown(best)}**, {probability:.0%}, among {len(names)} labels "
            f"(chance {100 / len(names):.2g}%)."
        )
    if isinstance(classifier, FewShotClassifier):
        summary += f" Labelled images used: {classifier.class_count_.sum()}."
        if classifier.templates != templates:
            summary += " The prompt templates are those of the first correction."
    return Classification(probabilities, summary)


def correct(
    aligner: Any,
    image: str | os.PathLike[str] | None,
    labels: str | None,
    templates: str,
    correct_label: str | None,
    limits: Limits,
    few_shot: FewShotClassifier | None = None,
) -> FewShotClassifier:
    """Return a few-shot classifier that has also learned the correct label of an image.

    The classifier that is passed is not changed. It is extended if its classes are the labels.
    """
    path = check_image(image, limits)
    names = parse_labels(labels, limits)
    _check_templates(templates)
    if correct_label not in names:
        raise UserError("Choose the correct label of the image. It must be one of the labels.")
    classifier = _select_few_shot(few_shot, names)
    if classifier is None:
        classifier = FewShotClassifier(names, aligner=aligner, templates=templates)
    elif classifier.class_count_.sum() >= limits.corrections:
        raise UserError(
            f"The limit is {limits.corrections:,} labelled images. Use FewShotClassifier in "
            "Python for more."
        )
    try:
        return copy.copy(classifier).partial_fit([path], [correct_label])
    except ValueError as error:  # about the labels, since the image was checked above
        raise UserError(str(error).replace(path, "The image")) from error


def _select_few_shot(
    few_shot: FewShotClassifier | None, names: list[str]
) -> FewShotClassifier | None:
    """Return a few-shot classifier if its classes are these names."""
    is_same = few_shot is not None and set(few_shot.classes_.tolist()) == set(names)
    return few_shot if is_same else None


def _check_templates(templates: str) -> None:
    if templates not in TEMPLATES:
        raise UserError(
            f"{quote(str(templates))} is not a set of prompt templates. Choose one of "
            f"{', '.join(TEMPLATES)}."
        )


class SearchIndex(NamedTuple):
    """Embedded images with their paths and names."""

    retriever: CrossModalRetriever
    images: list[str]
    names: list[str]


class FoundImage(NamedTuple):
    """An image with its name and its cosine similarity to the query."""

    image: str
    name: str
    score: float


def build_index(
    aligner: Any, images: list[str], names: list[str], cache: Any, progress: Progress
) -> SearchIndex:
    """Embed images for searches, with a cache for their features. Unreadable images are skipped.

    Another aligner with the same encoders does not encode the images again.
    """
    caching_aligner = replace_caches(aligner, cache, None, on_error="nan")
    encode(get_encoders(caching_aligner)[0], images, progress, "Encoding image")
    retriever = CrossModalRetriever(caching_aligner).fit(images, names)
    # Query images of visitors must not be stored in the cache.
    retriever.aligner_ = aligner
    return SearchIndex(retriever, images, names)


def search(
    index: SearchIndex,
    query: str | None,
    image: str | os.PathLike[str] | None,
    k: int,
    limits: Limits,
) -> list[FoundImage]:
    """Search images by a text or, if there is no text, by an image; the most similar first."""
    query = " ".join((query or "").split())
    n_read = index.retriever.n_samples_fit_ - index.retriever.n_unread_
    k = min(int(k), limits.found, n_read)
    if query:
        check_text(query, limits, "query")
        result = index.retriever.search([query], k=k, modality="text")
    elif image is not None:
        result = index.retriever.search([check_image(image, limits)], k=k, modality="image")
    else:
        raise UserError("There is no query. Enter a text such as 'a red fruit', or drop an image.")
    return [
        FoundImage(index.images[row], index.names[row], float(score))
        for row, score in zip(result.indices[0], result.scores[0], strict=True)
    ]


class _EpochReporter(Callback):
    """skorch callback that reports the progress of the training."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __deepcopy__(self, memo: dict[int, Any]) -> _EpochReporter:
        return self  # the progress callback belongs to the request and cannot be copied

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        row = net.history[-1]
        step = f"Epoch {row['epoch']} of at most {net.max_epochs}, loss {row['train_loss']:.2f}"
        if "valid_recall" in row:
            step += f", recall {row['valid_recall']:.0%}"
        self.progress(row["epoch"] / net.max_epochs, step)


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

    With the method "extend", the pairs are added to that aligner.
    The aligner is fitted on all pairs. The recall is that of an aligner fitted without the
    held-out pairs, next to the recall of `initial_aligner` on the same pairs.
    """
    methods = list_methods(initial_aligner)
    if method not in methods:
        raise UserError(f"{method!r} is not a method. Choose one of {', '.join(methods)}.")
    n_images = len(data.images)
    if n_images < _MIN_IMAGES:
        raise UserError(
            f"The zip contains {n_images} captioned images, but at least {_MIN_IMAGES} are "
            "needed. Good results need a hundred or more."
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
            reporter = _EpochReporter(scale_progress(progress, start, end))
            options |= {"random_state": _SEED, "callbacks": [reporter]}
        aligner = _ALIGNERS[method](
            image_encoder=image_encoder, text_encoder=text_encoder, **options
        )
        progress(start, f"Fitting on {len(rows)} pairs")
        try:
            return aligner.fit(*_select(data, rows))
        except (ValueError, FloatingPointError) as error:
            raise UserError(f"These pairs cannot be aligned: {error}") from error

    # The two parts have no image and no caption in common.
    text_ids = np.unique(np.array(texts, dtype=object), return_inverse=True)[1]
    pairs = np.column_stack([rows, text_ids])
    split = split_pairs(pairs, _HELD_OUT_FRACTION, np.random.RandomState(_SEED))
    held_out = np.array([], int) if split.valid is None else np.unique(rows[split.valid])
    recall, remark = [], ""
    if len(held_out):
        evaluated = fit(np.setdiff1d(rows, held_out), *_STEPS[1:3])
        recall = [
            _measure_recall("initial aligner", initial_aligner, *_select(data, held_out)),
            _measure_recall("your aligner", evaluated, *_select(data, held_out)),
        ]
    else:
        remark = (
            "Not evaluated: at least 50 distinct pairs are needed for a held-out test. Try the "
            "aligner on other images."
        )
    aligner = fit(np.arange(n_images), *_STEPS[2:4])
    return Alignment(
        _remove_training_objects(aligner),
        method,
        n_pairs=n_images,
        n_held_out=len(held_out),
        recall=recall,
        remark=remark,
        with_head=head_pairs is not None,
    )


def _remove_training_objects(aligner: Any) -> Any:
    """Remove caches, callbacks and head pairs, which are not needed after the fit."""
    for name in ("image_encoder", "text_encoder", "image_encoder_", "text_encoder_"):
        setattr(aligner, name, clone_with_cache(getattr(aligner, name), None))
    aligner.head_pairs = None
    if hasattr(aligner, "callbacks"):
        aligner.callbacks = None
    return aligner


def _measure_recall(name: str, aligner: Any, images: list[str], captions: list[Any]) -> Recall:
    inner = unwrap_aligner(aligner)
    X = images if inner is aligner else aligner[:-1].transform(images)
    report = inner.retrieval_report(X, captions, ks=_RECALL_KS, groups=image_groups(images))
    means = (np.mean([direction[k] for direction in report.values()]) for k in _RECALL_KS)
    return Recall(name, *(100 * float(mean) for mean in means))


def _select(data: CaptionedImages, rows: np.ndarray) -> tuple[list[str], list[Any]]:
    return [data.images[row] for row in rows], [data.captions[row] for row in rows]
