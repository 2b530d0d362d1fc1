"""Speed, error and recall of the packaged encoders, by engine and precision.

Images are emoji, Tux Paint stamps and the photographs of scikit-learn and scikit-image, texts are
the captions of emoji and stamps. Each configuration runs in a separate process, configurations
alternate, and the median of the rounds is reported. The peer and the reference of the errors is
torch in float32. Recall@1 is that of a `KernelAligner` trained on the emoji and scored on the
stamps, the mean of both directions; the other side is encoded by the reference.
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

from .._process import run_for_numbers, run_module
from .._results import Comparison
from .encode import compute_errors, is_supported

N_EMOJI = 1200
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
# Unit of the rate, model name and parameters of an encoder. Images are scored with the texts of
# "all-MiniLM-L6-v2", and texts with the images of "efficientnet_lite0".
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
    """Measure images/s and texts/s, the largest and mean 1 - cosine to the reference, recall."""
    from sklearn_ape.encoders import list_encoders

    installed = {info.name for info in list_encoders() if info.installed}
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_emoji = _write_items(folder, 20 if quick else 1)
        for encoder, (_, model_name, _) in ENCODERS.items():
            if model_name in installed:
                rows += measure_encoder(encoder, folder, n_emoji, 1 if quick else N_ROUNDS)
    return rows


def measure_encoder(name: str, folder: Path, n_emoji: int, rounds: int) -> list[Comparison]:
    """Return the rate, the largest and mean error, and the recall of each configuration."""
    configurations = [key for key in CONFIGURATIONS if is_supported(" ".join(key))]
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in configurations}
    for _ in range(rounds):
        for engine, dtype in configurations:
            rates[engine, dtype] += run_for_numbers(__name__, name, engine, dtype, folder)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    reference = _load_features(name, *REFERENCE, folder)
    peer, unit = " ".join(REFERENCE), ENCODERS[name][0]
    rows = []
    for engine, dtype in configurations:
        label = f"{name}, {engine} {dtype}"
        rows.append(Comparison(label, medians[engine, dtype], unit, peer, medians[REFERENCE]))
        features = _load_features(name, engine, dtype, folder)
        errors = compute_errors(features, reference)
        rows.append(Comparison(f"{label}: largest 1 - cosine", float(errors.max()), ""))
        rows.append(Comparison(f"{label}: mean 1 - cosine", float(errors.mean()), ""))
        if unit == "images/s":
            texts = _load_features("all-MiniLM-L6-v2", *REFERENCE, folder)
            recall = _compute_recall(features, texts, n_emoji)
        else:
            images = _load_features("efficientnet_lite0", *REFERENCE, folder)
            recall = _compute_recall(images, features, n_emoji)
        rows.append(Comparison(f"{label}: recall@1", recall, "%"))
    return rows


def _load_features(name: str, engine: str, dtype: str, folder: Path) -> np.ndarray:
    path = folder / f"{name}-{engine}-{dtype}.npy"
    if not path.is_file():  # of the other side
        run_module(__name__, name, engine, dtype, folder)
    return np.load(path).astype(float)


def _compute_recall(images: np.ndarray, texts: np.ndarray, n_emoji: int) -> float:
    from sklearn_ape import KernelAligner

    aligner = KernelAligner(gamma="scale").fit(images[:n_emoji], texts[:n_emoji])
    stamps = slice(n_emoji, len(texts))  # photographs are last and have no texts
    report = aligner.retrieval_report(images[stamps], texts[stamps], ks=(1,))
    return float(100 * np.mean([recall[1] for recall in report.values()]))


def _write_items(folder: Path, divisor: int) -> int:
    """Write lists of image files and of texts, and return the number of emoji, which are first."""
    from sklearn.datasets import load_sample_images

    from sklearn_ape.datasets import load_openmoji, load_tuxpaint_stamps

    rng = np.random.default_rng(0)
    images: list[Any] = []
    texts: list[str] = []
    numbers = []
    for data, n_images in ((load_openmoji(), N_EMOJI), (load_tuxpaint_stamps(), None)):
        # Texts that occur twice would be encoded once. The text encoder ignores their case.
        captions = [caption.lower() for caption in data.captions]
        distinct = dict(zip(captions, data.images, strict=True))
        pairs = [pair for pair in distinct.items() if pair[0] not in texts]
        rows = rng.permutation(len(pairs))[:n_images]
        chosen = [pairs[row] for row in rows[: max(len(rows) // divisor, 1)]]
        texts += [text for text, _ in chosen]
        images += [image for _, image in chosen]
        numbers.append(len(chosen))
    images += load_sample_images().filenames
    spec = find_spec("skimage")
    if spec is not None and spec.origin is not None:
        files = (Path(spec.origin).parent / "data" / name for name in PHOTOGRAPHS)
        images += [path for path in files if path.is_file()]
    (folder / "images.txt").write_text("\n".join(map(str, images)), encoding="utf-8")
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    return numbers[0]


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
    np.save(folder / f"{name}-{engine}-{dtype}.npy", features)
    return rate


if __name__ == "__main__":
    print(_measure_rate(*sys.argv[1:4], Path(sys.argv[4])))
