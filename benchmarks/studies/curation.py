"""Measure whether chosen pairs beat random ones of equal number.

    python benchmarks/curation.py --cache features-cache

Pairs are chosen from Open Clip Art, with the captions that its authors gave, for the names of a
label set that the images of another collection bear. An aligner is fitted on them and names
those images. Needs Debian's openclipart-png, openclipart-svg and tuxpaint-stamps-default.
The defaults of `select_relevant` were chosen on parts of OpenMoji, not on the stamps.
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
from sklearn_ape.encoders._contents import image_groups

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


def label_sets() -> Iterator[tuple[str, list[str], list[str], str]]:
    """Yield the name, images and captions of each set to be named, and templates for these."""
    stamps = datasets.load_tuxpaint_stamps()
    yield "Tux Paint stamps", stamps.images, stamps.captions, "none"  # they are sentences
    emoji = datasets.load_openmoji()
    rows = np.flatnonzero(np.isin(emoji.categories, CATEGORIES))
    images, captions = ([part[i] for i in rows] for part in (emoji.images, emoji.captions))
    yield "OpenMoji", images, captions, "simple"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="features-cache", help="folder of the feature cache")
    parser.add_argument("--aligner", choices=ALIGNERS, default=ALIGNERS[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()

    image_encoder = TimmImageEncoder(
        "efficientnet_lite0", crop="pad", cache=options.cache, verbose=1
    )
    text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=options.cache, verbose=1)
    pool = datasets.load_openclipart(replace_collection_titles=False)
    image, text = image_encoder.transform(pool.images), text_encoder.transform(pool.captions)

    start = time.perf_counter()
    groups = find_near_duplicates(image)
    grouped = time.perf_counter()
    quality = pair_quality(image, text, pool.captions, groups=groups, random_state=0)
    print(
        f"{len(image)} pairs; {groups.max() + 1} groups of near-duplicates in "
        f"{grouped - start:.1f} s; quality in {time.perf_counter() - grouped:.1f} s: "
        f"{np.mean(quality.score < 0.5):.0%} score below 0.5"
    )

    # Captions are passed as texts, so that equal ones count as one when recall is computed.
    aligner = getattr(aligners, options.aligner)(text_encoder=text_encoder)
    for name, images, captions, templates in label_sets():
        labels = list(dict.fromkeys(captions))
        test = image_encoder.transform(images), captions
        scoring = {"ks": (1,), "groups": image_groups(images)}

        choose_for = partial(select_relevant, pool.captions, labels)
        by_meaning = partial(choose_for, text_encoder=text_encoder, templates=templates)

        ways = {
            "random": None,
            "words alone": choose_for,
            "most similar": partial(by_meaning, balance=False),
            "balanced": by_meaning,
            "balanced, no near-duplicates": partial(by_meaning, groups=groups),
        }
        print(f"\n{name}: {len(images)} images, {len(labels)} labels, {options.aligner}")
        print("recall@1, image→name / name→image, mean of seeds (standard deviation), %")
        print(f"{'pairs chosen':<30}" + "".join(f"{n:>26}" for n in options.sizes))
        fitted = clone(aligner).fit(image, pool.captions)
        whole = [100 * way[1] for way in fitted.retrieval_report(*test, **scoring).values()]
        print(f"{f'all {len(image)}':<30}{f'{whole[0]:.1f} / {whole[1]:.1f}':>26}", flush=True)
        for way, choose in ways.items():
            cells = []
            for n in options.sizes:
                scores, fewest = [], n
                for seed in range(options.seeds):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)  # fewer pairs: shown below
                        if choose is None:
                            rows = np.random.default_rng(seed).permutation(len(image))[:n]
                        else:
                            rows = choose(n_pairs=n, random_state=seed).indices
                        texts = [pool.captions[row] for row in rows]
                        fitted = clone(aligner).fit(image[rows], texts)
                    fewest = min(fewest, len(rows))
                    report = fitted.retrieval_report(*test, **scoring)
                    scores.append([100 * recall[1] for recall in report.values()])
                mean, spread = np.mean(scores, axis=0), np.std(scores, axis=0)
                cells.append(
                    f"{mean[0]:.1f} ({spread[0]:.1f}) / {mean[1]:.1f} ({spread[1]:.1f})"
                    + (f" n={fewest}" if fewest < n else "")
                )
            print(f"{way:<30}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
