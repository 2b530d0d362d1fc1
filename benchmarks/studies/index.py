"""Compare the indexes of `CrossModalRetriever` with scikit-learn's `NearestNeighbors`.

    python benchmarks/index.py [--rows 100000] [--output docs/results/index.csv]

Embeddings are made of the starter model's embeddings of OpenMoji, mixed in pairs with noise: near
to each other as real ones are, unlike random vectors. Milliseconds are the median of five
searches for 10 images; memory is what a search adds to the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

K = 10
N_QUERIES = (1, 10, 1000)
METHODS = ("NearestNeighbors", "exact", "faiss", "usearch")
WIDTH = 512


def embeddings(n_rows: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    from sklearn_ape._starter import load_starter
    from sklearn_ape.datasets import load_openmoji

    real = PCA(WIDTH, random_state=0).fit_transform(
        load_starter().transform(load_openmoji().images)
    )
    rng = np.random.default_rng(0)
    left, right = real[rng.integers(len(real), size=(2, n_rows))]
    mixed = left + rng.random((n_rows, 1)) * right
    mixed += rng.standard_normal(mixed.shape) * 0.3 * real.std(axis=0)
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return mixed.astype(np.float32)


def searcher(method: str, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what finds the nearest of some rows."""
    if method == "NearestNeighbors":
        from sklearn.neighbors import NearestNeighbors

        peer = NearestNeighbors(n_neighbors=K, metric="cosine").fit(rows)
        return lambda queries: peer.kneighbors(queries, return_distance=False)
    from sklearn_ape.retrieval._collection import Collection
    from sklearn_ape.retrieval._retriever import _found

    collection = Collection.of(rows, None, "float32", method)
    return lambda queries: _found(collection, queries, K, None)[1]


def peak() -> float:
    """Return the peak of this process's memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(method: str, folder: Path) -> None:
    """Print seconds to build, the ms for each number of queries, MiB added, and keep answers."""
    rows = np.load(folder / "rows.npy")
    queries = rows[:: len(rows) // max(N_QUERIES)][: max(N_QUERIES)]
    start = time.perf_counter()
    search = searcher(method, rows)
    numbers = [time.perf_counter() - start]
    search(queries[:1])
    before = peak()
    for n_queries in N_QUERIES:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            found = search(queries[:n_queries])
            seconds.append(time.perf_counter() - start)
        numbers.append(1000 * float(np.median(seconds)))
    np.save(folder / f"{method}.npy", found)
    print(*numbers, peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("features-cache/index"))
    parser.add_argument("--output", type=Path, help="csv file")
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options.folder)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    np.save(options.folder / "rows.npy", embeddings(options.rows))
    names = ("build_s", *(f"ms_{n}" for n in N_QUERIES), "search_MiB")
    table = []
    for method in METHODS:
        command = [sys.executable, __file__, "--only", method, "--folder", str(options.folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        numbers = dict(zip(names, map(float, done.stdout.split()), strict=True))
        found = np.load(options.folder / f"{method}.npy")
        if method == METHODS[0]:
            truth = found
        hits = [len(np.intersect1d(*pair)) for pair in zip(found, truth, strict=True)]
        row = {"method": method, "rows": options.rows}
        row |= {name: round(number, 1) for name, number in numbers.items()}
        table.append(row | {"recall@10": round(float(np.mean(hits)) / K, 4)})
        print(table[-1], flush=True)
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
