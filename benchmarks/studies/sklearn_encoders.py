"""Recall of a `KernelAligner` with scikit-learn transformers and with networks as encoders.

    python -m benchmarks.studies.sklearn_encoders [--cache FOLDER] [--seeds 4]

Images are described by HOG and captions by TF-IDF of character n-grams, both reduced to 200
components, or by EfficientNet-Lite0 and MiniLM. Prints recall@10 in % among 200 held-out images of
OpenMoji, image → caption / caption → image, means over random splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from skimage.feature import hog
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_ape import KernelAligner
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

from .._results import make_parser

N_TEST, N_COMPONENTS = 200, 200


def compute_hog(images: list[str]) -> np.ndarray:
    """Return the HOG descriptors of image files, in gray and reduced to 64 × 64 pixels."""
    gray = [Image.open(image).convert("RGB").convert("L").resize((64, 64)) for image in images]
    return np.array([hog(np.asarray(image), pixels_per_cell=(8, 8)) for image in gray])


def make_aligners(cache: Any) -> dict[str, KernelAligner]:
    """Return an aligner with each pair of encoders."""
    return {
        "HOG, TF-IDF": KernelAligner(
            image_encoder=make_pipeline(
                FunctionTransformer(compute_hog), PCA(N_COMPONENTS, random_state=0)
            ),
            text_encoder=make_pipeline(
                TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)),
                TruncatedSVD(N_COMPONENTS, random_state=0),
            ),
        ),
        "EfficientNet-Lite0, MiniLM": KernelAligner(
            image_encoder=TimmImageEncoder(cache=cache),
            text_encoder=TransformersTextEncoder(cache=cache),
        ),
    }


def main() -> None:
    parser = make_parser("studies.sklearn_encoders", __doc__)
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    parser.add_argument("--seeds", type=int, default=4, help="number of splits")
    options = parser.parse_args()
    data = load_openmoji()
    print("| encoders | recall@10 |\n|---|---|")
    for name, aligner in make_aligners(options.cache).items():
        recalls = []
        for seed in range(options.seeds):
            order = np.random.default_rng(seed).permutation(len(data.images))
            (X_test, y_test), (X, y) = (
                ([data.images[row] for row in rows], [data.captions[row] for row in rows])
                for rows in (order[:N_TEST], order[N_TEST:])
            )
            report = aligner.fit(X, y).retrieval_report(X_test, y_test, ks=(10,))
            recalls.append([100 * recall[10] for recall in report.values()])
        print(
            f"| {name} | " + " / ".join(f"{mean:.0f}" for mean in np.mean(recalls, axis=0)) + " |"
        )


if __name__ == "__main__":
    main()
