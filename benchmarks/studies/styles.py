"""Training with one style of emoji, with two styles, and with broad words.

    python -m benchmarks.studies.styles [--cache FOLDER] [--splits 4]

Aligners are trained like the starter model, on Open Clip Art, emoji and the classification head,
but each split holds out top folders and a quarter of the classes. Prints the mean reciprocal rank
in %, mean of both directions, on held-out folders with full captions and with titles, and on
held-out classes (prototypes of their weight vectors and their names).
"""

from __future__ import annotations

import argparse

import numpy as np

from sklearn_ape import KernelAligner
from sklearn_ape.aligners.pairs import compute_prototypes
from sklearn_ape.aligners.starter import make_starter_encoders
from sklearn_ape.datasets import get_data_home, load_noto_emoji, load_openclipart
from sklearn_ape.encoders import HeadPairs, classifier_head_pairs
from sklearn_ape.metrics import retrieval_ranks

from ..build_starter import add_broad_words, load_training_pairs

N_COMPONENTS = 640
MAX_TEST_IMAGES = 1000


def compute_mean_reciprocal_rank(aligner, image: np.ndarray, texts: list[str]) -> float:
    """Return the mean reciprocal rank of images and texts in %, mean of both directions."""
    names = list(dict.fromkeys(texts))
    pairs = np.column_stack([np.arange(len(texts)), [names.index(text) for text in texts]])
    image_embeddings, text_embeddings = aligner.transform(image), aligner.transform_text(names)
    ranks = (
        retrieval_ranks(image_embeddings, text_embeddings, pairs),
        retrieval_ranks(text_embeddings, image_embeddings, pairs[:, ::-1]),
    )
    return 100 * float(np.mean([np.mean(1 / (1 + direction)) for direction in ranks]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    parser.add_argument("--splits", type=int, default=4, help="number of random splits")
    options = parser.parse_args()
    image_encoder, text_encoder = make_starter_encoders(
        cache=options.cache, engine="torch", verbose=1
    )
    images, captions = load_training_pairs()
    broad_captions = add_broad_words(images, captions)
    features = image_encoder.transform(images)
    clip_art = load_openclipart()
    row_of_path = {path: row for row, path in enumerate(clip_art.images)}
    row = np.array([row_of_path.get(path, -1) for path in images])
    is_clip_art, is_second_style = row >= 0, np.isin(images, load_noto_emoji().images)
    folder = np.where(is_clip_art, clip_art.categories[row], "")
    group = np.where(is_clip_art, clip_art.groups[row], -1)
    titles = [caption.partition(", ")[0] or caption for caption in captions]
    head = classifier_head_pairs(image_encoder)
    scores: dict[str, list[list[float]]] = {
        "one style": [],
        "two styles": [],
        "two styles, broad words": [],
    }
    for split in range(options.splits):
        rng = np.random.default_rng(split)
        names = rng.permutation(np.unique(folder[is_clip_art]))
        cumulative = np.cumsum([(folder == name).sum() for name in names]) / is_clip_art.sum()
        held_out_rows = np.isin(folder, names[cumulative <= 0.3]) & is_clip_art
        train_texts = {captions[i] for i in np.flatnonzero(~held_out_rows)}
        train_texts |= {titles[i] for i in np.flatnonzero(~held_out_rows)}
        test = [
            i
            for i in rng.permutation(
                np.flatnonzero(
                    held_out_rows & ~np.isin(group, group[is_clip_art & ~held_out_rows])
                )
            )
            if captions[i] not in train_texts and titles[i] not in train_texts
        ][:MAX_TEST_IMAGES]
        classes = rng.permutation(len(head.weights))
        held_out_classes, train_classes = np.split(classes, [len(classes) // 4])
        for kind, rows, texts in (
            ("one style", ~held_out_rows & ~is_second_style, captions),
            ("two styles", ~held_out_rows, captions),
            ("two styles, broad words", ~held_out_rows, broad_captions),
        ):
            aligner = KernelAligner(
                text_encoder=text_encoder,
                head_pairs=HeadPairs(
                    head.weights[train_classes], [head.texts[i] for i in train_classes]
                ),
                n_components=N_COMPONENTS,
            ).fit(features[rows], [texts[i] for i in np.flatnonzero(rows)])
            class_features = compute_prototypes(features[rows], head.weights)[held_out_classes]
            scores[kind].append(
                [
                    compute_mean_reciprocal_rank(
                        aligner, features[test], [captions[i] for i in test]
                    ),
                    compute_mean_reciprocal_rank(
                        aligner, features[test], [titles[i] for i in test]
                    ),
                    compute_mean_reciprocal_rank(
                        aligner, class_features, [head.texts[i][0] for i in held_out_classes]
                    ),
                ]
            )
            print(split, kind, np.round(scores[kind][-1], 1), flush=True)
    print("\n| emoji | held-out folders | held-out folders, titles | held-out classes |")
    print("|---|---|---|---|")
    for kind, rows in scores.items():
        print(f"| {kind} | " + " | ".join(f"{value:.1f}" for value in np.mean(rows, 0)) + " |")


if __name__ == "__main__":
    main()
