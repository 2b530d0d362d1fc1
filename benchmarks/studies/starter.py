"""Accuracy of the starter model on the Tux Paint stamps and OpenMoji, which it has not seen.

    python -m benchmarks.studies.starter [--cache FOLDER]

Prints four tables: recall among all captions of a collection, for the model, for each of the two
text heads that it blends, and without the names of ImageNet's classes in the embeddings of images,
with 95 % confidence intervals; how often a search by a caption finds an image with this caption,
with and without `standardize`; accuracy with all captions as names of classes, by templates;
recall after the model was extended by some of the pairs, with the standard deviation over random
choices of these.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from sklearn_ape import APEAligner, CrossModalRetriever, KernelAligner, ZeroShotClassifier
from sklearn_ape.aligners.starter import STARTER_FOLDER, make_starter_encoders, unpack_starter
from sklearn_ape.datasets import get_data_home, load_openmoji, load_tuxpaint_stamps
from sklearn_ape.heads import TwoTower

from .._results import make_parser
from ..build_starter import HEAD_WEIGHT, measure_starter

# Weights of the trained head in the blend.
PARTS = (("closed form alone", 0), ("trained head alone", 1), ("starter model", HEAD_WEIGHT))
N_OWN_PAIRS = (50, 200, 500)
N_DRAWS = 5


def print_parts(aligner: APEAligner, collections: dict[str, Bunch]) -> None:
    print("| images | direction | part | recall@1 | recall@5 |\n|---|---|---|---|---|")
    heads = aligner.module_
    for name, data in collections.items():
        for part, weight in PARTS:
            heads.text_head.weight.fill_(weight)
            print_recall(name, part, aligner, data)
        aligner.module_ = TwoTower(heads.image_head.base, heads.text_head)
        print_recall(name, "without names of classes", aligner, data)
        aligner.module_ = heads


def print_recall(name: str, part: str, aligner: APEAligner, data: Bunch) -> None:
    for direction, cells in measure_starter(aligner, data.images, data.captions).items():
        print(f"| {name} | {direction} | {part} | {cells} |", flush=True)


def print_searches(aligner: APEAligner, collections: dict[str, Bunch]) -> None:
    print("\n| images | queries | standardize | first result | first five |")
    print("|---|---|---|---|---|")
    for name, data in collections.items():
        captions = sorted(set(data.captions))
        retriever = CrossModalRetriever(aligner).fit(data.images, data.captions)
        for standardize in (False, True):
            found = retriever.set_params(standardize=standardize).search(captions, k=5).items
            is_right = np.array(found, dtype=object) == np.array(captions, dtype=object)[:, None]
            recalls = [100 * is_right[:, :k].any(axis=1).mean() for k in (1, 5)]
            cells = " | ".join(f"{recall:.1f}" for recall in recalls)
            print(f"| {name} | {len(captions):,} | {standardize} | {cells} |", flush=True)


def print_templates(aligner: APEAligner, collections: dict[str, Bunch]) -> None:
    print("\n| images | names | templates | accuracy |\n|---|---|---|---|")
    for name, data in collections.items():
        names = sorted(set(data.captions))
        for templates in ("simple", "none"):
            classifier = ZeroShotClassifier(names, aligner=aligner, templates=templates)
            accuracy = 100 * classifier.score(data.images, data.captions)
            print(f"| {name} | {len(names):,} | {templates} | {accuracy:.1f} |", flush=True)


def print_extensions(aligner: APEAligner, collections: dict[str, Bunch]) -> None:
    """Print recall@1 on the images whose captions are not among the own pairs."""
    encoders = {
        "image_encoder": aligner.image_encoder_,
        "text_encoder": aligner.text_encoder_,
    }
    print("\n| images | own pairs | starter model | own pairs alone | starter model, extended |")
    print("|---|---|---|---|---|")
    for (name, data), n_pairs in product(collections.items(), N_OWN_PAIRS):
        recalls: list[list[list[float]]] = []
        for draw in range(N_DRAWS):
            order = np.random.default_rng(draw).permutation(len(data.images))
            images = [data.images[row] for row in order]
            captions = [data.captions[row] for row in order]
            own = images[:n_pairs], captions[:n_pairs]
            seen = set(own[1])
            rows = [row for row, caption in enumerate(captions) if caption not in seen]
            test = [images[row] for row in rows], [captions[row] for row in rows]
            aligners: tuple[Any, ...] = (
                aligner,
                KernelAligner(**encoders).fit(*own),
                APEAligner(init=aligner).fit(*own),
            )
            reports = [aligner.retrieval_report(*test, ks=(1,)) for aligner in aligners]
            recalls.append([[100 * recall[1] for recall in report.values()] for report in reports])
        means, stds = np.mean(recalls, axis=0), np.std(recalls, axis=0)
        cells = [
            " / ".join(f"{mean:.1f} ± {std:.1f}" for mean, std in zip(*values, strict=True))
            for values in zip(means, stds, strict=True)
        ]
        print(f"| {name} | {n_pairs} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = make_parser("studies.starter", __doc__)
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    options = parser.parse_args()
    aligner = unpack_starter(STARTER_FOLDER / "model.safetensors")
    aligner.image_encoder_, aligner.text_encoder_ = make_starter_encoders(
        cache=options.cache, engine="torch"
    )
    collections = {"stamps": load_tuxpaint_stamps(), "OpenMoji": load_openmoji()}
    print_parts(aligner, collections)
    print_searches(aligner, collections)
    print_templates(aligner, collections)
    print_extensions(aligner, collections)


if __name__ == "__main__":
    main()
