"""Speed of two processes and of one: encoding by a Dask cluster, training by accelerate.

    python -m benchmarks.studies.several_processes IMAGES [--n-images 100000] [--n-pairs 100000]

IMAGES is a folder of images. Every process has one thread, so that two processes can be at most
twice as fast as one. One process encodes a tenth of the images, then two workers encode all of
them, then two workers of which one is killed after a fifth of the images. A head is trained on
random features by one rank and by two, with the same batches. Requires the ``distributed`` and
``openvino`` extras.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np

from .._results import make_parser

SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_WORKERS = 2


def time_encoding(paths: list[Path], target: Path, n_warm: int) -> float:
    """Encode images into a file, and return the seconds it took."""
    from sklearn_ape.encoders import TimmImageEncoder

    # Without a cache, since the images of the warm-up are encoded again.
    encoder = TimmImageEncoder(
        "efficientnet_lite0", engine="openvino", n_jobs=1, cache=None, verbose=1
    )
    # The network is loaded and compiled before the clock starts.
    encoder.encode_to(target.with_suffix(".warm.npy"), paths[:n_warm], chunk_size=64)
    start = time.perf_counter()
    encoder.encode_to(target, paths)
    return time.perf_counter() - start


def encode_on_cluster(paths: list[Path], target: Path, kills_worker: bool) -> float:
    """Encode images on a Dask cluster of two processes, and return the seconds it took."""
    import joblib
    from dask.distributed import Client, LocalCluster

    options = {"dashboard_address": None, "worker_dashboard_address": None}
    with (
        LocalCluster(
            n_workers=_WORKERS, threads_per_worker=1, processes=True, **options
        ) as cluster,
        Client(cluster) as client,
        joblib.parallel_config("dask"),
    ):
        if kills_worker:
            pid = next(iter(client.run(os.getpid).values()))
            journal = Path(f"{target}.journal")
            kill = partial(_kill_later, pid, journal, len(paths) // 5)
            threading.Thread(target=kill, daemon=True).start()
        return time_encoding(paths, target, 64 * _WORKERS)


def _kill_later(pid: int, journal: Path, n_images: int) -> None:
    """Kill a process once the journal has a chunk of images for each 1,024 of them."""
    while not journal.exists() or len(journal.read_text().splitlines()) <= n_images // 1024:
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


def compare_encoding(paths: list[Path]) -> None:
    """Print the rates of one and two workers, and of two of which one is killed."""
    few = paths[: max(len(paths) // 10, 1024)]
    with tempfile.TemporaryDirectory() as folder:
        rate = len(few) / time_encoding(few, Path(folder) / "one.npy", 64)
        print(f"encoding, 1 process: {len(few):,} images, {rate:.1f} per second", flush=True)
        for name, kills_worker in (("2 workers", False), ("2 workers, one is killed", True)):
            target = Path(folder) / f"{int(kills_worker)}.npy"
            seconds = encode_on_cluster(paths, target, kills_worker)
            efficiency = len(paths) / seconds / rate / _WORKERS
            print(
                f"encoding, {name}: {len(paths):,} images, {len(paths) / seconds:.1f} per second, "
                f"{seconds:.0f} s, efficiency {efficiency:.0%}",
                flush=True,
            )
        first, second = (np.load(Path(folder) / f"{i}.npy", mmap_mode="r") for i in range(2))
        print(f"largest difference of the features: {np.abs(first - second).max():.1e}")


def train(n_pairs: int) -> None:
    """Train a head as one of the ranks, and print the seconds of an epoch."""
    from accelerate import Accelerator

    from ..speed.training import make_features, time_epochs

    accelerator = Accelerator(cpu=True)
    shape = {"width": 1024, "batch_size": 4096, "max_epochs": 3}
    seconds = time_epochs(*make_features(n_pairs), **shape)
    if accelerator.is_main_process:
        print(min(seconds), flush=True)
    accelerator.end_training()


def compare_training(n_pairs: int) -> None:
    """Print the seconds of an epoch with one rank and with two."""
    times = []
    for n_ranks in (1, _WORKERS):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
        # Without MPI, --cpu would start a single process. `train` selects the CPU itself.
        command += ["--multi_gpu"] if n_ranks > 1 else []
        command += ["--num_processes", str(n_ranks), "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", __spec__.name]
        output = subprocess.run(
            [*command, "--train", str(n_pairs)],
            env=os.environ | SINGLE_THREADED,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        times.append(float(output.split()[-1]))
        efficiency = times[0] / times[-1] / n_ranks
        print(
            f"training, {n_ranks} ranks: {n_pairs:,} pairs, {times[-1]:.1f} s per epoch, "
            f"efficiency {efficiency:.0%}",
            flush=True,
        )


def main() -> None:
    """Run both comparisons, or one rank of the training."""
    parser = make_parser("studies.several_processes", __doc__)
    parser.add_argument("images", nargs="?", type=Path, help="folder of images")
    parser.add_argument("--n-images", type=int, default=100_000)
    parser.add_argument("--n-pairs", type=int, default=100_000, help="0 skips the training")
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train)
        return
    if args.images is None or not args.images.is_dir():
        parser.error("IMAGES must be a folder of images.")
    if args.n_pairs:
        compare_training(args.n_pairs)
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    paths = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in suffixes)
    compare_encoding(paths[: args.n_images])


if __name__ == "__main__":
    main()
