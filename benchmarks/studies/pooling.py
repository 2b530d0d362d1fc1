"""Compare how the last feature map is pooled, with the same aligner and pairs.

    python benchmarks/pooling.py [--cache FOLDER] [--seeds 3]

Trained on Open Clip Art with the pairs of the classification head, tested on images of other
kinds: recall@1 and @5 in %, mean of both directions, over seeds that draw which pairs of a caption
are kept.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.accuracy.data import MOST_OF_A_CAPTION
from sklearn_ape import KernelAligner
from sklearn_ape.datasets import load_openclipart, load_openmoji, load_tuxpaint_stamps
from sklearn_ape.encoders import (
    TimmImageEncoder,
    TransformersTextEncoder,
    classifier_head_pairs,
)
from sklearn_ape.encoders._contents import image_groups


def rows(captions: list[str], seed: int) -> list[int]:
    seen: dict[str, int] = {}
    kept = []
    for row in np.random.default_rng(seed).permutation(len(captions)).tolist():
        seen[captions[row]] = seen.get(captions[row], 0) + 1
        if seen[captions[row]] <= MOST_OF_A_CAPTION:
            kept.append(row)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="features-cache")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    clip_art = load_openclipart(replace_collection_titles=False)
    tests: dict[str, Any] = {"stamps": load_tuxpaint_stamps(), "emoji": load_openmoji()}
    text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=args.cache)
    print(f"{'pooling':<8} {'test':<7} {'recall@1':>14} {'recall@5':>14}")
    for pooling in ("auto", "gem"):
        encoder = TimmImageEncoder(
            "efficientnet_lite0", pooling=pooling, crop="pad", cache=args.cache, verbose=1
        )
        features = encoder.transform(clip_art.images)
        head = classifier_head_pairs(encoder)
        found: dict[str, list[list[float]]] = {name: [] for name in tests}
        for seed in range(args.seeds):
            kept = rows(clip_art.captions, seed)
            aligner = KernelAligner(text_encoder=text_encoder, head_pairs=head)
            aligner.fit(features[kept], [clip_art.captions[row] for row in kept])
            for name, data in tests.items():
                groups = image_groups(data.images)  # some images have several captions
                report = aligner.retrieval_report(
                    encoder.transform(data.images), data.captions, groups=groups
                )
                found[name].append([np.mean([way[k] for way in report.values()]) for k in (1, 5)])
        for name, recalls in found.items():
            means, spread = 100 * np.mean(recalls, axis=0), 100 * np.std(recalls, axis=0)
            cells = [f"{m:5.1f} ± {s:.1f}" for m, s in zip(means, spread, strict=True)]
            print(f"{pooling:<8} {name:<7} {cells[0]:>14} {cells[1]:>14}")


if __name__ == "__main__":
    main()
