"""Accuracy with a few labelled images per class beside the names, and on whole collections.

    python -m benchmarks.few_labels [--stamps FOLDER] [--cache FOLDER] [--quick]

All methods use the features of the starter model. `FewShotClassifier()` has its default
parameters on all data. The peers are the names alone, LogisticRegression on the same
image features, Tip-Adapter without training [1]_ and a linear variant of ProKeR [2]_.

The collections are OpenMoji by subcategory (the starter model was trained on emoji of other
styles), Tux Paint stamps by an everyday word for their folder, the same by the name of their
innermost folder, and scikit-learn's handwritten digits, whose names the starter model does not
understand. Each mean is over five random choices of
the labelled images, or ten of the images and classes of the collection.

.. [1] R. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
   ECCV 2022.
.. [2] Y. Bendou, A. Ouasfi, V. Gripon and A. Boukhayma, "ProKeR: A Kernel Perspective on Few-Shot
   Adaptation of Large Vision-Language Models", CVPR 2025.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sklearn_ape import APEAligner, FewShotClassifier, ZeroShotClassifier
from sklearn_ape.aligners.starter import STARTER_FOLDER, make_starter_encoders, unpack_starter
from sklearn_ape.datasets import get_data_home, load_openmoji, load_tuxpaint_stamps
from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.metrics import expected_calibration_error

from ._results import Results, choose_folder, make_results_parser
from .studies.broad_words import FOLDERS, find_answer

SHOTS = (0, 1, 2, 4, 8, 16)
N_SEEDS = 5
# Each class keeps this number of images for testing.
MIN_TEST_IMAGES = 4
MIN_IMAGES = 8
N_COLLECTIONS = 10

COLUMNS = ("table", "data", "case", "method", "accuracy", "std", "calibration_error", "seconds")


class Data(NamedTuple):
    """Image features, and the class and names of each image."""

    features: np.ndarray
    y: np.ndarray


def clean_name(name: str) -> str:
    """Return the name of a subcategory as words."""
    return re.sub(r"[-_&\s]+", " ", name).strip()


def load_starter_on_features(cache: Any) -> tuple[TimmImageEncoder, APEAligner]:
    """Return the image encoder of the starter model, and the model, which takes its features."""
    encoder, text_encoder = make_starter_encoders(cache=cache, engine="torch")
    aligner = unpack_starter(STARTER_FOLDER / "model.safetensors")
    aligner.image_encoder_ = None
    aligner.text_encoder_ = text_encoder
    return encoder, aligner


def load_data(encoder: Any, stamps: Path | None) -> dict[str, Data]:
    emoji = load_openmoji()
    images: dict[str, tuple[list[Any], list[str]]] = {
        "emoji": (emoji.images, [clean_name(name) for name in emoji.subcategories])
    }
    try:
        bunch = load_tuxpaint_stamps(path=stamps)
        images["stamps"] = bunch.images, [find_answer(name, FOLDERS) for name in bunch.subjects]
        folders = [clean_name(name.rsplit("/", 1)[-1]) for name in bunch.subjects]
        images["stamp folders"] = bunch.images, folders
    except (ImportError, FileNotFoundError) as error:
        print(f"Without stamps: {error}")
    digits = load_digits()
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    drawings = [
        Image.fromarray((255 - 15.9 * digit).astype(np.uint8)).resize((128, 128)).convert("RGB")
        for digit in digits.images
    ]
    images["digits"] = drawings, [f"digit {names[target]}" for target in digits.target]
    return {name: select_classes(encoder.transform(x), y) for name, (x, y) in images.items()}


def select_classes(features: np.ndarray, names: list[str]) -> Data:
    """Return the images of the classes with enough images, without repeated drawings."""
    first = np.unique(features.round(3), axis=0, return_index=True)[1]
    features, y = features[np.sort(first)], np.array(names)[np.sort(first)]
    classes, counts = np.unique(y, return_counts=True)
    is_selected = np.isin(y, classes[counts >= MIN_IMAGES]) & (y != "")
    return Data(features[is_selected], y[is_selected])


def choose_examples(y: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return a mask of k labelled images per class, or fewer where the class is small."""
    rng = np.random.default_rng(seed)
    is_example = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        is_example[rows[: min(k, len(rows) - MIN_TEST_IMAGES)]] = True
    return is_example


Predict = Callable[[np.ndarray], np.ndarray]
Method = Callable[[Any, np.ndarray, np.ndarray, np.ndarray], Predict]


def fit_names(aligner: Any, labels: np.ndarray, X: np.ndarray, y: np.ndarray) -> Predict:
    return ZeroShotClassifier(labels, aligner=aligner).predict_proba


def fit_few_shot(aligner: Any, labels: np.ndarray, X: np.ndarray, y: np.ndarray) -> Predict:
    classifier = FewShotClassifier(labels, aligner=aligner)
    return (classifier.fit(X, y) if len(y) else classifier).predict_proba


def fit_logistic_regression(
    aligner: Any, labels: np.ndarray, X: np.ndarray, y: np.ndarray
) -> Predict:
    return LogisticRegression(max_iter=300).fit(X, y).predict_proba


def fit_tip_adapter(aligner: Any, labels: np.ndarray, X: np.ndarray, y: np.ndarray) -> Predict:
    """Tip-Adapter without training, with the published alpha = 1 and beta = 5.5."""
    zero_shot = ZeroShotClassifier(labels, aligner=aligner)
    keys, values = aligner.transform(X), (y[:, None] == labels).astype(np.float32)

    def predict_proba(X: np.ndarray) -> np.ndarray:
        affinity = np.exp(-5.5 * (1 - aligner.transform(X) @ keys.T))
        return softmax(zero_shot.decision_function(X) + affinity @ values, axis=1)

    return predict_proba


def fit_proker(aligner: Any, labels: np.ndarray, X: np.ndarray, y: np.ndarray) -> Predict:
    """Ridge regression of the residuals of the names' probabilities, with a linear kernel."""
    zero_shot = ZeroShotClassifier(labels, aligner=aligner)
    keys, values = aligner.transform(X), (y[:, None] == labels).astype(np.float32)
    residuals = values - zero_shot.predict_proba(X)
    weights = np.linalg.solve(keys @ keys.T + np.eye(len(keys)), residuals)

    def predict_proba(X: np.ndarray) -> np.ndarray:
        scores = zero_shot.predict_proba(X) + aligner.transform(X) @ keys.T @ weights
        scores = np.clip(scores, 1e-6, None)
        return scores / scores.sum(axis=1, keepdims=True)

    return predict_proba


def fit_few_shot_together(
    aligner: Any, labels: np.ndarray, X: np.ndarray, y: np.ndarray
) -> Predict:
    classifier = FewShotClassifier(labels, aligner=aligner)
    return (classifier.fit(X, y) if len(y) else classifier).predict_proba_together


METHODS: dict[str, Method] = {
    "names alone": fit_names,
    "LogisticRegression": fit_logistic_regression,
    "Tip-Adapter": fit_tip_adapter,
    "ProKeR, linear": fit_proker,
    "FewShotClassifier": fit_few_shot,
    "FewShotClassifier, predict_together": fit_few_shot_together,
}


def measure_few_labels(
    aligner: Any,
    data: dict[str, Data],
    n_seeds: int,
    shots: Sequence[int] = SHOTS,
    methods: Sequence[str] = tuple(METHODS),
    table: str = "few labels",
) -> Iterator[dict[str, Any]]:
    """Yield a row for each collection, number of labelled images and method."""
    for name, (X, y) in data.items():
        labels = np.unique(y)
        for k in shots:
            for method in methods:
                if not k and method in ("LogisticRegression", "Tip-Adapter", "ProKeR, linear"):
                    continue
                accuracies, errors, seconds = [], [], []
                for seed in range(n_seeds):
                    is_example = choose_examples(y, k, seed)
                    start = time.perf_counter()
                    predict_proba = METHODS[method](aligner, labels, X[is_example], y[is_example])
                    seconds.append(time.perf_counter() - start)
                    proba, truth = predict_proba(X[~is_example]), y[~is_example]
                    accuracies.append((labels[proba.argmax(axis=1)] == truth).mean())
                    errors.append(expected_calibration_error(truth, proba, labels=labels))
                yield {
                    "table": table,
                    "data": f"{name}, {len(labels)} classes",
                    "case": k,
                    "method": method,
                    **summarize(accuracies, errors, seconds),
                }


def measure_half_of_classes(
    aligner: Any, data: dict[str, Data], n_seeds: int
) -> Iterator[dict[str, Any]]:
    """Yield accuracies over all classes if a random half of them has labelled images."""
    for name, (X, y) in data.items():
        labels = np.unique(y)
        for k in SHOTS[1:]:
            for method in ("names alone", "LogisticRegression", "FewShotClassifier"):
                accuracies, errors = [], []
                for seed in range(n_seeds):
                    half = np.random.default_rng(seed).permutation(labels)[: len(labels) // 2]
                    is_example = choose_examples(y, k, seed) & np.isin(y, half)
                    fit_labels = np.unique(half) if method == "LogisticRegression" else labels
                    predict_proba = METHODS[method](
                        aligner, fit_labels, X[is_example], y[is_example]
                    )
                    proba, truth = predict_proba(X[~is_example]), y[~is_example]
                    is_right = fit_labels[proba.argmax(axis=1)] == truth
                    per_class = [is_right[truth == label].mean() for label in labels]
                    accuracies.append(float(np.mean(per_class)))
                    if len(fit_labels) == len(labels):
                        errors.append(expected_calibration_error(truth, proba, labels=labels))
                yield {
                    "table": "half of the classes",
                    "data": f"{name}, {len(labels)} classes",
                    "case": k,
                    "method": method,
                    **summarize(accuracies, errors or None),
                }


def choose_collection(y: np.ndarray, case: str, seed: int) -> np.ndarray:
    """Return the rows of a collection: all images, some images, or all images of some classes."""
    rng = np.random.default_rng(seed)
    number, _, kind = case.partition(" ")
    if kind == "images":
        return rng.permutation(len(y))[: int(number)]
    if kind == "classes":
        return np.flatnonzero(np.isin(y, rng.permutation(np.unique(y))[: int(number)]))
    return np.arange(len(y))


def measure_collections(
    aligner: Any, data: dict[str, Data], n_collections: int
) -> Iterator[dict[str, Any]]:
    """Yield the accuracy of images one by one, together, and with known shares."""
    for name, (X, y) in data.items():
        labels = np.unique(y)
        classifier = ZeroShotClassifier(labels, aligner=aligner)
        for case in ("all", "300 images", "100 images", "5 classes", "10 classes"):
            accuracies: dict[str, list[float]] = {}
            for seed in range(1 if case == "all" else n_collections):
                rows = choose_collection(y, case, seed)
                truth = y[rows]
                shares = (truth[:, None] == labels).mean(axis=0)
                informed = ZeroShotClassifier(labels, aligner=aligner, class_prior=shares)
                for method, predict in (
                    ("predict", classifier.predict),
                    ("predict_together", classifier.predict_together),
                    ("predict, class_prior", informed.predict),
                    ("predict_together, class_prior", informed.predict_together),
                ):
                    accuracy = float((predict(X[rows]) == truth).mean())
                    accuracies.setdefault(method, []).append(accuracy)
            for method, values in accuracies.items():
                yield {
                    "table": "collections",
                    "data": f"{name}, {len(labels)} classes",
                    "case": case,
                    "method": method,
                    **summarize(values),
                }


def summarize(
    accuracies: list[float], errors: list[float] | None = None, seconds: list[float] | None = None
) -> dict[str, Any]:
    return {
        "accuracy": round(100 * float(np.mean(accuracies)), 1),
        "std": round(100 * float(np.std(accuracies)), 1),
        "calibration_error": None if errors is None else round(float(np.mean(errors)), 3),
        "seconds": None if seconds is None else round(float(np.median(seconds)), 2),
    }


def print_table(rows: list[dict[str, str]], value: str) -> None:
    """Print a Markdown table with one row per collection and method, and one column per case."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    print("\n| data | method | " + " | ".join(cases) + " |")
    print("|---|---|" + "---|" * len(cases))
    for data, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        cells = {
            row["case"]: row[value]
            for row in rows
            if (row["data"], row["method"]) == (data, method)
        }
        print(f"| {data} | {method} | " + " | ".join(cells.get(c, "") for c in cases) + " |")


def main() -> None:
    parser = make_results_parser("few_labels", __doc__)
    parser.add_argument("--stamps", type=Path, help="folder of Tux Paint stamps")
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    options = parser.parse_args()
    encoder, aligner = load_starter_on_features(options.cache)
    data = load_data(encoder, options.stamps)
    results = Results(choose_folder(options) / "few_labels.csv", COLUMNS)
    results.remove("table", ["few labels", "half of the classes", "collections"])
    n_seeds, n_collections = (1, 2) if options.quick else (N_SEEDS, N_COLLECTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LogisticRegression at its limit of iterations
        for row in measure_few_labels(aligner, data, n_seeds):
            results.append([row])
        for row in measure_half_of_classes(aligner, data, n_seeds):
            results.append([row])
        for row in measure_collections(aligner, data, n_collections):
            results.append([row])
    few = [row for row in results.rows if row["table"] == "few labels"]
    print_table(few, "accuracy")
    print_table([row for row in few if row["method"] != "Tip-Adapter"], "calibration_error")
    print_table([row for row in few if row["method"] == "FewShotClassifier"], "seconds")
    for table in ("half of the classes", "collections"):
        print_table([row for row in results.rows if row["table"] == table], "accuracy")


if __name__ == "__main__":
    main()
