"""Processor time of `predict` and `predict_together` by number of images.

    python -m benchmarks.studies.whole_collections [--cache FOLDER] [--sizes 20000 100000]

The features are those of OpenMoji with noise, the classes are its subcategories, and the
embeddings have 640 components, as those of the starter model. From more than 20,000 images, faiss
is used if it is installed (the ``index`` extra); without it, all pairs of images are compared.
"""

from __future__ import annotations

import time

import numpy as np

from sklearn_ape import KernelAligner, ZeroShotClassifier
from sklearn_ape.aligners.starter import make_starter_encoders
from sklearn_ape.datasets import get_data_home, load_openmoji

from .._results import make_parser

N_COMPONENTS = 640
NOISE = 0.5  # relative to the standard deviation of a feature


def main() -> None:
    parser = make_parser("studies.whole_collections", __doc__)
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000])
    options = parser.parse_args()
    emoji = load_openmoji()
    image_encoder, text_encoder = make_starter_encoders(cache=options.cache, engine="torch")
    features = image_encoder.transform(emoji.images)
    aligner = KernelAligner(text_encoder=text_encoder, n_components=N_COMPONENTS)
    aligner.fit(features, emoji.captions)
    classifier = ZeroShotClassifier(sorted(set(emoji.subcategories)), aligner=aligner)
    classifier.predict(features[:1])  # embeds the names of the classes
    scale = NOISE * features.std(axis=0)
    rng = np.random.default_rng(0)
    print("| images | classes | predict | predict_together |\n|---|---|---|---|")
    for size in options.sizes:
        X = features[rng.integers(0, len(features), size)]
        X += scale * rng.standard_normal(X.shape, dtype=np.float32)
        cells = []
        for predict in (classifier.predict, classifier.predict_together):
            start = time.process_time()
            predict(X)
            cells.append(f"{time.process_time() - start:.1f} s")
        print(f"| {size:,} | {len(classifier.classes_)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
