"""The demo: align real encoders on real captioned images and look at what comes out."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch

from .aligners import APEAligner
from .datasets import get_data_home, load_openmoji
from .encoders import CacheInfo, TimmImageEncoder, TransformersTextEncoder
from .encoders.images import image_groups
from .zero_shot import ZeroShotClassifier

if TYPE_CHECKING:
    from PIL import Image

_SAMPLE_EVERY_S = 0.02


class Stage(NamedTuple):
    """What one stage cost; memory is the resident set of the whole process, in bytes."""

    name: str
    seconds: float
    peak_memory: int


class StageLog:
    """Measures stages one after another.

    Attributes
    ----------
    stages : list of Stage
        Those that ended.

    Examples
    --------
    >>> from sklearn_ape._demo import StageLog
    >>> log = StageLog()
    >>> with log.stage("sleep"):
    ...     time.sleep(0.01)
    >>> log.stages[0].seconds >= 0.01
    True
    """

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside; the stage is logged when it ends without an error."""
        import psutil

        process = psutil.Process()
        peak = process.memory_info().rss
        ended = threading.Event()

        # Sampled, because the system's own high-water mark cannot be reset everywhere.
        def watch() -> None:
            nonlocal peak
            while not ended.wait(_SAMPLE_EVERY_S):
                peak = max(peak, process.memory_info().rss)

        thread = threading.Thread(target=watch, daemon=True)
        start = time.perf_counter()
        thread.start()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            ended.set()
            thread.join()
        self.stages.append(Stage(name, seconds, max(peak, process.memory_info().rss)))


_THUMBNAIL = 96


def print_result(result: DemoResult) -> None:
    """Print the figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    n = result.n_held_out
    console.print(
        f"\nTrained on {result.n_train} captioned images, tested on {n} held-out images "
        f"whose captions were not among them."
    )
    recall = Table(title=f"Retrieval among {n} held-out pairs", title_justify="left")
    recall.add_column("direction")
    for k in (1, 5, 10):
        recall.add_column(f"recall@{k}", justify="right")
    names = {"image_to_text": "image → caption", "text_to_image": "caption → image"}
    for direction, name in names.items():
        recall.add_row(name, *(f"{result.recall[direction][k]:.1%}" for k in (1, 5, 10)))
    recall.add_row("chance", *(f"{k / n:.1%}" for k in (1, 5, 10)), style="dim")
    console.print(recall)

    zero_shot = Table(title="Zero-shot classification", title_justify="left")
    for heading in ("labels", "accuracy", "chance"):
        zero_shot.add_column(heading, justify="left" if heading == "labels" else "right")
    zero_shot.add_row(f"{n} held-out concepts", f"{result.concept_accuracy:.1%}", f"{1 / n:.1%}")
    zero_shot.add_row(
        f"{result.n_categories} categories (animals, food, travel, ...)",
        f"{result.category_accuracy:.1%}",
        f"{1 / result.n_categories:.1%}",
    )
    console.print(zero_shot)

    stages = Table(title="Cost", title_justify="left")
    for heading in ("stage", "seconds", "peak memory"):
        stages.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in result.stages:
        stages.add_row(stage.name, f"{stage.seconds:.1f}", f"{stage.peak_memory / 2**20:.0f} MiB")
    console.print(stages)
    cached = result.image_cache.misses == 0 and result.text_cache.misses == 0
    source = "from the cache" if cached else f"{result.image_cache.misses} images encoded"
    console.print(
        f"Features: {source}. Numbers learned: {result.n_parameters:,}; {_kept(result)}."
    )


def write_report(result: DemoResult, folder: Path) -> Path:
    """Write ``index.html``, which needs no other file, and ``search.png``.

    Parameters
    ----------
    result : DemoResult
        What `run_demo` returns.
    folder : pathlib.Path
        Made when it does not exist.

    Returns
    -------
    page : pathlib.Path
        The page.
    """
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    source = files("sklearn_ape").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(thumbnail=_thumbnail, zip=zip)
    page = folder / "index.html"
    html = environment.from_string(source).render(
        result=result, curve=_curve(result), kept=_kept(result)
    )
    page.write_text(html, encoding="utf-8")
    contact_sheet(result.searches).save(folder / "search.png")
    return page


def contact_sheet(searches: Sequence[Search], size: int = 112) -> Image.Image:
    """Draw queries and the images found for them.

    Parameters
    ----------
    searches : sequence of Search
        One row each.
    size : int, default=112
        Side of an image in pixels.

    Returns
    -------
    sheet : PIL.Image.Image
        Of mode RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(18), ImageFont.load_default(12)
    columns = max(len(search.images) for search in searches)
    row_height = size + 56
    sheet = Image.new("RGB", (columns * (size + 12) + 12, len(searches) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, search in enumerate(searches):
        top = row * row_height
        draw.text((12, top + 6), f"“{search.query}”", fill="#1f2937", font=font)
        for column, (path, caption) in enumerate(zip(search.images, search.captions, strict=True)):
            left = 12 + column * (size + 12)
            with Image.open(path) as image:
                sheet.paste(image.convert("RGB").resize((size, size)), (left, top + 30))
            shown = caption if len(caption) <= 18 else caption[:17] + "…"
            draw.text((left, top + 32 + size), shown, fill="#4b5563", font=small)
    return sheet


def _kept(result: DemoResult) -> str:
    """Say which epoch was kept; the history's first row is the start, epoch 0, if there is one."""
    n_epochs = sum(row["epoch"] > 0 for row in result.history)
    if result.best_epoch == 0:
        return f"the start in closed form was kept, which {n_epochs} epochs did not beat"
    return f"epoch {result.best_epoch} of {n_epochs} was kept"


def _thumbnail(path: str) -> str:
    """Return an image as a data address."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _curve(result: DemoResult, width: int = 560, height: int = 160) -> str:
    """Return the points of the held-out recall by epoch, scaled to the drawing."""
    recalls = [row.get("valid_recall", 0.0) for row in result.history]
    top = max(recalls) or 1.0
    step = width / max(1, len(recalls) - 1)
    return " ".join(
        f"{place * step:.1f},{height * (1 - recall / top):.1f}"
        for place, recall in enumerate(recalls)
    )


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
