"""Speed and error of the packaged encoders, by engine and precision.

Images are emoji and the photographs of scikit-learn and scikit-image, texts are captions of emoji.
Each configuration runs in a separate process, configurations alternate, and the median of the
rounds is reported. The peer and the reference of the errors is torch in float32.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .._process import run_for_numbers
from .._results import Comparison

N_EMOJI, N_TEXTS = 600, 3000
N_ROUNDS = 3
N_WARM_UP = 40
REFERENCE = ("torch", "float32")
CONFIGURATIONS = (
    REFERENCE,
    ("torch", "bfloat16"),
    ("onnx", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
)
# Unit of the rate, model name and parameters of an encoder.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "efficientnet_lite0": ("images/s", "efficientnet_lite0", {}),
    "efficientnet_lite0, gem": ("images/s", "efficientnet_lite0", {"pooling": "gem"}),
    "efficientnet_lite2, gem": ("images/s", "efficientnet_lite2", {"pooling": "gem"}),
    "all-MiniLM-L6-v2": ("texts/s", "all-MiniLM-L6-v2", {}),
}
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip


def measure(quick: bool) -> list[Comparison]:
    """Measure images/s and texts/s, and the largest and mean 1 - cosine to the reference."""
    from sklearn_ape.encoders import list_encoders

    installed = {info.name for info in list_encoders() if info.installed}
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        _write_items(Path(folder), 20 if quick else 1)
        for name, (_, model_name, _) in ENCODERS.items():
            if model_name in installed:
                rows += measure_encoder(name, Path(folder), 1 if quick else N_ROUNDS)
    return rows


def measure_encoder(name: str, folder: Path, rounds: int) -> list[Comparison]:
    """Return the rate, the largest and the mean error of each configuration of an encoder."""
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in CONFIGURATIONS}
    for _ in range(rounds):
        for engine, dtype in CONFIGURATIONS:
            rates[engine, dtype] += run_for_numbers(__name__, name, engine, dtype, folder)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    reference = np.load(folder / f"{'-'.join(REFERENCE)}.npy").astype(float)
    peer, unit = " ".join(REFERENCE), ENCODERS[name][0]
    rows = []
    for engine, dtype in CONFIGURATIONS:
        label = f"{name}, {engine} {dtype}"
        rows.append(Comparison(label, medians[engine, dtype], unit, peer, medians[REFERENCE]))
        features = np.load(folder / f"{engine}-{dtype}.npy")
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
        errors = 1 - (features * reference).sum(axis=1) / norms
        rows.append(Comparison(f"{label}: largest 1 - cosine", float(errors.max()), ""))
        rows.append(Comparison(f"{label}: mean 1 - cosine", float(errors.mean()), ""))
    return rows


def _write_items(folder: Path, divisor: int) -> None:
    """Write lists of image files and of texts."""
    from sklearn.datasets import load_sample_images

    from sklearn_ape.datasets import load_openmoji

    data = load_openmoji()
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(data.images))[: N_EMOJI // divisor]
    images = [data.images[row] for row in rows] + list(load_sample_images().filenames)
    spec = find_spec("skimage")
    if spec is not None and spec.origin is not None:
        files = (Path(spec.origin).parent / "data" / name for name in PHOTOGRAPHS)
        images += [path for path in files if path.is_file()]
    captions = [
        caption for row in data.captions for caption in ([row] if isinstance(row, str) else row)
    ]
    texts = list(dict.fromkeys(" ".join(caption.split()) for caption in captions))
    texts = [texts[row] for row in rng.permutation(len(texts))[: N_TEXTS // divisor]]
    (folder / "images.txt").write_text("\n".join(map(str, images)), encoding="utf-8")
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")


def _measure_rate(name: str, engine: str, dtype: str, folder: Path) -> float:
    """Return the items per second after a warm-up, and save the features."""
    from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

    os.environ["SKLEARN_APE_DATA"] = str(folder / "data")  # exported networks
    unit, model_name, parameters = ENCODERS[name]
    is_image = unit == "images/s"
    file = folder / ("images.txt" if is_image else "texts.txt")
    items = file.read_text(encoding="utf-8").splitlines()
    encoder_class = TimmImageEncoder if is_image else TransformersTextEncoder
    encoder = encoder_class(model_name, engine=engine, dtype=dtype, cache=None, **parameters)
    encoder.transform(items[:N_WARM_UP])
    start = time.perf_counter()
    features = encoder.transform(items)
    rate = len(items) / (time.perf_counter() - start)
    np.save(folder / f"{engine}-{dtype}.npy", features)
    return rate


if __name__ == "__main__":
    print(_measure_rate(*sys.argv[1:4], Path(sys.argv[4])))
