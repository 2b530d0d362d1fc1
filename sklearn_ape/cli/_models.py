"""Encoders, aligners, batched inference and scores of the command line."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import check_random_state

from ..aligners import CLIPAligner
from ..aligners.wrapper import resolve_aligner, wrapped_aligner
from ..datasets import get_data_home
from ..encoders import EncodingFailedWarning, OpenCLIPImageEncoder, TimmImageEncoder, list_encoders
from ..encoders.images import image_groups
from ..encoders.resolve import class_and_model
from ..metrics import Interval, bootstrap_interval
from ..training import split_pairs
from ._console import noted_when_interrupted, say
from ._output import Table

__all__ = [
    "Encoded",
    "Machine",
    "Score",
    "accuracy_scores",
    "aligner_within",
    "encode_images",
    "features_folder",
    "held_out_rows",
    "held_out_scores",
    "image_encoder_of",
    "iter_predictions",
    "make_image_encoder",
    "make_text_encoder",
    "on_card",
    "open_aligner",
    "open_saved",
    "print_scores",
    "recall_scores",
    "say_unreadable",
]

_MEMORY = "memory"


class Machine(NamedTuple):
    """How to run on this machine: what does not change results."""

    cache: str | None = None
    device: str = "auto"
    n_jobs: int = -1
    quiet: bool = False

    def options(self, on_error: str) -> dict[str, Any]:
        """Parameters of encoders."""
        return {
            "cache": features_folder(self.cache),
            "device": self.device,
            "n_jobs": self.n_jobs,
            "on_error": on_error,
            "verbose": int(not self.quiet),
        }

    @property
    def kept(self) -> str:
        """What is left of the work after Ctrl-C, and how to go on."""
        folder = features_folder(self.cache)
        if folder == _MEMORY:
            return "Nothing is kept, since --cache is 'memory'."
        return f"The features that are finished are in {folder!r}: run it again to go on."


def features_folder(cache: str | None) -> str:
    """Return the folder of the feature cache, or "memory"."""
    if cache is None:
        return str(get_data_home() / "features")
    return cache if cache == _MEMORY else str(Path(cache).expanduser())


def make_image_encoder(
    name: str, machine: Machine, *, pooling: str | None = None, on_error: str = "nan"
) -> Any:
    """Return the image encoder of a name such as "efficientnet_lite0" or "open_clip:RN50/openai".

    Without `pooling`, networks of the EfficientNet-Lite family are used as the starter model
    uses them: whole images on white, and pooling by the generalised mean.
    """
    kind, model = class_and_model(name, "image")
    options = machine.options(on_error)
    if kind is TimmImageEncoder and model in {info.name for info in list_encoders("image")}:
        options |= {"pooling": "gem", "crop": "pad"}
    if pooling is not None:
        if kind is OpenCLIPImageEncoder:
            raise ValueError("The encoders of OpenCLIP have no --pooling to choose.")
        options["pooling"] = pooling
    encoder = kind(model, **options)
    encoder._check_parameters()
    return encoder


def make_text_encoder(name: str, machine: Machine, on_error: str = "raise") -> Any:
    """Return the text encoder of a name such as "all-MiniLM-L6-v2"."""
    kind, model = class_and_model(name, "text")
    options = machine.options(on_error)
    del options["n_jobs"]
    encoder = kind(model, **options)
    encoder._check_parameters()
    return encoder


def open_aligner(source: str | None, machine: Machine) -> Any:
    """Return a fitted aligner, or a Pipeline that ends in one, set to run on this machine.

    Parameters
    ----------
    source : str or None
        None is the starter model; "open_clip:..." a CLIP model; else a folder or a hub name.
    machine : Machine
        How to run.

    Raises
    ------
    ValueError
        When it takes features, not images.
    """
    return aligner_within(open_saved(source, machine), machine)


def aligner_within(opened: Any, machine: Machine) -> Any:
    """Return the aligner of what was opened: its own, if it is a classifier or a retriever."""
    aligner = wrapped_aligner(opened)
    if aligner is not opened and not hasattr(opened, "aligner_"):
        # The aligner of a name is shared in the process, so a copy is configured.
        aligner = _configured(copy.deepcopy(aligner), machine)
    if isinstance(aligner, CLIPAligner):  # its encoder apart, which says what it cannot read
        aligner = make_pipeline(aligner.image_encoder, aligner)
    image_encoder_of(aligner)
    return aligner


def open_saved(source: str | None, machine: Machine) -> Any:
    """Return what was saved, whichever estimator it is, set to run on this machine."""
    if source is None or source.startswith("open_clip:"):
        # The starter model is one object a process, whose settings are not to be changed.
        return _configured(copy.deepcopy(resolve_aligner(source)), machine)
    is_folder = os.path.isdir(os.path.expanduser(source))
    if not is_folder and (source.count("/") != 1 or source.startswith((".", "~", "/"))):
        raise FileNotFoundError(
            f"There is no folder {source!r} with a saved model: 'sklearn-ape fit' makes one."
        )
    from .. import load_pretrained

    return _configured(load_pretrained(source), machine)


def image_encoder_of(model: Any) -> Any:
    """Return the image encoder within a fitted model, which names the images it cannot read."""
    for estimator in _within(model):
        if getattr(estimator, "_modality", None) == "image":
            return estimator
    raise ValueError(
        "This aligner takes features of images, not images: it was saved without its image "
        "encoder. Save the Pipeline of both."
    )


def _configured(model: Any, machine: Machine) -> Any:
    """Set encoders, and CLIP models, to run on this machine; they are changed in place."""
    for estimator in _within(model):
        parameters = estimator.get_params(deep=False)
        if hasattr(estimator, "_modality") or "cache" in parameters:
            modality = getattr(estimator, "_modality", "image")
            options = machine.options("nan" if modality == "image" else "raise")
            if modality == "text":  # a few labels need no bar
                options["verbose"] = 0
            estimator.set_params(**{k: v for k, v in options.items() if k in parameters})
        elif "device" in parameters:
            estimator.set_params(device=machine.device)
    return model


def _within(model: Any) -> Iterator[Any]:
    """Yield the estimators in a fitted model, those that were fitted first."""
    if isinstance(model, Pipeline):
        for _, step in model.steps:
            yield from _within(step)
        return
    if isinstance(model, FrozenEstimator):
        yield from _within(model.estimator)
        return
    if not isinstance(model, BaseEstimator):
        return
    yield model
    for name in ("image_encoder_", "text_encoder_", "aligner_", "aligner"):
        yield from _within(vars(model).get(name))


_AT_ONCE = 512


_NAMED = 5


def iter_predictions(
    model: Any, images: Sequence[Any], method: Any, machine: Machine
) -> Iterator[tuple[slice, np.ndarray, dict[int, str]]]:
    """Yield what a method says of some images at a time.

    Parameters
    ----------
    model : estimator
        What holds the image encoder.
    images : sequence
        All of them.
    method : callable
        Takes some of the images.
    machine : Machine
        How to run.

    Yields
    ------
    rows : slice
        Which images.
    answer : ndarray
        What the method returned for them.
    errors : dict of {int: str}
        What is wrong with those that could not be read, by their row among these.
    """
    from tqdm import tqdm

    encoder = image_encoder_of(model)
    is_one_pass = len(images) <= _AT_ONCE
    with (
        noted_when_interrupted(machine.kept),
        warnings.catch_warnings(),
        tqdm(
            total=len(images), unit="image", disable=machine.quiet or is_one_pass, leave=True
        ) as progress,
    ):
        verbose = encoder.verbose
        encoder.verbose = verbose if is_one_pass else 0
        warnings.simplefilter("ignore", EncodingFailedWarning)  # `say_unreadable` names them
        try:
            for start in range(0, len(images), _AT_ONCE):
                rows = slice(start, min(start + _AT_ONCE, len(images)))
                answer = method(images[rows])
                yield rows, answer, encoder.errors_
                progress.update(rows.stop - rows.start)
        finally:
            encoder.verbose = verbose


class Encoded(NamedTuple):
    """Features of images, NaN where one could not be read, and why."""

    features: np.ndarray
    errors: dict[int, str]

    @property
    def good(self) -> np.ndarray:
        """Rows that could be read."""
        bad = np.array(sorted(self.errors), dtype=np.intp)
        return np.setdiff1d(np.arange(len(self.features)), bad)


def encode_images(encoder: Any, images: Sequence[Any], machine: Machine) -> Encoded:
    """Encode all images; say on standard error which could not be read.

    Raises
    ------
    ValueError
        When none could be read.
    """
    with noted_when_interrupted(machine.kept), warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodingFailedWarning)  # `say_unreadable` names them
        features = encoder.transform(images)
    errors = dict(encoder.errors_)
    if len(errors) == len(images):
        raise ValueError(f"None of the {len(images)} images can be read: {errors[0]}")
    say_unreadable(errors, len(images))
    return Encoded(features, errors)


def say_unreadable(errors: dict[int, str], n_images: int) -> None:
    """Name on standard error the first images that could not be read, and count them."""
    if not errors:
        return
    say(f"{len(errors):,} of {n_images:,} images cannot be read and are left out:")
    for row in sorted(errors)[:_NAMED]:
        say(f"  {errors[row]}")
    if len(errors) > _NAMED:
        say(f"  and {len(errors) - _NAMED:,} more.")


_FEWEST = 10


def held_out_rows(
    features: np.ndarray,
    captions: Sequence[Any],
    test_size: float,
    random_state: int,
    classes: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return rows to train on and rows to test on, or None where there are too few.

    No image and no caption stands on both sides; with classes, every class does, and no image.
    """
    if not test_size:
        return None
    images = np.unique(features, axis=0, return_inverse=True)[1].ravel()
    if classes is not None:
        return _stratified(images, np.asarray(classes), test_size, random_state)
    of_rows = [[text] if isinstance(text, str) else list(text) for text in captions]
    numbers: dict[str, int] = {}
    pairs = np.array(
        [
            (row, images[row], numbers.setdefault(text, len(numbers)))
            for row, texts in enumerate(of_rows)
            for text in texts
        ]
    )
    split = split_pairs(pairs[:, 1:], test_size, check_random_state(random_state))
    if split.valid is None:
        return None
    return np.unique(pairs[split.train, 0]), np.unique(pairs[split.valid, 0])


def _stratified(
    images: np.ndarray, classes: np.ndarray, test_size: float, random_state: int
) -> tuple[np.ndarray, np.ndarray] | None:
    first = np.unique(images, return_index=True)[1]  # equal images go together
    counts = np.unique(classes[first], return_counts=True)[1]
    n_test = round(test_size * len(first))
    if counts.min() < 2 or min(n_test, len(first) - n_test) < max(_FEWEST, len(counts)):
        return None
    splitter = StratifiedShuffleSplit(1, test_size=n_test, random_state=random_state)
    train, test = next(splitter.split(first, classes[first]))
    return (
        np.flatnonzero(np.isin(images, images[first[train]])),
        np.flatnonzero(np.isin(images, images[first[test]])),
    )


_KS = (1, 5, 10)


_DIRECTIONS = {"image_to_text": "image to caption", "text_to_image": "caption to image"}


class Score(NamedTuple):
    """A mean over n images or captions, and its interval of 95 % (NaN for fewer than two)."""

    measure: str
    of: str
    value: float
    low: float
    high: float
    n: int


def recall_scores(aligner: Any, inputs: Any, captions: Any, images: Sequence[Any]) -> list[Score]:
    """Return recall@k in both directions, among distinct images and captions.

    `inputs` are what the aligner takes: the images, or features of them.
    """
    ranks = aligner.retrieval_ranks(inputs, captions, groups=image_groups(images))
    return [
        _score(f"recall@{k}", words, ranks[direction] < k)
        for direction, words in _DIRECTIONS.items()
        for k in _KS
    ]


def accuracy_scores(truth: Any, predicted: Any) -> list[Score]:
    """Accuracy over all images, then class by class."""
    truth, predicted = np.asarray(truth, dtype=object), np.asarray(predicted, dtype=object)
    hits = truth == predicted
    return [_score("accuracy", "all", hits)] + [
        _score("accuracy", str(name), hits[truth == name]) for name in sorted(set(truth))
    ]


def held_out_scores(
    aligner: Any,
    images: Any,
    captions: Sequence[Any],
    classes: Sequence[str] | None,
) -> list[Score]:
    """Accuracy where captions are names of classes, else recall."""
    if classes is None:
        return recall_scores(aligner, images, captions, images)
    from .. import ZeroShotClassifier

    classifier = ZeroShotClassifier(sorted(set(captions)), aligner=aligner)
    return accuracy_scores(captions, classifier.predict(images))


def on_card(score: Score) -> str:
    """Return the line of a model card that a held-out score stands in."""
    sure = "" if score.low != score.low else f", 95 %: {score.low:.3f} to {score.high:.3f}"
    return f"{score.measure} on pairs held out, {score.of} (n={score.n}{sure})"


def print_scores(
    scores: Sequence[Score], form: str | None = None, output: Path | None = None
) -> None:
    """Write scores, one a row."""
    with Table(Score._fields, output, form) as table:
        for score in scores:
            numbers = (None if x != x else round(x, 4) for x in score[2:5])
            table.write([score.measure, score.of, *numbers, score.n])


def _score(measure: str, of: str, hits: Any) -> Score:
    hits = np.asarray(hits, dtype=float)
    interval = Interval(float(hits.mean()), float("nan"), float("nan"))
    if len(hits) > 1:
        interval = bootstrap_interval(hits)
    return Score(measure, of, *interval, len(hits))
