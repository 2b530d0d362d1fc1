"""Recall of the starter model, and of each of the two parts that it blends.

    python -m benchmarks.studies.starter [--cache FOLDER]

The images are the Tux Paint stamps and OpenMoji, which the starter model was not trained on.
Prints recall@1 in % with its 95 % confidence interval, and recall@5, among all captions of a
collection.
"""

from __future__ import annotations

import argparse

from sklearn_ape.aligners.starter import STARTER_FOLDER, make_starter_encoders, unpack_starter
from sklearn_ape.datasets import get_data_home, load_openmoji, load_tuxpaint_stamps

from ..build_starter import HEAD_WEIGHT, measure_starter

# Weights of the trained head in the blend.
PARTS = (("closed form alone", 0), ("trained head alone", 1), ("starter model", HEAD_WEIGHT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    options = parser.parse_args()
    aligner = unpack_starter(STARTER_FOLDER / "model.safetensors")
    aligner.image_encoder_, aligner.text_encoder_ = make_starter_encoders(
        cache=options.cache, engine="torch"
    )
    print("| images | direction | text head | recall@1 | recall@5 |\n|---|---|---|---|---|")
    for name, data in (("stamps", load_tuxpaint_stamps()), ("OpenMoji", load_openmoji())):
        for part, weight in PARTS:
            aligner.module_.text_head.weight.fill_(weight)
            for direction, cells in measure_starter(aligner, data.images, data.captions).items():
                print(f"| {name} | {direction} | {part} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
