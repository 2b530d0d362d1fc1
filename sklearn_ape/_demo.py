"""Demo: align pretrained encoders on captioned images, evaluate, and write a report."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch

from .aligners import APEAligner, KernelAligner
from .aligners.starter import load_starter, make_starter_encoders
from .datasets import get_data_home, load_openmoji
from .encoders.images import group_images, read_image
from .features import open_cache
from .retrieval import CrossModalRetriever
from .utils.files import write_file_atomically
from .zero_shot import ZeroShotClassifier

if TYPE_CHECKING:
    from rich.table import Table

_HELD_OUT_FRACTION = 0.2
_N_RESULTS = 6
_N_PREDICTIONS_SHOWN = 24
_N_NAMES_SHOWN = 5
_N_CONCEPTS_PRINTED = 6

# Size of the plot in pixels.
_PLOT_WIDTH, _PLOT_HEIGHT = 340, 200

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
    """Recall@1, mean of both directions, of the extended starter and of a new aligner."""

    n_pairs: int
    extended: float
    alone: float


class Prediction(NamedTuple):
    """An image with its true name, or that of its file, and its most probable names."""

    image: Any
    truth: str
    names: list[str]
    probabilities: list[float]


class DemoResult(NamedTuple):
    """Results of the demo."""

    n_train: int
    n_held_out: int
    recall: dict[str, dict[int, float]]
    concept_accuracy: float
    concept_top_accuracy: float  # top-5 accuracy
    category_accuracy: float
    photographs: list[Prediction]
    predictions: list[Prediction]
    searches: dict[str, list[tuple[str, str]]]  # images and captions found for each query
    curve: list[CurvePoint]
    n_parameters: int
    seconds: dict[str, float]
    n_images_encoded: int  # 0 if all features were cached


def run_demo(cache: Path | None, *, random_state: int, n_jobs: int, verbose: int) -> DemoResult:
    """Extend the starter model by images of OpenMoji, and evaluate on held-out captions.

    The starter has been trained without OpenMoji, but with emoji of other styles. Features are
    cached in the folder `cache`, or in the data home if it is None.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    folder = get_data_home() / "features" if cache is None else cache
    with open_cache(folder):
        pass  # an unusable folder raises now, and not after the photographs are named
    image_encoder, text_encoder = make_starter_encoders(cache=folder, verbose=verbose)
    image_encoder.set_params(n_jobs=n_jobs)

    n_encoded_before = image_encoder.cache_info().misses
    with stage("name photographs"):
        starter = deepcopy(load_starter())
        starter.image_encoder_, starter.text_encoder_ = image_encoder, text_encoder  # with a cache
        photographs = _name_photographs(starter)
    with stage("load images"):
        data = load_openmoji(n_jobs=n_jobs, verbose=verbose)
        train, held_out = _split(data, random_state)
        groups = group_images(held_out.images)  # a few images occur twice, with two names
    with stage("encode images"):
        image_encoder.transform(data.images)
    with stage("encode captions"):
        text_encoder.transform(data.captions)
    with stage("train"):
        aligner = APEAligner(text_encoder=text_encoder, init="starter")
        model = make_pipeline(image_encoder, aligner).fit(train.images, train.captions)
    with stage("train on fewer images"):
        curve = _measure_curve(starter, model, train, held_out, groups, random_state)
    with stage("evaluate"):
        features = image_encoder.transform(held_out.images)
        recall = model[-1].retrieval_report(features, held_out.captions, groups=groups)
        predictions, concept_accuracy, concept_top_accuracy = _predict_concepts(
            model, held_out, random_state
        )
        category_accuracy = _score_categories(model, held_out)
        retriever = CrossModalRetriever(model).fit(
            held_out.images, list(zip(held_out.images, held_out.captions, strict=True))
        )
        results = retriever.search(QUERIES, k=_N_RESULTS).items
    return DemoResult(
        n_train=len(train.images),
        n_held_out=len(held_out.images),
        recall=recall,
        concept_accuracy=concept_accuracy,
        concept_top_accuracy=concept_top_accuracy,
        category_accuracy=category_accuracy,
        photographs=photographs,
        predictions=predictions,
        searches=dict(zip(QUERIES, results, strict=True)),
        curve=curve,
        n_parameters=model[-1].n_parameters_,
        seconds=seconds,
        n_images_encoded=image_encoder.cache_info().misses - n_encoded_before,
    )


def _measure_curve(
    starter: APEAligner,
    model: Pipeline,
    train: Bunch,
    held_out: Bunch,
    groups: np.ndarray,
    random_state: int,
) -> list[CurvePoint]:
    """Measure the recall on held-out pairs after training on different numbers of pairs.

    `model` was trained on all of them.
    """
    image_encoder, text_encoder = model[0], model[-1].text_encoder_
    train_features, features = (image_encoder.transform(d.images) for d in (train, held_out))

    def score(aligner: Any) -> float:
        return aligner.score(features, held_out.captions, groups=groups)

    starter_recall = starter.score(held_out.images, held_out.captions, groups=groups)
    curve = [CurvePoint(0, starter_recall, 1 / len(held_out.images))]
    n_train = len(train.images)
    order = np.random.default_rng(random_state).permutation(n_train)
    for n_pairs in (*_N_PAIRS_SHOWN, n_train):
        rows = order[:n_pairs]
        pairs = train_features[rows], [train.captions[row] for row in rows]
        extended = model[-1]
        if n_pairs < n_train:
            extended = APEAligner(text_encoder=text_encoder, init="starter").fit(*pairs)
        alone = KernelAligner(text_encoder=text_encoder).fit(*pairs)
        curve.append(CurvePoint(n_pairs, score(extended), score(alone)))
    return curve


def _split(data: Bunch, random_state: int) -> tuple[Bunch, Bunch]:
    """Split the data so that variants by gender and duplicate images are on the same side.

    Similar captions, such as "sun behind cloud" and "sun behind large cloud", may be on both
    sides.
    """
    concepts = [_PERSON_WORDS.sub("", caption).strip(" :") or caption for caption in data.captions]
    # A few images occur twice, with two names: both get the concept of the first.
    first_concept: dict[int, str] = {}
    groups = group_images(data.images).tolist()
    pairs = zip(groups, concepts, strict=True)
    concepts = [first_concept.setdefault(group, concept) for group, concept in pairs]
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
    predictions = _predict(classifier, held_out.images, held_out.captions)
    top_accuracy = np.mean([prediction.truth in prediction.names for prediction in predictions])
    order = np.random.default_rng(random_state).permutation(len(predictions))
    shown = [predictions[row] for row in order[:_N_PREDICTIONS_SHOWN]]
    return shown, accuracy, float(top_accuracy)


def _predict(
    classifier: ZeroShotClassifier, images: Sequence[Any], truths: Sequence[str]
) -> list[Prediction]:
    """Return the most probable names of images."""
    names, probabilities = classifier.predict_top_k(images, k=_N_NAMES_SHOWN)
    rows = zip(images, truths, names.tolist(), probabilities.tolist(), strict=True)
    return [Prediction(*row) for row in rows]


def _name_photographs(starter: APEAligner) -> list[Prediction]:
    """Name the photographs of scikit-learn, and of scikit-image if installed."""
    samples = load_sample_images()
    photographs = {
        Path(file).name: image
        for file, image in zip(samples.filenames, samples.images, strict=True)
    }
    with suppress(ImportError):
        from skimage import data

        names = [name for name in PHOTO_TRUTHS if name not in photographs]
        photographs |= {name: getattr(data, Path(name).stem)() for name in names}
    classifier = ZeroShotClassifier(list(PHOTO_NAMES), aligner=starter)
    return _predict(classifier, list(photographs.values()), list(photographs))


def _score_categories(model: Pipeline, held_out: Bunch) -> float:
    """Return the accuracy of the categories, whose names are not in the captions."""
    rows = np.flatnonzero(np.isin(held_out.categories, list(CATEGORY_NAMES)))
    images = [held_out.images[row] for row in rows]
    classifier = ZeroShotClassifier(CATEGORY_NAMES, aligner=model)
    return classifier.score(images, held_out.categories[rows])


def print_result(result: DemoResult) -> None:
    """Print the scores and the cost as tables."""
    from rich.console import Console

    console = Console()
    photographs = _make_table(
        "Photographs named by the starter model, without training", "photograph"
    )
    photographs.add_column("most probable names")
    for photograph in result.photographs:
        photographs.add_row(photograph.truth, _describe_names(photograph))
    console.print(photographs)
    n = result.n_held_out
    console.print(
        f"\nThe starter model was trained on emoji of other styles. It was extended by "
        f"{result.n_train:,} captioned emoji, and tested on {n} others with other captions. "
        "Recall@k is the share of images or captions for which the right result is among the "
        "first k."
    )
    curve = _make_table(
        "Recall@1 by number of training pairs",
        "training pairs",
        *(f"{point.n_pairs:,}" for point in result.curve),
    )
    curve.add_row("starter model, extended", *(f"{point.extended:.1%}" for point in result.curve))
    curve.add_row("new aligner", *(f"{point.alone:.1%}" for point in result.curve), style="dim")
    console.print(curve)
    ks = (1, 5, 10)
    headings = ("direction", *(f"recall@{k}" for k in ks))
    recall = _make_table(f"Retrieval among {n} held-out pairs", *headings)
    names = {"image_to_text": "image → caption", "text_to_image": "caption → image"}
    for direction, name in names.items():
        recall.add_row(name, *(f"{result.recall[direction][k]:.1%}" for k in ks))
    recall.add_row("chance", *(f"{k / n:.1%}" for k in ks), style="dim")
    console.print(recall)
    zero_shot = _make_table("Zero-shot classification", "labels", "accuracy", "chance")
    zero_shot.add_row(f"{n} held-out concepts", f"{result.concept_accuracy:.1%}", f"{1 / n:.1%}")
    zero_shot.add_row(
        f"{n} held-out concepts, among the {_N_NAMES_SHOWN} most probable",
        f"{result.concept_top_accuracy:.1%}",
        f"{_N_NAMES_SHOWN / n:.1%}",
    )
    zero_shot.add_row(
        f"{len(CATEGORY_NAMES)} categories (animals, food, travel, ...)",
        f"{result.category_accuracy:.1%}",
        f"{1 / len(CATEGORY_NAMES):.1%}",
    )
    console.print(zero_shot)
    concepts = _make_table(f"Random held-out emoji, each named by one of {n} names", "emoji")
    concepts.add_column(f"{_N_NAMES_SHOWN} most probable names")
    for concept in result.predictions[:_N_CONCEPTS_PRINTED]:
        concepts.add_row(concept.truth, ", ".join(concept.names))
    console.print(concepts)
    stages = _make_table("Time", "stage", "seconds")
    for name, seconds in result.seconds.items():
        stages.add_row(name, f"{seconds:.1f}")
    console.print(stages)
    n_encoded = result.n_images_encoded
    source = f"{n_encoded} images encoded" if n_encoded else "from the cache"
    console.print(f"Features: {source}. The heads have {result.n_parameters:,} parameters.")
    console.print(
        "\nNext, with your own images:\n"
        '  sklearn-ape classify FOLDER --labels "a cat,a dog"   (without training)\n'
        '  sklearn-ape search FOLDER --query "a cat"            (without training)\n'
        "  sklearn-ape fit FOLDER -o MODEL                      (a subfolder per class)\n"
        "  sklearn-ape fit FOLDER --captions filename -o MODEL  (file names as captions)",
        highlight=False,
        markup=False,
    )


def _make_table(title: str, first_column: str, *columns: str) -> Table:
    """Return a table whose columns after the first are numbers, aligned to the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first_column, overflow="fold")  # a narrow terminal shows all of it
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _describe_names(prediction: Prediction) -> str:
    names = zip(prediction.names[:3], prediction.probabilities[:3], strict=True)
    return ", ".join(f"{name} {_format_percent(probability)}" for name, probability in names)


def write_report(result: DemoResult, folder: Path) -> Path:
    """Write ``index.html``, which contains its images, and return its path."""
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    source = files("sklearn_ape").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(thumbnail=_encode_thumbnail, percent=_format_percent)
    page = folder / "index.html"
    html = environment.from_string(source).render(
        result=result,
        plot=_make_plot(result.curve),
        n_categories=len(CATEGORY_NAMES),
        n_photo_names=len(PHOTO_NAMES),
        photo_truths=PHOTO_TRUTHS,
    )
    with write_file_atomically(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def _encode_thumbnail(item: str | np.ndarray, side: int = 96) -> str:
    """Return a small copy of an image, a path or an array, as a data URL."""
    small = read_image(item, side)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _format_percent(fraction: float) -> str:
    """Return a fraction in percent, without rounding it to 0 % or 100 %."""
    space = "\N{NO-BREAK SPACE}"
    if 0 < fraction < 0.01:
        return f"<{space}1{space}%"
    if 0.99 < fraction < 1:
        return f">{space}99{space}%"
    return f"{100 * fraction:.0f}{space}%"


def _make_plot(curve: Sequence[CurvePoint]) -> dict[str, Any]:
    """Return the lines and ticks of a plot of recall by number of own pairs, in pixels."""
    lines = {
        "starter model, extended": [point.extended for point in curve],
        "new aligner": [point.alone for point in curve],
    }
    # The next multiple of 0.1, so that ticks are round.
    top = math.ceil(10 * max(max(values) for values in lines.values()) + 1e-9) / 10

    def position(index: int, recall: float) -> tuple[float, float]:
        # Evenly spaced, because the numbers of pairs grow by factors.
        return index / (len(curve) - 1) * _PLOT_WIDTH, (1 - recall / top) * _PLOT_HEIGHT

    return {
        "width": _PLOT_WIDTH,
        "height": _PLOT_HEIGHT,
        "lines": {
            name: [position(index, value) for index, value in enumerate(values)]
            for name, values in lines.items()
        },
        "pairs": [(position(index, 0)[0], point.n_pairs) for index, point in enumerate(curve)],
        "recalls": [(position(0, share * top)[1], share * top) for share in (0, 0.5, 1)],
    }
