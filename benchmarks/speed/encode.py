"""Encoding of files, compared with a plain torch loop, embetter and sentence-transformers.

Each contender runs in a separate process, since sklearn_ape changes how its process allocates
memory. Contenders alternate and the median of the rounds is reported, because the speed of a
shared machine varies between minutes. All use the same weights and read the same files.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._process import run_for_numbers
from .._results import Comparison

N_IMAGES, N_LARGE, N_TEXTS = 480, 32, 3000
N_COMPARED = 100
N_ROUNDS = 5
APE_F32, APE_BF16, APE_ONNX = "openvino float32", "openvino bf16", "onnx"
APE_TORCH, APE_TORCH_BF16 = "torch", "torch bf16"


def measure(quick: bool) -> list[Comparison]:
    """Measure images/s and texts/s, and the difference of the features from the reference."""
    rounds = 1 if quick else N_ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        sets = write_sets(Path(folder), 8 if quick else 1)
        rows: list[Comparison] = []
        for name in ("images", "large photographs"):
            rows += _measure_images(name, sets[name], Path(folder), rounds)
        rows += _measure_texts(sets["texts"], Path(folder), rounds)
    return rows


def _measure_images(kind: str, paths: Path, folder: Path, rounds: int) -> list[Comparison]:
    is_small = kind == "images"
    targets = (
        dict.fromkeys((APE_F32, APE_ONNX), "at least 7")
        | {APE_BF16: "at least 14", APE_TORCH: "at least 5"}
        if is_small
        else {}
    )
    engines = (APE_F32, APE_ONNX, APE_BF16, APE_TORCH, APE_TORCH_BF16)[: 5 if is_small else 1]
    engines = tuple(engine for engine in engines if is_supported(engine))
    rates = _measure_rates(("plain", *engines, "embetter"), paths, folder, rounds)
    rows = []
    peer = "plain torch loop"
    for engine in engines:
        name = f"encode {kind}, {engine}"
        target = targets.get(engine, "")
        rows.append(Comparison(name, rates[engine], "images/s", peer, rates["plain"], target))
        rows.append(_compare_features(name, folder, engine, "reference"))
    name = f"encode {kind}, {APE_F32}"
    rows.append(Comparison(name, rates[APE_F32], "images/s", "embetter", rates["embetter"]))
    return rows


def _measure_texts(texts: Path, folder: Path, rounds: int) -> list[Comparison]:
    peer = "sentence-transformers"
    targets = {
        "texts openvino": "at least 1.5",
        "texts openvino bf16": "at least 3.5",
        "texts torch": "",
    }
    targets = {engine: target for engine, target in targets.items() if is_supported(engine)}
    rates = _measure_rates((peer, *targets), texts, folder, rounds)
    rows = []
    for engine, target in targets.items():
        name = f"encode {engine}"
        rows.append(Comparison(name, rates[engine], "texts/s", peer, rates[peer], target))
        rows.append(_compare_features(name, folder, engine, peer))
    return rows


def is_supported(contender: str) -> bool:
    """Return False for a contender in bfloat16 if OpenVINO lacks it on this processor."""
    from sklearn_ape.encoders import TransformersTextEncoder

    if not ("openvino" in contender and contender.endswith(("bf16", "bfloat16"))):
        return True
    try:
        TransformersTextEncoder(engine="openvino", dtype="bfloat16").fit(["a text"])
    except ValueError:
        return False
    return True


def _compare_features(name: str, folder: Path, contender: str, reference: str) -> Comparison:
    a, b = (np.load(folder / f"{file}.npy") for file in (contender, reference))
    errors = compute_errors(a[: len(b)], b[: len(a)])
    return Comparison(f"{name}: largest 1 - cosine", float(errors.max()), "")


def compute_errors(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of each row of features and the same row of the reference."""
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
    return 1 - (features * reference).sum(axis=1) / norms


def _measure_rates(
    contenders: tuple[str, ...], items: Path, folder: Path, rounds: int
) -> dict[str, float]:
    """Return the items per second of each contender, the median of alternating rounds."""
    rates: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            rates[contender] += run_for_numbers(__name__, contender, items, folder)
    return {contender: statistics.median(values) for contender, values in rates.items()}


def write_sets(folder: Path, divisor: int) -> dict[str, Path]:
    """Write lists of image files and texts: PNG and JPEG, and photographs of 12 megapixels."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from sklearn_ape.datasets import load_openclipart

    data = load_openclipart()
    rng = np.random.default_rng(0)
    drawings = [
        data.images[row] for row in rng.permutation(len(data.images))[: N_IMAGES // divisor]
    ]
    files = []
    for number, path in enumerate(drawings):
        if number % 2:
            with Image.open(path) as image:
                rgba = image.convert("RGBA")
            background = Image.new("RGB", rgba.size, "white")
            background.paste(rgba, mask=rgba)
            path = folder / f"{number}.jpg"
            background.save(path, quality=90)
        files.append(str(path))
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    large = []
    for number in range(N_LARGE // divisor):
        path = folder / f"large-{number}.jpg"
        rotated = photographs[number % 2].rotate(number, expand=False)
        rotated.resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
        large.append(str(path))
    texts = [text for row in data.captions for text in ([row] if isinstance(row, str) else row)]
    # Single titles of a few words, and two or four titles joined, for texts of mixed lengths.
    lengths = (1, 1, 2, 4)
    mixed = [" ".join(texts[n : n + lengths[n % 4]]) for n in range(len(texts) - 4)]
    mixed = list(dict.fromkeys(mixed))[: N_TEXTS // divisor]
    sets = {"images": files, "large photographs": large, "texts": mixed}
    for name, items in sets.items():
        (folder / f"{name}.txt").write_text("\n".join(" ".join(i.split()) for i in items))
    return {name: folder / f"{name}.txt" for name in sets}


def _measure_rate(contender: str, items: list[str], folder: Path) -> float:
    """Return the items per second after a warm-up, and save the features."""
    os.environ["SKLEARN_APE_DATA"] = str(folder / "data")  # exported networks
    encode = CONTENDERS[contender](folder)
    encode(items[:40])
    start = time.perf_counter()
    features = encode(items)
    rate = len(items) / (time.perf_counter() - start)
    np.save(folder / f"{contender}.npy", features)
    return rate


def _make_image_encoder(engine: str, dtype: str = "float32") -> Callable:
    def start(folder: Path) -> Callable:
        from sklearn_ape.encoders import TimmImageEncoder

        encoder = TimmImageEncoder(engine=engine, dtype=dtype, cache=None)
        return encoder.transform

    return start


def _make_text_encoder(engine: str, dtype: str = "float32") -> Callable:
    def start(folder: Path) -> Callable:
        from sklearn_ape.encoders import TransformersTextEncoder

        encoder = TransformersTextEncoder(engine=engine, dtype=dtype, cache=None)
        return encoder.transform

    return start


def load_timm_model(pretrained_name: str = "efficientnet_lite0") -> tuple[Any, Any]:
    """Return a network of timm with the packaged weights, and its transform."""
    import timm
    import torch

    from sklearn_ape.encoders.weights import PACKAGED, find_packaged_file

    model = timm.create_model(PACKAGED[pretrained_name].architecture).eval()
    weights = torch.load(find_packaged_file(pretrained_name), map_location="cpu")
    # Not from an encoder, whose convolutions include the batch normalizations. The tensors have
    # other names, but the same order.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    config = timm.data.resolve_model_data_config(model)
    return model, timm.data.create_transform(**config)


def _make_torch_loop(folder: Path) -> Callable:
    import torch
    from PIL import Image

    model, transform = load_timm_model()

    def encode(paths: list[str]) -> np.ndarray:
        batches = []
        with torch.inference_mode():
            for start in range(0, len(paths), 32):
                images = [Image.open(path).convert("RGB") for path in paths[start : start + 32]]
                batches.append(model(torch.stack([transform(image) for image in images])))
        return torch.cat(batches).numpy()

    _write_reference(model, transform, folder)
    return encode


def _write_reference(model: Any, transform: Any, folder: Path) -> None:
    """Write the features of timm for images that are upright and on a white background."""
    import torch

    from sklearn_ape.encoders.images import read_image

    paths = Path(sys.argv[2]).read_text().splitlines()[:N_COMPARED]
    with torch.inference_mode():
        features = [model(transform(read_image(path))[None]) for path in paths]
    np.save(folder / "reference.npy", torch.cat(features).numpy())


def _make_embetter(folder: Path) -> Callable:
    import timm
    from embetter.vision import ImageLoader, TimmEncoder

    model, _ = load_timm_model()
    create = timm.create_model
    timm.create_model = lambda *args, **kwargs: model  # do not download the weights
    encoder = TimmEncoder("efficientnet_lite0")
    timm.create_model = create
    return lambda paths: encoder.transform(ImageLoader().transform(paths))


def load_sentence_transformer(folder: Path, device: str = "cpu") -> Callable:
    """Return a function that encodes texts by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    from sklearn_ape.encoders.weights import find_source

    model = SentenceTransformer(find_source("all-MiniLM-L6-v2"), device=device)
    return lambda texts: model.encode(texts, show_progress_bar=False)


CONTENDERS: dict[str, Callable[[Path], Callable]] = {
    "plain": _make_torch_loop,
    "embetter": _make_embetter,
    APE_F32: _make_image_encoder("openvino"),
    APE_BF16: _make_image_encoder("openvino", "bfloat16"),
    APE_ONNX: _make_image_encoder("onnx"),
    APE_TORCH: _make_image_encoder("torch"),
    APE_TORCH_BF16: _make_image_encoder("torch", "bfloat16"),
    "texts openvino": _make_text_encoder("openvino"),
    "texts openvino bf16": _make_text_encoder("openvino", "bfloat16"),
    "texts torch": _make_text_encoder("torch"),
    "sentence-transformers": load_sentence_transformer,
}


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text().splitlines()
    print(_measure_rate(sys.argv[1], lines, Path(sys.argv[3])))
