"""Compare training with one style of emoji, with two, and with broad words, on other images.

    python benchmarks/styles.py [--cache FOLDER] [--splits 4]

Trained as the starter model is, on Open Clip Art, emoji and the classification head, but for the
top folders and the quarter of the classes that are held out in each split. Mean reciprocal rank in
%, mean of both directions: held-out folders with full captions and with titles, and held-out
classes (the prototypes of their weight vectors against their names).
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.build_starter import captions_with_broad_words, training_pairs
from sklearn_ape import KernelAligner
from sklearn_ape._starter import encoders
from sklearn_ape.aligners._head_pairs import prototypes
from sklearn_ape.datasets import get_data_home, load_noto_emoji, load_openclipart
from sklearn_ape.encoders import HeadPairs, classifier_head_pairs
from sklearn_ape.metrics import retrieval_ranks

N_COMPONENTS = 640
MOST_TESTED = 1000


def reciprocal_rank(aligner, image: np.ndarray, texts: list[str]) -> float:
    """Return the mean reciprocal rank of images and their texts, in %, of both directions."""
    names = list(dict.fromkeys(texts))
    pairs = np.column_stack([np.arange(len(texts)), [names.index(text) for text in texts]])
    embedded, named = aligner.transform(image), aligner.transform_text(names)
    ranks = (
        retrieval_ranks(embedded, named, pairs),
        retrieval_ranks(named, embedded, pairs[:, ::-1]),
    )
    return 100 * float(np.mean([np.mean(1 / (1 + of_one_way)) for of_one_way in ranks]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default=get_data_home() / "features")
    parser.add_argument("--splits", type=int, default=4)
    args = parser.parse_args()
    image_encoder, text_encoder = encoders(cache=args.cache, engine="torch", verbose=1)
    images, captions = training_pairs()
    taught = captions_with_broad_words(images, captions)
    features = image_encoder.transform(images)
    clip_art = load_openclipart()
    at = {path: row for row, path in enumerate(clip_art.images)}
    row = np.array([at.get(path, -1) for path in images])
    drawn, second = row >= 0, np.isin(images, load_noto_emoji().images)
    folder = np.where(drawn, clip_art.categories[row], "")
    group = np.where(drawn, clip_art.groups[row], -1)
    titles = [caption.partition(", ")[0] or caption for caption in captions]
    head = classifier_head_pairs(image_encoder)
    found: dict[str, list[list[float]]] = {
        "one style": [],
        "two styles": [],
        "two styles, broad words": [],
    }
    for split in range(args.splits):
        rng = np.random.default_rng(split)
        names = rng.permutation(np.unique(folder[drawn]))
        share = np.cumsum([(folder == name).sum() for name in names]) / drawn.sum()
        out = np.isin(folder, names[share <= 0.3]) & drawn
        known = {captions[i] for i in np.flatnonzero(~out)}
        known |= {titles[i] for i in np.flatnonzero(~out)}
        test = [
            i
            for i in rng.permutation(np.flatnonzero(out & ~np.isin(group, group[drawn & ~out])))
            if captions[i] not in known and titles[i] not in known
        ][:MOST_TESTED]
        classes = rng.permutation(len(head.weights))
        held_out, kept = np.split(classes, [len(classes) // 4])
        for kind, rows, texts in (
            ("one style", ~out & ~second, captions),
            ("two styles", ~out, captions),
            ("two styles, broad words", ~out, taught),
        ):
            aligner = KernelAligner(
                text_encoder=text_encoder,
                head_pairs=HeadPairs(head.weights[kept], [head.texts[i] for i in kept]),
                n_components=N_COMPONENTS,
            ).fit(features[rows], [texts[i] for i in np.flatnonzero(rows)])
            like = prototypes(features[rows], head.weights)[held_out]
            found[kind].append(
                [
                    reciprocal_rank(aligner, features[test], [captions[i] for i in test]),
                    reciprocal_rank(aligner, features[test], [titles[i] for i in test]),
                    reciprocal_rank(aligner, like, [head.texts[i][0] for i in held_out]),
                ]
            )
            print(split, kind, np.round(found[kind][-1], 1), flush=True)
    print("\n| emoji | held-out folders | the same with titles | held-out classes |")
    print("|---|---|---|---|")
    for kind, rows in found.items():
        print(f"| {kind} | " + " | ".join(f"{value:.1f}" for value in np.mean(rows, 0)) + " |")


if __name__ == "__main__":
    main()
