"""Recall and accuracy, each with how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..encoders._contents import image_groups
from ..metrics import Interval, bootstrap_interval
from ._output import Table

__all__ = [
    "Score",
    "accuracy_scores",
    "held_out_scores",
    "on_card",
    "print_scores",
    "recall_scores",
]

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
