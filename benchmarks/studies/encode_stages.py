"""Processor time of each stage between an image file and its features.

    python -m benchmarks.studies.encode_stages [--engine openvino] [--dtype float32]

Prints milliseconds of processor time per image: reading and digest of the content, decoding,
resizing and cropping, and the network, each measured alone in as many threads as `transform` uses,
and the time of `transform`. The difference, "rest", is the time of batches, threads and the cache.
Images are those of `python -m benchmarks.speed encode`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sklearn_ape.devices import default_state
from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.encoders.images import digest_image, read_image
from sklearn_ape.utils.concurrency import map_threaded

from .._results import make_parser
from ..speed.encode import write_sets

N_ROUNDS = 5


def measure_stages(encoder: Any, files: list[str], n_threads: int) -> dict[str, float]:
    """Return the milliseconds per image of each stage, of their sum and of `transform`."""
    network, engine = encoder._get_network(), encoder._get_engine(len(files))
    preprocessing = encoder._get_preprocessing(network.prepare)
    min_side = encoder._compute_min_side(preprocessing)
    images = [read_image(file, min_side) for file in files]
    pixels = [preprocessing(image) for image in images]
    size = encoder._choose_batch_size(network.device)
    batches = [
        encoder._make_tensors(network, pixels[start : start + size])
        for start in range(0, len(pixels), size)
    ]
    stages: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "read and digest": (lambda file: digest_image(Path(file).read_bytes()), files),
        "decode": (lambda file: read_image(file, min_side), files),
        "resize and crop": (preprocessing, images),
        "network": (engine, batches),
        "transform": (encoder.transform, [files]),
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    with default_state():
        for _ in range(N_ROUNDS):
            for name, (stage, items) in stages.items():
                start = time.process_time()
                list(map_threaded(stage, items, n_threads))
                times[name].append(1000 * (time.process_time() - start) / len(files))
    medians = {name: statistics.median(values) for name, values in times.items()}
    total = medians.pop("transform")
    return medians | {"rest": total - sum(medians.values()), "transform": total}


def main() -> None:
    parser = make_parser("studies.encode_stages", __doc__)
    parser.add_argument("--engine", default="openvino", help="engine of the encoder")
    parser.add_argument("--dtype", default="float32", help="precision of the network")
    options = parser.parse_args()
    encoder = TimmImageEncoder(engine=options.engine, dtype=options.dtype, cache=None)
    with tempfile.TemporaryDirectory() as name:
        sets = write_sets(Path(name), divisor=1)
        for kind in ("images", "large photographs"):
            files = sets[kind].read_text().splitlines()
            encoder.transform(files[:40])
            times = measure_stages(encoder, files, encoder._count_threads())
            start = time.perf_counter()
            encoder.transform(files)
            rate = len(files) / (time.perf_counter() - start)
            print(f"{len(files)} {kind}, {options.engine} {options.dtype}, {rate:.0f} images/s")
            for stage, value in times.items():
                print(f"  {stage:<16} {value:6.2f} ms")


if __name__ == "__main__":
    main()
