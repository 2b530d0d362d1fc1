"""Encoding from files, against a plain torch loop, embetter and sentence-transformers.

Every contender runs in a process of its own, since ours changes how the process allocates memory.
They take turns, and the median of the rounds counts: a machine that is shared is faster in one
minute than in the next. All have the same weights and read the same files.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._results import Row, show

N_IMAGES, N_LARGE, N_TEXTS = 480, 32, 3000
N_COMPARED = 100
N_ROUNDS = 5
OURS_F32, OURS_BF16, OURS_ONNX, OURS_TORCH = "openvino float32", "openvino bf16", "onnx", "torch"


def measure(quick: bool) -> list[Row]:
    """Return images/s and texts/s, ours beside each peer's."""
    rounds = 1 if quick else N_ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        sets = _make_sets(Path(folder), 8 if quick else 1)
        rows: list[Row] = []
        for name in ("images", "large photographs"):
            rows += _rows_of_images(name, sets[name], Path(folder), rounds)
        rows += _rows_of_texts(sets["texts"], Path(folder), rounds)
    return rows


def _rows_of_images(name: str, paths: Path, folder: Path, rounds: int) -> list[Row]:
    small = name == "images"
    bars = (
        {OURS_F32: "at least 6", OURS_ONNX: "at least 6", OURS_BF16: "at least 10"}
        if small
        else {}
    )
    ours = (OURS_F32, OURS_ONNX, OURS_BF16, OURS_TORCH)[: 4 if small else 1]
    rates = _rates(("plain", *ours, "embetter"), paths, folder, rounds)
    rows = []
    for one in ours:
        what = f"encode {name}, {one}"
        peer = "plain torch loop"
        rows.append(Row(what, rates[one], "images/s", peer, rates["plain"], bars.get(one, "")))
        rows.append(_difference(f"{what}: 1 - cosine, worst", folder, one, "exact"))
    what = f"encode {name}, {OURS_F32}"
    rows.append(Row(what, rates[OURS_F32], "images/s", "embetter", rates["embetter"]))
    return rows


def _rows_of_texts(texts: Path, folder: Path, rounds: int) -> list[Row]:
    peer = "sentence-transformers"
    bars = {"texts openvino": "at least 1.5", "texts torch": ""}
    rates = _rates((peer, *bars), texts, folder, rounds)
    rows = []
    for ours, bar in bars.items():
        rows.append(Row(f"encode {ours}", rates[ours], "texts/s", peer, rates[peer], bar))
        rows.append(_difference(f"encode {ours}: 1 - cosine, worst", folder, ours, peer))
    return rows


def _difference(what: str, folder: Path, ours: str, reference: str) -> Row:
    a, b = (np.load(folder / f"{name}.npy") for name in (ours, reference))
    a, b = a[: len(b)], b[: len(a)]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return Row(what, float((1 - cosine).max()), "")


def _rates(
    contenders: tuple[str, ...], items: Path, folder: Path, rounds: int
) -> dict[str, float]:
    """Return items a second of each, the median of rounds in which they take turns."""
    rates: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            rates[contender].append(_rate(contender, items, folder))
    return {contender: statistics.median(some) for contender, some in rates.items()}


def _rate(contender: str, items: Path, folder: Path) -> float:
    module = ["-W", "ignore", "-m", "benchmarks.speed.encode"]
    command = [sys.executable, *module, contender, str(items), str(folder)]
    here = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def _make_sets(folder: Path, share: int) -> dict[str, Path]:
    """Write lists of files and texts: half PNG, half JPEG; photographs of 12 megapixels."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from sklearn_ape.datasets import load_openclipart

    data = load_openclipart()
    rng = np.random.default_rng(0)
    chosen = [data.images[row] for row in rng.permutation(len(data.images))[: N_IMAGES // share]]
    files = []
    for number, path in enumerate(chosen):
        if number % 2:
            with Image.open(path) as image:
                rgba = image.convert("RGBA")
            ground = Image.new("RGB", rgba.size, "white")
            ground.paste(rgba, mask=rgba)
            path = folder / f"{number}.jpg"
            ground.save(path, quality=90)
        files.append(str(path))
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    large = []
    for number in range(N_LARGE // share):
        path = folder / f"large-{number}.jpg"
        moved = photographs[number % 2].rotate(number, expand=False)
        moved.resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
        large.append(str(path))
    texts = [text for row in data.captions for text in ([row] if isinstance(row, str) else row)]
    # Titles of a few words, and two and four of them in a row.
    lengths = (1, 1, 2, 4)
    mixed = [" ".join(texts[n : n + lengths[n % 4]]) for n in range(len(texts) - 4)]
    mixed = list(dict.fromkeys(mixed))[: N_TEXTS // share]
    sets = {"images": files, "large photographs": large, "texts": mixed}
    for name, items in sets.items():
        (folder / f"{name}.txt").write_text("\n".join(" ".join(i.split()) for i in items))
    return {name: folder / f"{name}.txt" for name in sets}


def _contend(contender: str, items: list[str], folder: Path) -> float:
    """Return items a second, having started and warmed up; keep the features."""
    os.environ["SKLEARN_APE_DATA"] = str(folder / "data")  # for exports
    encode = CONTENDERS[contender](folder)
    encode(items[:40])
    start = time.perf_counter()
    features = encode(items)
    rate = len(items) / (time.perf_counter() - start)
    np.save(folder / f"{contender}.npy", features)
    return rate


def _ours(engine: str, dtype: str = "float32") -> Callable:
    def start(folder: Path) -> Callable:
        from sklearn_ape.encoders import TimmImageEncoder

        encoder = TimmImageEncoder(engine=engine, dtype=dtype, cache=None)
        return encoder.transform

    return start


def _our_texts(engine: str) -> Callable:
    def start(folder: Path) -> Callable:
        from sklearn_ape.encoders import TransformersTextEncoder

        encoder = TransformersTextEncoder(engine=engine, cache=None)
        return encoder.transform

    return start


def _timm_model(pretrained_name: str = "efficientnet_lite0") -> tuple[Any, Any]:
    """Return timm's own network with the packaged weights, and timm's transform."""
    import timm
    import torch

    from sklearn_ape.encoders import TimmImageEncoder
    from sklearn_ape.encoders._registry import PACKAGED

    ours = TimmImageEncoder(pretrained_name, engine="torch", cache=None)._network().model
    model = timm.create_model(PACKAGED[pretrained_name].architecture, num_classes=0).eval()
    known = model.state_dict()
    model.load_state_dict({k: v for k, v in ours.state_dict().items() if k in known})
    config = timm.data.resolve_model_data_config(model)
    assert next(model.parameters()).dtype == torch.float32
    return model, timm.data.create_transform(**config)


def _plain(folder: Path) -> Callable:
    import torch
    from PIL import Image

    model, transform = _timm_model()

    def encode(paths: list[str]) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(paths), 32):
                images = [Image.open(path).convert("RGB") for path in paths[start : start + 32]]
                parts.append(model(torch.stack([transform(image) for image in images])))
        return torch.cat(parts).numpy()

    _write_exact(model, transform, folder)
    return encode


def _write_exact(model: Any, transform: Any, folder: Path) -> None:
    """Write timm's features of the images as we show them, upright and on white."""
    import torch

    from sklearn_ape.encoders._images import read_image

    paths = Path(sys.argv[2]).read_text().splitlines()[:N_COMPARED]
    with torch.inference_mode():
        parts = [model(transform(read_image(path))[None]) for path in paths]
    np.save(folder / "exact.npy", torch.cat(parts).numpy())


def _embetter(folder: Path) -> Callable:
    import timm
    from embetter.vision import ImageLoader, TimmEncoder

    model, _ = _timm_model()
    create = timm.create_model
    timm.create_model = lambda *args, **kwargs: model  # its hub is out of reach here
    encoder = TimmEncoder("efficientnet_lite0")
    timm.create_model = create
    return lambda paths: encoder.transform(ImageLoader().transform(paths))


def _sentence_transformers(folder: Path) -> Callable:
    from sentence_transformers import SentenceTransformer

    from sklearn_ape.encoders._hub import source_of

    model = SentenceTransformer(source_of("all-MiniLM-L6-v2"), device="cpu")
    return lambda texts: model.encode(texts, show_progress_bar=False)


CONTENDERS: dict[str, Callable[[Path], Callable]] = {
    "plain": _plain,
    "embetter": _embetter,
    OURS_F32: _ours("openvino"),
    OURS_BF16: _ours("openvino", "bfloat16"),
    OURS_ONNX: _ours("onnx"),
    OURS_TORCH: _ours("torch"),
    "texts openvino": _our_texts("openvino"),
    "texts torch": _our_texts("torch"),
    "sentence-transformers": _sentence_transformers,
}


if __name__ == "__main__":
    if len(sys.argv) == 4:
        lines = Path(sys.argv[2]).read_text().splitlines()
        print(_contend(sys.argv[1], lines, Path(sys.argv[3])))
    else:
        show(measure("--quick" in sys.argv))
