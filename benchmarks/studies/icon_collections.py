"""Accuracy of `predict` and `predict_together` on sets of icons by category.

    python -m benchmarks.studies.icon_collections PACKAGE [--sets SET ...] [--cache FOLDER]

PACKAGE is an unpacked npm package @iconify/json. The classes are the categories of a set, or the
subcategories of OpenMoji for a set without categories. The names of the categories, such as
"interface essential", say little about many icons, so these sets show whether `predict_together`
does harm where the predictions are bad. At most 1,000 icons of each set are used, at random.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_ape.datasets import get_data_home, load_iconify, load_openmoji

from .._results import make_parser
from ..few_labels import (
    clean_name,
    load_starter_on_features,
    measure_collections,
    print_table,
    select_classes,
)

SETS = (
    "fluent-emoji",
    "twemoji",
    "emojione-v1",
    "icon-park",
    "healthicons",
    "iconoir",
    "streamline-ultimate-color",
    "streamline-freehand-color",
    "qlementine-icons",
    "streamline-kameleon-color",
    "streamline-cyber-color",
    "streamline-plump-color",
    "fa6-solid",
    "flowbite",
    "lets-icons",
)
MAX_ICONS = 1000
N_COLLECTIONS = 10


def split_words(name: str) -> str:
    """Return the name of a category, such as "FoodDrink", as words in lower case."""
    return clean_name(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower()


def load_classes(package: Path, name: str) -> dict[str, str]:
    """Return the class of each icon of a set."""
    content = json.loads((package / "json" / f"{name}.json").read_text(encoding="utf-8"))
    if "categories" not in content:
        emoji = load_openmoji()
        names = (re.sub(r"[^a-z0-9]+", "-", text.lower()) for text in emoji.captions)
        return dict(zip(names, map(clean_name, emoji.subcategories), strict=True))
    classes: dict[str, str] = {}
    for category, icons in content["categories"].items():
        for icon in icons:
            classes.setdefault(icon, split_words(category))
    return classes


def main() -> None:
    parser = make_parser("studies.icon_collections", __doc__)
    parser.add_argument("package", type=Path, help="unpacked npm package @iconify/json")
    parser.add_argument("--sets", nargs="+", default=SETS, help="names of sets")
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    options = parser.parse_args()
    encoder, aligner = load_starter_on_features(options.cache)
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        icons = load_iconify(options.package, sets=[name])
        classes = load_classes(options.package, name)
        y = [classes.get(icon, "") for icon in icons.names]
        order = np.random.default_rng(0).permutation(len(y))
        chosen = np.sort([row for row in order if y[row]][:MAX_ICONS])
        features = encoder.transform([icons.images[row] for row in chosen])
        data = {name: select_classes(features, [y[row] for row in chosen])}
        rows += [
            {column: str(value) for column, value in row.items()}
            for row in measure_collections(aligner, data, N_COLLECTIONS)
            if "class_prior" not in row["method"]
        ]
    print_table(rows, "accuracy")


if __name__ == "__main__":
    main()
