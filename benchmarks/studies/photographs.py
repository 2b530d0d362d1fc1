"""Accuracy of the starter model on photographs, with everyday words as names of the classes.

    python -m benchmarks.studies.photographs FOLDER

FOLDER holds unpacked packages that contain photographs: `dpkg -x` of the Debian packages
budgie-backgrounds, cinnamon-common, gnome-control-center-data, libreoffice-common,
lomiri-wallpapers-16.04, mate-backgrounds, mate-screensaver-common and opencv-doc (`apt-get
download`), and the wheels of foolbox and ultralytics (`pip download --no-deps`). The words were
chosen by looking at the photographs. Prints the accuracy with 95 % confidence intervals, of the
model and without the names of ImageNet's classes that it adds to the embeddings of images, and the
wrong predictions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.aligners.starter import STARTER_FOLDER, make_starter_encoders, unpack_starter
from sklearn_ape.heads import TwoTower
from sklearn_ape.metrics import bootstrap_interval

from .._results import make_parser

# Ends of the paths of photographs, by folder and class.
PHOTOGRAPHS: dict[str, dict[str, str]] = {
    "foolbox/data/imagenet": {
        "dog": "_00_243.jpg _16_251.jpg",
        "chair": "_01_559.jpg",
        "strawberry": "_04_949.jpg",
        "house": "_05_853.jpg",
        "car": "_06_609.jpg _07_609.jpg",
        "drum": "_10_541.jpg",
        "shoe": "_11_630.jpg",
        "cannon": "_13_471.jpg",
        "bird": "_14_129.jpg _15_99.jpg _17_22.jpg",
        "insect": "_18_317.jpg _19_305.jpg",
    },
    "ultralytics/assets/": {"bus": "bus.jpg"},
    "gallery/backgrounds/": {
        "clouds": "cloud.jpg",
        "fence": "fence.jpg",
        "leaf": "maple-leaves.jpg",
        "stones": "stones.jpg",
    },
    "backgrounds/budgie/": {
        "bird": "canyon-wren.jpg perched-osprey.jpg",
        "desert": "extreme-desert-hike.jpg",
        "lake": "lake-sherburne.jpg",
        "otter": "oakland-zoo-otters.jpg",
        "sea": "ocean-waves.jpg",
        "ruin": "roman-colosseum.jpg",
        "planet": "saturnian-profile.jpg",
        "city": "singaporean-cityscape.jpg",
    },
    "backgrounds/cosmos/": {"planet": "jupiter.jpg", "galaxy": "galaxy-ngc3370.jpg whirlpool.jpg"},
    "backgrounds/mate/nature/": {
        "clouds": "Storm.jpg",
        "leaf": "RainDrops.jpg",
        "flower": "FreshFlower.jpg Garden.jpg YellowFlower.jpg",
        "grass": "GreenMeadow.jpg",
    },
    "share/backgrounds/": {
        "flower": "seeding_by_Clements_Engelhardt.jpg",
        "mountain": "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "sunset": "sunset_by_Aitzol_Berasategi.jpg",
        "paint brush": "Picture_1A_by_freespace.jpg",
    },
    "cinnamon/faces/": {
        "car": "0_cars.jpg",
        "chess": "0_chess.jpg",
        "cup of coffee": "0_coffee.jpg",
        "guitar": "0_guitar.jpg",
        "ball": "2_10.png 2_11.png 2_12.png 2_13.png",
        "lightning": "3_lightning.jpg",
        "mountain": "3_mountain.jpg",
        "clouds": "3_sky.jpg",
        "sunset": "3_sunset.jpg",
        "flower": "4_flower.jpg 4_sunflower.jpg",
        "leaf": "4_leaf.jpg",
        "fish": "5_fish.jpg",
        "cat": "5_kitten.jpg",
        "penguin": "5_penguin.jpg",
        "dog": "5_puppy.jpg",
        "astronaut": "6_astronaut.jpg",
        "butterfly": "6_butterfly.png",
        "snowflake": "6_flake.jpg",
        "grapes": "6_grapes.jpg",
    },
    "opencv-doc/examples/data/": {
        "dog": "chicky_512.png",
        "car": "licenseplate_motion.jpg",
        "butterfly": "butterfly.jpg",
        "apple": "apple.jpg",
        "monkey": "baboon.jpg",
        "building": "building.jpg",
        "fruit": "fruits.jpg",
        "plant": "aloeL.jpg",
        "football player": "messi5.jpg",
        "squirrel": "squirrel_cls.jpg",
    },
    "pixmaps/faces/": {"flower": "flower2.jpg", "tomato": "tomatoes.jpg", "tree": "tree.jpg"},
}


def load_photographs(folder: Path, skip_missing: bool = False) -> tuple[list[str], np.ndarray]:
    """Return the paths of the photographs, and the name of the class of each."""
    paths = [path.as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    images, names = [], []
    for start, files_by_name in PHOTOGRAPHS.items():
        for name, files in files_by_name.items():
            for file in files.split():
                matches = [path for path in paths if path.endswith(f"/{start}{file}")]
                if not matches:
                    if skip_missing:
                        continue
                    raise SystemExit(f"{str(folder)!r} has no file */{start}{file}.")
                images.append(matches[0])
                names.append(name)
    return images, np.array(names)


def print_accuracy(part: str, aligner: APEAligner, images: list[str], y: np.ndarray) -> None:
    cells = []
    for templates in ("simple", "none"):
        classifier = ZeroShotClassifier(np.unique(y), aligner=aligner, templates=templates)
        hits = classifier.predict(images) == y
        low, high = bootstrap_interval(hits)[1:]
        cells.append(f"{100 * hits.mean():.0f} ({100 * low:.0f} to {100 * high:.0f})")
    print(f"| {part} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = make_parser("studies.photographs", __doc__)
    parser.add_argument("folder", type=Path, help="folder of the unpacked packages")
    options = parser.parse_args()
    images, y = load_photographs(options.folder)
    aligner = unpack_starter(STARTER_FOLDER / "model.safetensors")
    aligner.image_encoder_, aligner.text_encoder_ = make_starter_encoders()
    print(f"{len(y)} photographs, {len(np.unique(y))} classes")
    print("| model | default templates | no template |\n|---|---|---|")
    print_accuracy("starter model", aligner, images, y)
    predictions = ZeroShotClassifier(np.unique(y), aligner=aligner).predict(images)
    heads = aligner.module_
    aligner.module_ = TwoTower(heads.image_head.base, heads.text_head)
    print_accuracy("without names of classes", aligner, images, y)
    wrong = [
        f"{truth} -> {prediction}"
        for truth, prediction in zip(y, predictions, strict=True)
        if truth != prediction
    ]
    print(f"Wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
