"""What a visitor can do: classify images, and align on own images."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from skorch.callbacks import Callback

from ..aligners import APEAligner, CCAAligner, KernelAligner
from ..encoders import HeadPairs
from ..encoders.images import image_groups
from ..features import MemoryFeatureCache
from ..prompts import TEMPLATES
from ..training import split_pairs
from ..utils.escape import escape_markdown
from ..zero_shot import ZeroShotClassifier
from ._limits import Limits, Report, UserError, check_text, part, quoted
from ._model import Alignment, Recall, encode, encoders_of
from ._uploads import Captioned, check_image

TEMPLATE_CHOICES = {
    "a few sentences around each name": "simple",
    "drawings: an icon of a ..., clip art of a ...": "drawing",
    "photographs: a photo of a ...": "photo",
    "CLIP's seven sentences": "clip",
    "names as they are (for whole sentences)": "none",
}
"""What the page says about the sets of `sklearn_ape.prompts.TEMPLATES`."""


class Classification(NamedTuple):
    """Names with their probabilities, the most probable first, and a verdict in Markdown."""

    probabilities: dict[str, float]
    verdict: str


def parse_labels(text: str | None, limits: Limits) -> list[str]:
    """Return the names in a text, one a line or with commas between them, without repeats.

    With more than one line, commas belong to the names.
    """
    text = text or ""
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    parts = lines if len(lines) > 1 else re.split(r"[,;\n]", text)
    labels = list(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    if not labels:
        raise UserError("There are no names yet: write at least two, such as 'cat, dog, car'.")
    if len(labels) == 1:
        raise UserError(
            f"{quoted(labels[0])} is the only name, so it would be certain. Write at least one "
            "more to choose from."
        )
    if len(labels) > limits.labels:
        raise UserError(
            f"These are {len(labels):,} names; the limit is {limits.labels:,}. Leave some out."
        )
    for label in labels:
        check_text(label, limits, "name")
    return labels


def classify(
    aligner: Any,
    image: str | os.PathLike[str] | None,
    labels: str | None,
    templates: str,
    threshold: float,
    limits: Limits,
) -> Classification:
    """Return how probable each name is for an image.

    Parameters
    ----------
    aligner : estimator
        Fitted; takes images and texts.
    image : path-like or None
        A file that the visitor sent.
    labels : str
        Names, see `parse_labels`.
    templates : str
        A key of `sklearn_ape.prompts.TEMPLATES`.
    threshold : float
        Below it, from 0 to 1, the verdict is that it is none of these.
    limits : Limits
        Bounds on the image and the names.

    Returns
    -------
    classification : Classification
        All names.

    Raises
    ------
    Refusal
        With the reason, for the visitor to read.
    """
    path = check_image(image, limits)
    names = parse_labels(labels, limits)
    if templates not in TEMPLATES:
        raise UserError(f"There are no sentences called {quoted(str(templates))}.")
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise UserError("The least probability lies between 0 and 1.")
    try:
        classifier = ZeroShotClassifier(names, aligner=aligner, templates=templates)
        found, probabilities = classifier.predict_top_k([path], k=len(names))
    except ValueError as error:  # about names: the image was looked at above
        raise UserError(str(error).replace(path, "The image")) from error
    ranked = dict(zip(map(str, found[0]), map(float, probabilities[0]), strict=True))
    best, probability = next(iter(ranked.items()))
    if probability < threshold:
        verdict = (
            f"**Unknown.** The most probable name, {escape_markdown(best)}, has "
            f"{probability:.0%}: less than the {threshold:.0%} asked for."
        )
    else:
        verdict = f"**{escape_markdown(best)}**, {probability:.0%}, among {len(names)} names."
    return Classification(ranked, verdict)


METHOD_CHOICES = {
    "kernel: in closed form, the best on few pairs": "kernel",
    "ape: small networks, trained epoch by epoch": "ape",
    "cca: linear, the fastest": "cca",
}
"""What the page says about the methods."""


_KINDS = {"kernel": KernelAligner, "ape": APEAligner, "cca": CCAAligner}


_HELD_OUT = 0.2


_KS = (1, 5)


_FEWEST = 4


# Shares of the time until the end of: images, captions, the fit measured, the one kept.
_STEPS = (0.6, 0.7, 0.85, 0.98)


class _Epochs(Callback):
    """Tells of the epochs of a training."""

    def __init__(self, report: Report, n_epochs: int) -> None:
        self.report = report
        self.n_epochs = n_epochs

    def __deepcopy__(self, memo: dict[int, Any]) -> _Epochs:
        return self  # what reports is bound to a visitor's request

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        row = net.history[-1]
        text = f"Epoch {row['epoch']} of at most {self.n_epochs}, loss {row['train_loss']:.2f}"
        if "valid_recall" in row:
            text += f", recall {row['valid_recall']:.0%}"
        self.report(row["epoch"] / self.n_epochs, text)


def align(
    before: Any,
    data: Captioned,
    method: str,
    head_pairs: HeadPairs | None,
    report: Report,
    random_state: int = 0,
) -> Alignment:
    """Fit an aligner on captioned images, with the encoders of another one.

    Parameters
    ----------
    before : estimator
        The fitted aligner whose encoders are used, and which the new one is compared with.
    data : Captioned
        Images that can be read, with captions.
    method : {"kernel", "ape", "cca"}
        Which aligner.
    head_pairs : HeadPairs or None
        Pairs of the image encoder's own classes, to learn as well.
    report : callable
        Told of progress.
    random_state : int, default=0
        Seeds the split and the training.

    Returns
    -------
    alignment : Alignment
        The aligner is fitted on all pairs; recall is that of one fitted without the pairs held
        out, and of `before`, on those.

    Raises
    ------
    Refusal
        When there are too few pairs, or the fit fails on them.
    """
    if method not in _KINDS:
        raise UserError(
            f"There is no method called {method!r}: choose one of {', '.join(_KINDS)}."
        )
    if len(data.images) < _FEWEST:
        raise UserError(
            f"These are {len(data.images)} captioned images: at least {_FEWEST} are needed to "
            "align anything, and some hundred to align well."
        )
    cache = MemoryFeatureCache()  # every image is encoded once, for all that follows
    image_encoder, text_encoder = (_cached(encoder, cache) for encoder in encoders_of(before))
    encode(image_encoder, data.images, part(report, 0, _STEPS[0]), "Encoding image")
    texts = [t for of_one in data.captions for t in _as_list(of_one)]
    encode(text_encoder, texts, part(report, *_STEPS[:2]), "Reading caption")

    def fitted(rows: np.ndarray, where: tuple[float, float]) -> Any:
        options: dict[str, Any] = {"head_pairs": head_pairs}
        if method == "ape":
            told = _Epochs(part(report, *where), 100)
            options |= {"random_state": random_state, "callbacks": [told]}
        aligner = _KINDS[method](image_encoder=image_encoder, text_encoder=text_encoder, **options)
        report(where[0], f"Aligning {len(rows)} pairs")
        try:
            return aligner.fit(*_rows(data, rows))
        except (ValueError, FloatingPointError) as error:
            raise UserError(f"These pairs cannot be aligned: {error}") from error

    everything = np.arange(len(data.images))
    train, held_out = _split(data, random_state)
    recall, remark = [], ""
    if len(held_out):
        measured = fitted(train, _STEPS[1:3])
        recall = [
            _recall(who, aligner, *_rows(data, held_out))
            for who, aligner in (("before", before), ("aligned on your images", measured))
        ]
    else:
        remark = (
            "There are too few different pairs to hold some out (50 are enough), so nothing was "
            "measured: try it on images of your own."
        )
    aligner = fitted(everything, _STEPS[2:4])
    return Alignment(
        _released(aligner),
        method,
        n_pairs=len(everything),
        n_held_out=len(held_out),
        recall=recall,
        remark=remark,
        with_head=head_pairs is not None,
    )


def _cached(encoder: Any, cache: MemoryFeatureCache | None) -> Any:
    copy = clone(encoder)
    return copy.set_params(cache=cache) if "cache" in copy.get_params(deep=False) else copy


def _released(aligner: Any) -> Any:
    """Return a fitted aligner without what was only of use for fitting it."""
    for name in ("image_encoder", "text_encoder", "image_encoder_", "text_encoder_"):
        setattr(aligner, name, _cached(getattr(aligner, name), None))
    aligner.head_pairs = None  # they are in the solution
    if hasattr(aligner, "callbacks"):
        aligner.callbacks = None
    return aligner


def _split(data: Captioned, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out images that share no caption with the others."""
    numbers: dict[str, int] = {}
    pairs = np.array(
        [
            (row, numbers.setdefault(text, len(numbers)))
            for row, texts in enumerate(data.captions)
            for text in _as_list(texts)
        ]
    )
    split = split_pairs(pairs, _HELD_OUT, np.random.RandomState(random_state))
    held_out = np.array([], int) if split.valid is None else np.unique(pairs[split.valid, 0])
    return np.setdiff1d(pairs[:, 0], held_out), held_out


def _recall(who: str, aligner: Any, images: list[str], captions: list[Any]) -> Recall:
    from ..aligners.wrapper import unwrap_aligner

    inner = unwrap_aligner(aligner)
    X = images if inner is aligner else aligner[:-1].transform(images)
    report = inner.retrieval_report(X, captions, ks=_KS, groups=image_groups(images))
    at = [100 * float(np.mean([way[k] for way in report.values()])) for k in _KS]
    return Recall(who, *at)


def _rows(data: Captioned, rows: np.ndarray) -> tuple[list[str], list[Any]]:
    return [data.images[row] for row in rows], [data.captions[row] for row in rows]


def _as_list(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
