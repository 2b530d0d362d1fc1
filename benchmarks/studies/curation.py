"""Recall with curated and with random training pairs of equal number.

    python -m benchmarks.studies.curation --cache features-cache

Pairs of Open Clip Art, with the original captions of its authors, are selected for the captions of
another collection. An aligner is fitted on them and tested on the images of that collection.
Requires Debian's openclipart-png, openclipart-svg and tuxpaint-stamps-default. The defaults of
`select_relevant` were chosen on parts of OpenMoji, not on the stamps.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
from sklearn.base import clone

from sklearn_ape import aligners, datasets
from sklearn_ape.curation import find_near_duplicates, pair_quality, select_relevant
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.encoders.items import group_images

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Travel & Places",
)
ALIGNERS = [
    name for name in ("KernelAligner", "CCAAligner", "APEAligner") if hasattr(aligners, name)
]


def load_label_sets() -> Iterator[tuple[str, list[str], list[str], str]]:
    """Yield the name, images, captions and templates of each test set."""
    stamps = datasets.load_tuxpaint_stamps()
    yield "Tux Paint stamps", stamps.images, stamps.captions, "none"  # captions are sentences
    emoji = datasets.load_openmoji()
    rows = np.flatnonzero(np.isin(emoji.categories, CATEGORIES))
    images, captions = ([column[i] for i in rows] for column in (emoji.images, emoji.captions))
    yield "OpenMoji", images, captions, "simple"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="features-cache", help="feature cache folder")
    parser.add_argument("--aligner", choices=ALIGNERS, default=ALIGNERS[0], help="aligner to fit")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[250, 500, 1000, 2000], help="numbers of pairs"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    options = parser.parse_args()

    image_encoder = TimmImageEncoder(
        "efficientnet_lite0", crop="pad", cache=options.cache, verbose=1
    )
    text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=options.cache, verbose=1)
    pool = datasets.load_openclipart(replace_collection_titles=False)
    image, text = image_encoder.transform(pool.images), text_encoder.transform(pool.captions)

    start = time.perf_counter()
    groups = find_near_duplicates(image)
    groups_end = time.perf_counter()
    quality = pair_quality(image, text, pool.captions, groups=groups, random_state=0)
    print(
        f"{len(image)} pairs; {groups.max() + 1} groups of near-duplicates in "
        f"{groups_end - start:.1f} s; quality in {time.perf_counter() - groups_end:.1f} s: "
        f"{np.mean(quality.score < 0.5):.0%} score below 0.5"
    )

    # Captions are passed as texts, so that equal captions count as one when recall is computed.
    aligner = getattr(aligners, options.aligner)(text_encoder=text_encoder)
    for name, images, captions, templates in load_label_sets():
        labels = list(dict.fromkeys(captions))
        test = image_encoder.transform(images), captions
        scoring = {"ks": (1,), "groups": group_images(images)}

        select_by_words = partial(select_relevant, pool.captions, labels)
        select_by_meaning = partial(
            select_by_words, text_encoder=text_encoder, templates=templates
        )

        selections = {
            "random": None,
            "captions that contain a label": select_by_words,
            "most similar": partial(select_by_meaning, balance=False),
            "balanced": select_by_meaning,
            "balanced, no near-duplicates": partial(select_by_meaning, groups=groups),
        }
        print(f"\n{name}: {len(images)} images, {len(labels)} labels, {options.aligner}")
        print("recall@1, image→caption / caption→image, mean (standard deviation) over seeds, %")
        print(f"{'selection':<30}" + "".join(f"{n:>26}" for n in options.sizes))
        fitted = clone(aligner).fit(image, pool.captions)
        recall = [100 * recall[1] for recall in fitted.retrieval_report(*test, **scoring).values()]
        print(f"{f'all {len(image)}':<30}{f'{recall[0]:.1f} / {recall[1]:.1f}':>26}", flush=True)
        for selection, select in selections.items():
            cells = []
            for n in options.sizes:
                scores, n_selected = [], n
                for seed in range(options.seeds):
                    with warnings.catch_warnings():
                        warnings.simplefilter(
                            "ignore", UserWarning
                        )  # fewer pairs than n are shown below
                        if select is None:
                            rows = np.random.default_rng(seed).permutation(len(image))[:n]
                        else:
                            rows = select(n_pairs=n, random_state=seed).indices
                        texts = [pool.captions[row] for row in rows]
                        fitted = clone(aligner).fit(image[rows], texts)
                    n_selected = min(n_selected, len(rows))
                    report = fitted.retrieval_report(*test, **scoring)
                    scores.append([100 * recall[1] for recall in report.values()])
                mean, std = np.mean(scores, axis=0), np.std(scores, axis=0)
                cells.append(
                    f"{mean[0]:.1f} ({std[0]:.1f}) / {mean[1]:.1f} ({std[1]:.1f})"
                    + (f" n={n_selected}" if n_selected < n else "")
                )
            print(f"{selection:<30}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
