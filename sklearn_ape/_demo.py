"""Demo: align pretrained encoders on captioned images, and evaluate."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch

from .aligners import APEAligner, KernelAligner
from .aligners.starter import load_starter
from .datasets import get_data_home, load_openmoji
from .encoders import CacheInfo, TimmImageEncoder, TransformersTextEncoder
from .encoders.images import image_groups
from .zero_shot import ZeroShotClassifier

_HELD_OUT_FRACTION = 0.2
_N_RESULTS = 6
_N_PREDICTIONS_SHOWN = 24
_N_NAMES_SHOWN = 5

# Numbers of own pairs in the plot, which also shows 0 and all pairs.
_N_PAIRS_SHOWN = (100, 400)

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

PHOTO_NAMES = (
    *("a temple", "a flower", "a cat", "a dog", "a bus", "a rocket", "a cup of coffee"),
    *("a person", "a mountain", "a computer"),
)

# Photographs of scikit-learn and scikit-image, with the correct names.
PHOTO_TRUTHS = {
    "china.jpg": "a temple",
    "flower.jpg": "a flower",
    "astronaut.png": "a person",
    "chelsea.png": "a cat",
    "coffee.png": "a cup of coffee",
    "rocket.png": "a rocket",
}

QUERIES = ("a wild animal", "a fruit", "a vehicle with wheels", "a bird")

# "man running", "woman running" and "person running" are nearly the same image.
_PERSON_WORDS = re.compile(r"\b(m[ae]n|wom[ae]n|person|people|boys?|girls?)\b")


class CurvePoint(NamedTuple):
    """Recall@1, mean of both directions, of the starter with own pairs, and of these alone."""

    n_pairs: int
    extended: float
    alone: float


class Prediction(NamedTuple):
    """An image with its true name, or that of its file, and its most probable names."""

    image: Any
    truth: str
    names: list[str]
    probabilities: list[float]


class Search(NamedTuple):
    """A query and its results in decreasing order of similarity."""

    query: str
    images: list[str]
    captions: list[str]


class DemoResult(NamedTuple):
    """Results of the demo."""

    n_train: int
    n_held_out: int
    recall: dict[str, dict[int, float]]
    concept_accuracy: float
    concept_top_accuracy: float  # top-5 accuracy
    category_accuracy: float
    n_categories: int
    photographs: list[Prediction]
    predictions: list[Prediction]
    searches: list[Search]
    curve: list[CurvePoint]
    n_parameters: int
    seconds: dict[str, float]
    image_cache: CacheInfo
    text_cache: CacheInfo


def run_demo(
    cache: str | PathLike[str] | None = None,
    *,
    random_state: int = 0,
    n_jobs: int = -1,
    verbose: int = 1,
) -> DemoResult:
    """Extend the starter model by images of OpenMoji, and evaluate on held-out captions.

    The starter has been trained without OpenMoji, but with emoji of other styles.

    Parameters
    ----------
    cache : str, path-like or None, default=None
        Folder of the feature cache. None uses a folder in the data home.
    random_state : int, default=0
        Seed of the split and of the training.
    n_jobs : int, default=-1
        Number of threads that read images. -1 uses all cores.
    verbose : int, default=1
        Verbosity level. 1 shows progress bars.

    Returns
    -------
    result : DemoResult
        Scores, examples and costs.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

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

    with stage("name photographs"):
        photographs = _name_photographs()
    # The starter has the same encoders, which count its images and names as well.
    before = image_encoder.cache_info(), text_encoder.cache_info()
    with stage("load images"):
        data = load_openmoji(verbose=verbose)
        train, held_out = _split(data, random_state)
    with stage("encode images"):
        image_encoder.transform(data.images)
    with stage("encode captions"):
        text_encoder.transform(data.captions)
    with stage("train"):
        aligner = APEAligner(text_encoder=text_encoder, init="starter")
        model = make_pipeline(image_encoder, aligner).fit(train.images, train.captions)
    with stage("train on fewer images"):
        encoders = {"image_encoder": image_encoder, "text_encoder": text_encoder}
        curve = _measure_curve(train, held_out, encoders, random_state)
    with stage("evaluate"):
        features = image_encoder.transform(held_out.images)
        groups = image_groups(held_out.images)  # a few images occur twice, with two names
        recall = model[-1].retrieval_report(features, held_out.captions, groups=groups)
        predictions, concept_accuracy, concept_top_accuracy = _predict_concepts(
            model, held_out, random_state
        )
        category_accuracy, n_categories = _score_categories(model, held_out)
        searches = [_search(model, query, held_out) for query in QUERIES]
    return DemoResult(
        n_train=len(train.images),
        n_held_out=len(held_out.images),
        recall=recall,
        concept_accuracy=concept_accuracy,
        concept_top_accuracy=concept_top_accuracy,
        category_accuracy=category_accuracy,
        n_categories=n_categories,
        photographs=photographs,
        predictions=predictions,
        searches=searches,
        curve=curve,
        n_parameters=model[-1].n_parameters_,
        seconds=seconds,
        image_cache=_count_since(before[0], image_encoder),
        text_cache=_count_since(before[1], text_encoder),
    )


def _measure_curve(
    train: Bunch, held_out: Bunch, encoders: dict[str, Any], random_state: int
) -> list[CurvePoint]:
    """Measure the recall on held-out pairs after training on different numbers of pairs."""

    def score(aligner: Any) -> float:
        return aligner.score(held_out.images, held_out.captions)

    starter = deepcopy(load_starter())
    starter.image_encoder_, starter.text_encoder_ = encoders.values()  # which have a cache
    chance = 1 / len(held_out.images)
    curve = [CurvePoint(0, score(starter), chance)]
    n_train = len(train.images)
    order = np.random.default_rng(random_state).permutation(n_train)
    for n_pairs in (*(n for n in _N_PAIRS_SHOWN if n < n_train), n_train):
        pairs = _select_rows(train, order[:n_pairs])
        scores = [
            score(aligner.fit(pairs.images, pairs.captions))
            for aligner in (APEAligner(init="starter", **encoders), KernelAligner(**encoders))
        ]
        curve.append(CurvePoint(n_pairs, *scores))
    return curve


def _split(data: Bunch, random_state: int) -> tuple[Bunch, Bunch]:
    """Split the data so that variants by gender and duplicate images are on the same side.

    Similar captions, such as "sun behind cloud" and "sun behind large cloud", may be on both
    sides.
    """
    concepts = [_PERSON_WORDS.sub("", caption).strip(" :") or caption for caption in data.captions]
    # A few images occur twice, with two names: both get the concept of the first.
    concept_by_digest: dict[bytes, str] = {}
    concepts = [
        concept_by_digest.setdefault(hashlib.sha256(Path(image).read_bytes()).digest(), concept)
        for image, concept in zip(data.images, concepts, strict=True)
    ]
    splitter = GroupShuffleSplit(
        n_splits=1, test_size=_HELD_OUT_FRACTION, random_state=random_state
    )
    train, held_out = (
        _select_rows(data, rows) for rows in next(splitter.split(data.images, groups=concepts))
    )
    return train, held_out


def _select_rows(data: Bunch, rows: np.ndarray) -> Bunch:
    return Bunch(
        images=[data.images[row] for row in rows],
        captions=[data.captions[row] for row in rows],
        categories=np.asarray(data.categories)[rows],
    )


def _predict_concepts(
    model: Pipeline, held_out: Bunch, random_state: int
) -> tuple[list[Prediction], float, float]:
    """Classify the held-out images with all their captions; return the (top-5) accuracy."""
    classifier = ZeroShotClassifier(held_out.captions, aligner=model, templates="none")
    accuracy = classifier.score(held_out.images, held_out.captions)
    top_names, _ = classifier.predict_top_k(held_out.images, k=_N_NAMES_SHOWN)
    top_accuracy = np.mean([y in row for y, row in zip(held_out.captions, top_names, strict=True)])
    order = np.random.default_rng(random_state).permutation(len(held_out.images))
    shown = _select_rows(held_out, order[:_N_PREDICTIONS_SHOWN])
    return _predict(classifier, shown.images, shown.captions), accuracy, float(top_accuracy)


def _predict(
    classifier: ZeroShotClassifier, images: Sequence[Any], truths: Sequence[str]
) -> list[Prediction]:
    """Return the most probable names of images."""
    predictions = []
    for image, truth, row in zip(images, truths, classifier.predict_proba(images), strict=True):
        best = np.argsort(-row)[:_N_NAMES_SHOWN]
        predictions.append(
            Prediction(image, truth, classifier.classes_[best].tolist(), row[best].tolist())
        )
    return predictions


def _count_since(before: CacheInfo, encoder: Any) -> CacheInfo:
    return CacheInfo(*np.subtract(encoder.cache_info(), before).tolist())


def _name_photographs() -> list[Prediction]:
    """Name the photographs of scikit-learn, and of scikit-image if installed, by the starter."""
    samples = load_sample_images()
    photographs = {
        Path(file).name: image
        for file, image in zip(samples.filenames, samples.images, strict=True)
    }
    with suppress(ImportError):
        from skimage import data

        names = [name for name in PHOTO_TRUTHS if name not in photographs]
        photographs |= {name: getattr(data, Path(name).stem)() for name in names}
    classifier = ZeroShotClassifier(list(PHOTO_NAMES))
    return _predict(classifier, list(photographs.values()), list(photographs))


def _score_categories(model: Pipeline, held_out: Bunch) -> tuple[float, int]:
    """Return the accuracy and the number of categories; their names are not in the captions."""
    rows = np.flatnonzero(np.isin(held_out.categories, list(CATEGORY_NAMES)))
    images = [held_out.images[row] for row in rows]
    classifier = ZeroShotClassifier(CATEGORY_NAMES, aligner=model)
    return classifier.score(images, held_out.categories[rows]), len(CATEGORY_NAMES)


def _search(model: Pipeline, query: str, held_out: Bunch) -> Search:
    similarity = model.transform(held_out.images) @ model[-1].transform_text([query])[0]
    results = _select_rows(held_out, np.argsort(-similarity)[:_N_RESULTS])
    return Search(query, results.images, results.captions)
