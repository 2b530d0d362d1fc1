"""One image, some names: how probable is each."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from .._escape import escape_markdown
from ..prompts import TEMPLATES
from ..zero_shot import ZeroShotClassifier
from ._images import check_image
from ._limits import Limits
from ._refusal import Refusal, quoted

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
        raise Refusal("There are no names yet: write at least two, such as 'cat, dog, car'.")
    if len(labels) == 1:
        raise Refusal(
            f"{quoted(labels[0])} is the only name, so it would be certain. Write at least one "
            "more to choose from."
        )
    if len(labels) > limits.labels:
        raise Refusal(
            f"These are {len(labels):,} names; the limit is {limits.labels:,}. Leave some out."
        )
    for label in labels:
        check_text(label, limits, "name")
    return labels


def check_text(text: str, limits: Limits, what: str) -> None:
    """Refuse a text that is too long."""
    if len(text) > limits.text_length:
        raise Refusal(
            f"The {what} {quoted(text)} has {len(text):,} characters; the limit is "
            f"{limits.text_length:,}. Shorten it."
        )


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
        raise Refusal(f"There are no sentences called {quoted(str(templates))}.")
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise Refusal("The least probability lies between 0 and 1.")
    try:
        classifier = ZeroShotClassifier(names, aligner=aligner, templates=templates)
        found, probabilities = classifier.predict_top_k([path], k=len(names))
    except ValueError as error:  # about names: the image was looked at above
        raise Refusal(str(error).replace(path, "The image")) from error
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
