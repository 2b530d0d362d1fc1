"""Draw docs/images/photographs.png: photographs named and found by the starter model.

    python docs/make_photographs.py

The photographs come with scikit-learn (by danielbuechele and vultilion, CC BY 2.0, see
`sklearn.datasets.load_sample_images`) and scikit-image (public domain or CC0, see `skimage.data`).
They were not selected by the result: one of the names is wrong.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from skimage import data
from sklearn.datasets import load_sample_images

from sklearn_ape import CrossModalRetriever, ZeroShotClassifier

NAMES = (
    *("a temple", "a flower", "a cat", "a cup of coffee", "a rocket", "an astronaut"),
    *("the moon", "coins", "stars", "an eye"),
)
QUERIES = ("an animal", "a hot drink", "an old building", "a rocket launch", "money")


def load_photographs() -> list[np.ndarray]:
    """Return ten photographs in the order of `NAMES`."""
    photographs = [
        *load_sample_images().images,
        *(data.chelsea(), data.coffee(), data.rocket(), data.astronaut(), data.moon()),
        *(data.coins(), data.hubble_deep_field(), data.retina()),
    ]
    return [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in photographs]


def main() -> None:
    """Name the photographs, search them, and draw the figure."""
    photographs = load_photographs()
    classifier = ZeroShotClassifier(NAMES)
    labels, probabilities = classifier.predict_top_k(photographs, k=1)
    found = CrossModalRetriever().fit(photographs).search(QUERIES, k=1).indices[:, 0]
    figure = plt.figure(figsize=(10, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.9, 1])
    top.suptitle("Named: the most probable of ten names", weight="bold", fontsize=12)
    bottom.suptitle("Found: the first result for a text", weight="bold", fontsize=12)
    titles = [
        f"{label}, {probability:.0%}"
        for label, probability in zip(labels[:, 0], probabilities[:, 0], strict=True)
    ]
    _draw(top.subplots(2, 5).ravel(), photographs, titles)
    titles = [f"“{query}”" for query in QUERIES]
    _draw(bottom.subplots(1, 5), [photographs[row] for row in found], titles)
    figure.savefig(Path(__file__).parent / "images" / "photographs.png", dpi=90)


def _draw(axes: Iterable[Axes], images: list[np.ndarray], titles: list[str]) -> None:
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(image, aspect="auto")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()


if __name__ == "__main__":
    main()
