"""How often the peak of a similarity map is in the quadrant into which an object was pasted.

    python -m benchmarks.studies.similarity_maps FOLDER [--cases CASE ...]

FOLDER holds unpacked packages that contain photographs, see `benchmarks.studies.photographs`;
packages that are missing are skipped. The photographs of scikit-learn and scikit-image are added.
An object is pasted into a quadrant of another image, and the map of the object's name is computed
by the starter model. Prints the share of the peaks in this quadrant or on its border, with 95 %
confidence intervals, and the same if the network sees the images in their usual size. Tux Paint
stamps were not used to choose how maps are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage.data
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from sklearn_ape import load_starter
from sklearn_ape.datasets import load_openclipart, load_openmoji, load_tuxpaint_stamps
from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.inspection import compute_similarity_maps
from sklearn_ape.metrics import bootstrap_interval

from .._results import make_parser
from .photographs import load_photographs

# Kinds of the object and of the background.
CASES = {
    "emoji on photographs": ("emoji", "photographs"),
    "clip art on photographs": ("clip art", "photographs"),
    "stamps on photographs": ("stamps", "photographs"),
    "photographs on photographs": ("photographs", "photographs"),
    "emoji on emoji": ("emoji", "emoji"),
    "stamps on stamps": ("stamps", "stamps"),
    "stamps on clip art": ("stamps", "clip art"),
}
N_COLLAGES = 400
SIDE = 448  # pixels of a collage

# Groups of images that show things.
EMOJI_GROUPS = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")
CLIP_ART_GROUPS = (
    *("animals", "food", "transportation", "plants", "tools", "buildings", "office"),
    *("electronics", "recreation"),
)


class Item(NamedTuple):
    """An image, its name, and the group of similar images."""

    image: Any
    name: str
    group: str


class UsualSizeEncoder(TimmImageEncoder):
    """Image encoder that does not enlarge images."""

    def transform_grid(
        self, X: Sequence[Any], *, enlarge: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of the usual grid, and the pixels."""
        return super().transform_grid(X)


def load_items(kind: str, folder: Path) -> list[Item]:
    if kind == "photographs":
        images, names = load_photographs(folder, skip_missing=True)
        items = [Item(path, name, name) for path, name in zip(images, names, strict=True)]
        photographs = [
            *(getattr(skimage.data, name)() for name in ("chelsea", "coffee", "astronaut")),
            *(skimage.data.rocket(), *load_sample_images().images),
        ]
        names = ["cat", "cup of coffee", "astronaut", "rocket", "temple", "flower"]
        return items + [Item(p, n, n) for p, n in zip(photographs, names, strict=True)]
    if kind == "emoji":
        data = load_openmoji()
        chosen = np.isin(data.categories, EMOJI_GROUPS)
        names, groups = data.captions, data.subcategories
    elif kind == "clip art":
        data = load_openclipart()
        chosen = np.isin(data.categories, CLIP_ART_GROUPS) & (np.array(data.titles) != "")
        names, groups = data.titles, data.categories
    else:
        data = load_tuxpaint_stamps()
        chosen = data.categories != "symbols"  # letters and digits
        names, groups = data.captions, data.categories
    return [Item(data.images[row], names[row], groups[row]) for row in np.flatnonzero(chosen)]


def read_image(image: Any, side: int, crop: bool) -> Image.Image:
    """Return an image that fits into a square or, with `crop`, fills it."""
    opened = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)
    fit = ImageOps.fit if crop else ImageOps.contain
    return fit(opened.convert("RGBA"), (side, side))


def paste(canvas: Image.Image, image: Image.Image, top: int, left: int, side: int) -> None:
    """Paste an image into the middle of a square."""
    position = (left + (side - image.width) // 2, top + (side - image.height) // 2)
    canvas.paste(image, position, image)


def measure(objects: list[Item], backgrounds: list[Item], aligners: Sequence[Any]) -> np.ndarray:
    """Return whether the peak is in the right quadrant, by aligner and collage."""
    rng = np.random.default_rng(0)
    is_photograph = backgrounds[0].name == backgrounds[0].group
    hits: list[list[bool]] = []
    while len(hits) < N_COLLAGES:
        item, background = rng.choice(len(objects)), rng.choice(len(backgrounds))
        item, background = objects[item], backgrounds[background]
        if item.group == background.group or background.name.split()[-1] in item.name.lower():
            continue
        quadrant = rng.integers(2, size=2)
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        paste(canvas, read_image(background.image, SIDE, is_photograph), 0, 0, SIDE)
        half = SIDE // 2
        top, left = (half * quadrant).tolist()
        paste(canvas, read_image(item.image, half, False), top, left, half)
        hits.append([])
        for aligner in aligners:
            values = compute_similarity_maps(aligner, [canvas], [item.name])[0][0, 0]
            peak = np.array(np.unravel_index(values.argmax(), values.shape))
            distance = (peak + 0.5) / values.shape - (0.25 + 0.5 * quadrant)
            hits[-1].append(bool((np.abs(distance) < 0.25 + 1e-9).all()))
    return np.array(hits).T


def main() -> None:
    parser = make_parser("studies.similarity_maps", __doc__)
    parser.add_argument("folder", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    usual = deepcopy(load_starter())
    usual.image_encoder_ = UsualSizeEncoder(**usual.image_encoder_.get_params())
    print("| object and image | peak in the quadrant | usual size |\n|---|---|---|")
    for case in options.cases:
        objects, backgrounds = (load_items(kind, options.folder) for kind in CASES[case])
        cells = []
        for hits in measure(objects, backgrounds, (load_starter(), usual)):
            low, high = bootstrap_interval(hits)[1:]
            cells.append(f"{100 * hits.mean():.1f} ({100 * low:.0f} to {100 * high:.0f})")
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
