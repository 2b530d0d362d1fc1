"""The demo: align real encoders on real captioned images and look at what comes out."""

from __future__ import annotations

import hashlib
import re
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch

from . import APEAligner, ZeroShotClassifier
from ._stages import Stage, StageLog
from .datasets import get_data_home, load_openmoji
from .encoders import CacheInfo, TimmImageEncoder, TransformersTextEncoder
from .encoders._contents import image_groups

CATEGORY_NAMES = {
    "Activities": ["a sport", "a game", "a celebration"],
    "Animals & Nature": ["an animal", "a bird", "a plant", "a flower"],
    "Flags": ["the flag of a country"],
    "Food & Drink": ["food", "a drink", "a fruit", "a meal"],
    "Objects": ["a tool", "clothing", "a household object", "office supplies"],
    "People & Body": ["a person", "a hand gesture", "a man", "a woman"],
    "Smileys & Emotion": ["a smiley face", "an emotion", "a heart"],
    "Symbols": ["a symbol", "a sign", "an arrow", "a button"],
    "Travel & Places": ["a vehicle", "a building", "a landscape", "the weather"],
}
QUERIES = ("a wild animal", "a dessert", "a vehicle with wheels", "bad weather")

_HELD_OUT = 0.2
_FOUND = 6
# "man running", "woman running" and "person running" are nearly one image: they stay together.
_WHO = re.compile(r"\b(m[ae]n|wom[ae]n|person|people|boys?|girls?)\b")


class Prediction(NamedTuple):
    """A held-out image with its true name and the most probable ones."""

    image: str
    truth: str
    names: list[str]
    probabilities: list[float]


class Search(NamedTuple):
    """A query and the images found for it, nearest first."""

    query: str
    images: list[str]
    captions: list[str]


class DemoResult(NamedTuple):
    """All that the demo measured."""

    n_train: int
    n_held_out: int
    recall: dict[str, dict[int, float]]
    concept_accuracy: float
    category_accuracy: float
    n_categories: int
    predictions: list[Prediction]
    searches: list[Search]
    history: list[dict[str, Any]]
    best_epoch: int
    n_parameters: int
    stages: list[Stage]
    image_cache: CacheInfo
    text_cache: CacheInfo
    licence: str


def run_demo(
    cache: str | PathLike[str] | None = None,
    *,
    random_state: int = 0,
    n_jobs: int = -1,
    verbose: int = 1,
) -> DemoResult:
    """Align EfficientNet-Lite0 and MiniLM on OpenMoji and evaluate on captions held out.

    Parameters
    ----------
    cache : str, path-like or None, default=None
        Folder of the feature cache; None takes one in the data home.
    random_state : int, default=0
        Seeds the split and the training.
    n_jobs : int, default=-1
        Workers that read images.
    verbose : int, default=1
        1 shows progress bars.

    Returns
    -------
    result : DemoResult
        What was measured.
    """
    log = StageLog()
    folder = get_data_home() / "features" if cache is None else Path(cache)
    image_encoder = TimmImageEncoder(
        "efficientnet_lite0",
        pooling="gem",
        crop="pad",
        cache=folder,
        n_jobs=n_jobs,
        verbose=verbose,
    )
    text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=folder, verbose=verbose)

    with log.stage("load images"):
        data = load_openmoji(verbose=verbose)
        train, held_out = _split(data, random_state)
    with log.stage("encode images"):
        image_encoder.transform(data.images)
    with log.stage("encode captions"):
        text_encoder.transform(data.captions)
    with log.stage("train the aligner"):
        aligner = APEAligner(
            text_encoder=text_encoder,
            random_state=random_state,
            verbose=verbose,
        )
        model = make_pipeline(image_encoder, aligner).fit(train.images, train.captions)
    with log.stage("evaluate"):
        features = image_encoder.transform(held_out.images)
        groups = image_groups(held_out.images)  # a few images have two names
        recall = model[-1].retrieval_report(features, held_out.captions, groups=groups)
        predictions, concept_accuracy = _name_concepts(model, held_out, random_state)
        category_accuracy, n_categories = _score_categories(model, held_out)
        searches = [_search(model, query, held_out) for query in QUERIES]
    return DemoResult(
        n_train=len(train.images),
        n_held_out=len(held_out.images),
        recall=recall,
        concept_accuracy=concept_accuracy,
        category_accuracy=category_accuracy,
        n_categories=n_categories,
        predictions=predictions,
        searches=searches,
        history=model[-1].history_,
        best_epoch=model[-1].best_epoch_,
        n_parameters=model[-1].n_parameters_,
        stages=log.stages,
        image_cache=image_encoder.cache_info(),
        text_cache=text_encoder.cache_info(),
        licence=data.DESCR,
    )


def _split(data: Bunch, random_state: int) -> tuple[Bunch, Bunch]:
    """Hold out captions, together with their variants by gender and with equal images.

    Near relatives (sun behind cloud, sun behind large cloud) may stand on both sides.
    """
    concepts = [_WHO.sub("", caption).strip(" :") or caption for caption in data.captions]
    # A few images come under two names: the one goes where the other goes.
    first: dict[bytes, str] = {}
    concepts = [
        first.setdefault(hashlib.sha256(Path(image).read_bytes()).digest(), concept)
        for image, concept in zip(data.images, concepts, strict=True)
    ]
    splitter = GroupShuffleSplit(n_splits=1, test_size=_HELD_OUT, random_state=random_state)
    parts = next(splitter.split(data.images, groups=concepts))
    train, held_out = (_rows(data, rows) for rows in parts)
    return train, held_out


def _rows(data: Bunch, rows: np.ndarray) -> Bunch:
    return Bunch(
        images=[data.images[row] for row in rows],
        captions=[data.captions[row] for row in rows],
        categories=np.asarray(data.categories)[rows],
    )


def _name_concepts(
    model: Pipeline, held_out: Bunch, random_state: int, n_shown: int = 24
) -> tuple[list[Prediction], float]:
    """Name every held-out image among the names of all of them."""
    classifier = ZeroShotClassifier(held_out.captions, aligner=model, templates="none")
    accuracy = classifier.score(held_out.images, held_out.captions)
    shown = np.random.default_rng(random_state).permutation(len(held_out.images))[:n_shown]
    some = _rows(held_out, shown)
    predictions = []
    for image, truth, row in zip(
        some.images, some.captions, classifier.predict_proba(some.images), strict=True
    ):
        best = np.argsort(-row)[:3]
        predictions.append(
            Prediction(image, truth, classifier.classes_[best].tolist(), row[best].tolist())
        )
    return predictions, accuracy


def _score_categories(model: Pipeline, held_out: Bunch) -> tuple[float, int]:
    """Tell animals from food, travel and so on, by names that were no training captions."""
    known = np.isin(held_out.categories, list(CATEGORY_NAMES))
    images = [image for image, is_known in zip(held_out.images, known, strict=True) if is_known]
    classifier = ZeroShotClassifier(CATEGORY_NAMES, aligner=model)
    return classifier.score(images, held_out.categories[known]), len(CATEGORY_NAMES)


def _search(model: Pipeline, query: str, held_out: Bunch) -> Search:
    similarity = model.transform(held_out.images) @ model[-1].transform_text([query])[0]
    found = _rows(held_out, np.argsort(-similarity)[:_FOUND])
    return Search(query, found.images, found.captions)
