"""Speed on a GPU, compared with plain loops on the same card.

    python -m benchmarks.gpu                         # at most ten minutes
    python -m benchmarks.gpu --quick --device cpu    # little data, to try it without a GPU

Requires the ``starter`` extra and sentence-transformers. Results are written to
docs/results/gpu.csv; the column "card" names the GPU. Times are wall-clock times.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from sklearn_ape import KernelAligner
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.losses import InfoNCELoss

from ._results import (
    COMPARISON_COLUMNS,
    Comparison,
    Results,
    choose_folder,
    make_results_parser,
    print_table,
)
from .speed.encode import load_sentence_transformer, load_timm_model
from .speed.training import make_features, time_epochs, train_by_hand

COLUMNS = ("card", *COMPARISON_COLUMNS[1:])
_N_ROUNDS = 3
_EMBED_DIM = 512


def synchronize(device: str) -> None:
    """Wait until the device has computed everything."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def time_call(function: Callable[[], Any], device: str, rounds: int = _N_ROUNDS) -> float:
    """Return the least seconds of some calls, after a warm-up."""
    function()
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_images(device: str, quick: bool) -> Iterator[Comparison]:
    """Compare the encoder with a plain loop, and with one that decodes on the GPU."""
    n_images = 64 if quick else 4000
    encoder = TimmImageEncoder("efficientnet_lite0", cache=None, device=device)
    model, transform = load_timm_model()
    model = model.to(device)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), n_images)

        def encode_by_hand(batch_size: int = 256) -> None:
            with torch.inference_mode():
                for start in range(0, n_images, batch_size):
                    images = [Image.open(path) for path in paths[start : start + batch_size]]
                    batch = torch.stack([transform(image) for image in images])
                    model(batch.to(device)).cpu()

        rate = n_images / time_call(lambda: encoder.transform(paths), device)
        peers = {"plain torch loop": encode_by_hand}
        if device != "cpu":
            peers["plain loop that decodes on the GPU"] = lambda: decode_on_gpu(
                model, paths, device
            )
        for peer, function in peers.items():
            peer_rate = n_images / time_call(function, device, rounds=1)
            yield Comparison(f"encode {n_images:,} JPEG files", rate, "images/s", peer, peer_rate)


def write_photographs(folder: Path, n_images: int) -> list[str]:
    """Write different versions of two photographs as JPEG files of 640 x 427 pixels."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = []
    for number in range(n_images):
        path = folder / f"{number}.jpg"
        photographs[number % 2].rotate(360 * number / n_images).save(path, quality=90)
        paths.append(str(path))
    return paths


def decode_on_gpu(
    model: Any, paths: list[str], device: str, batch_size: int = 256, size: int = 224
) -> None:
    """Decode, resize and encode images on a GPU; the normalization takes too little to matter."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    resize = v2.Resize((size, size), antialias=True)
    with torch.inference_mode():
        for start in range(0, len(paths), batch_size):
            data = [read_file(path) for path in paths[start : start + batch_size]]
            images = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
            batch = torch.stack([resize(image) for image in images]).float() / 255
            model(batch).cpu()


def measure_texts(device: str, quick: bool) -> Iterator[Comparison]:
    """Compare the encoder of texts with sentence-transformers."""
    captions = load_openmoji().captions
    n_texts = 200 if quick else 20_000
    texts = [
        f"{captions[row % len(captions)]} and {captions[row * 7 % len(captions)]} {row}"
        for row in range(n_texts)
    ]
    encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=None, device=device)
    encode_by_peer = load_sentence_transformer(Path(), device)
    rate = n_texts / time_call(lambda: encoder.transform(texts), device)
    peer_rate = n_texts / time_call(lambda: encode_by_peer(texts), device)
    yield Comparison(
        f"encode {n_texts:,} texts", rate, "texts/s", "sentence-transformers", peer_rate
    )


def measure_training(device: str, quick: bool) -> Iterator[Comparison]:
    """Compare epochs of training with a hand-written loop."""
    for n_rows in (2000,) if quick else (100_000, 1_000_000):
        image, text = make_features(n_rows)
        shape = {"width": 2048, "batch_size": 8192, "max_epochs": 2}
        seconds = min(time_epochs(image, text, device=device, **shape))
        peer = train_by_hand(image, text, **shape, device=device, clock=time.perf_counter)
        yield Comparison(
            f"an epoch of {n_rows:,} pairs, head of width 2,048, batches of 8,192",
            seconds,
            "s",
            "the same written by hand",
            min(peer),
            "at most 1.1",
        )


def measure_loss(device: str, quick: bool) -> Iterator[Comparison]:
    """Compare the time and memory of a loss in tiles with those of all logits at once."""
    n_pairs = 1024 if quick else 32_768
    generator = torch.Generator(device).manual_seed(0)
    sides = [
        torch.nn.functional.normalize(
            torch.randn(n_pairs, _EMBED_DIM, device=device, generator=generator)
        ).requires_grad_()
        for _ in range(2)
    ]

    def measure(tile_size: int | None) -> tuple[float, float]:
        loss = InfoNCELoss(tile_size=tile_size).to(device)

        def step() -> None:
            loss(*sides).backward()

        seconds = time_call(step, device)
        if device == "cpu":
            return seconds, 0.0
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return seconds, (torch.cuda.max_memory_allocated(device) - before) / 1e6

    name = f"InfoNCE of {n_pairs:,} pairs, forward and backward, in tiles"
    (seconds, memory), (peer_seconds, peer_memory) = measure(1024), measure(None)
    peer = "all logits at once"
    yield Comparison(f"{name}: time", seconds, "s", peer, peer_seconds, "at most 2")
    if device != "cpu":
        yield Comparison(f"{name}: memory added", memory, "MB", peer, peer_memory)


def measure_kernel(device: str, quick: bool) -> Iterator[Comparison]:
    """Compare the closed form with its decomposition and substitution alone."""
    n_pairs = 1000 if quick else 30_000
    image, text = make_features(n_pairs)
    aligner = KernelAligner(max_anchors=n_pairs, device=device)
    seconds = time_call(lambda: aligner.fit(image, text), device, rounds=1)
    rows = torch.nn.functional.normalize(torch.from_numpy(text).to(device))
    targets = torch.from_numpy(image).to(device)

    def solve() -> None:
        matrix = (rows @ rows.T).sub_(1).mul_(aligner.gamma_).exp_()
        matrix.diagonal().add_(aligner.ridge)
        torch.cholesky_solve(targets, torch.linalg.cholesky(matrix))

    yield Comparison(
        f"KernelAligner on {n_pairs:,} pairs",
        seconds,
        "s",
        "kernel, Cholesky decomposition and substitution",
        time_call(solve, device, rounds=1),
    )


def measure_recovery(device: str, quick: bool) -> Iterator[Comparison]:
    """Compare encoding with batches that do not fit in memory with encoding in small batches."""
    if device == "cpu":
        return
    n_images = 64 if quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), n_images)
        rates, features = [], []
        for batch_size, fraction in ((64, 1.0), (1024, 0.02)):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(fraction, device)
            encoder = TimmImageEncoder(
                "efficientnet_lite0", batch_size=batch_size, cache=None, device=device
            )
            encoder.transform(paths[:16])
            start = time.perf_counter()
            features.append(encoder.transform(paths))
            rates.append(n_images / (time.perf_counter() - start))
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    if not np.allclose(*features, atol=1e-2):
        raise RuntimeError("Features differ after recovery from a lack of memory.")
    name = "encode images in batches of 1,024 with 2 % of the memory of the GPU"
    yield Comparison(name, rates[1], "images/s", "batches of 64 with all memory", rates[0])


PARTS = {
    "images": measure_images,
    "texts": measure_texts,
    "training": measure_training,
    "loss": measure_loss,
    "kernel": measure_kernel,
    "recovery": measure_recovery,
}


def main() -> None:
    """Run the chosen parts and record their rows."""
    parser = make_results_parser("gpu", __doc__, tuple(PARTS))
    parser.add_argument(
        "--device", default="cuda:0", help="device of torch, with its number (default: cuda:0)"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"unknown parts: {', '.join(unknown)}. Choose from {', '.join(PARTS)}.")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("torch finds no GPU. Use --quick --device cpu to try the program.")
    is_gpu = options.device != "cpu"
    card = torch.cuda.get_device_name(options.device) if is_gpu else "no GPU"
    results = Results(choose_folder(options) / "gpu.csv", COLUMNS)
    for part in options.parts or PARTS:
        print(f"\n{part} ({card})", flush=True)
        rows = list(PARTS[part](options.device, options.quick))
        results.remove("name", [row.name for row in rows])
        records = [{"card": card, **row.as_record()} for row in rows]
        print_table(records)
        results.append(records)
        print("", *(row.failure for row in rows if row.failure), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
