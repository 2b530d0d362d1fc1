"""Indexes of `CrossModalRetriever`, compared with `NearestNeighbors` of scikit-learn.

    python -m benchmarks.studies.index [--rows 100000] [--output docs/results/index.csv]

Embeddings are mixtures of the starter model's embeddings of OpenMoji with noise. Unlike random
vectors, they have near neighbours as real embeddings do. Milliseconds are the median of five
searches for 10 images; memory is what a search adds to the peak of a separate process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .._process import read_memory, run_for_numbers
from .._results import Results

K = 10
N_QUERIES = (1, 10, 1000)
METHODS = ("NearestNeighbors", "exact", "faiss", "usearch")
WIDTH = 512


def make_embeddings(n_rows: int) -> np.ndarray:
    """Return unit vectors that are distributed similarly to real embeddings."""
    from sklearn.decomposition import PCA

    from sklearn_ape.aligners.starter import load_starter
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


def build_index(method: str, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that finds the nearest rows of queries."""
    if method == "NearestNeighbors":
        from sklearn.neighbors import NearestNeighbors

        peer = NearestNeighbors(n_neighbors=K, metric="cosine").fit(rows)
        return lambda queries: peer.kneighbors(queries, return_distance=False)
    from sklearn_ape.retrieval._collection import Collection

    collection = Collection.from_embeddings(rows, None, "float32", method)
    return lambda queries: collection.search(queries, K)[1]


def measure(method: str, folder: Path) -> None:
    """Print the seconds to build, ms per number of queries and MiB added; save the neighbours."""
    rows = np.load(folder / "rows.npy")
    queries = rows[:: len(rows) // max(N_QUERIES)][: max(N_QUERIES)]
    build_index(method, rows[:100])  # so that imports are not part of the time to build
    start = time.perf_counter()
    search = build_index(method, rows)
    figures = [time.perf_counter() - start]
    search(queries[:1])
    before = read_memory("VmHWM")
    for n_queries in N_QUERIES:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            neighbours = search(queries[:n_queries])
            seconds.append(time.perf_counter() - start)
        figures.append(1000 * float(np.median(seconds)))
    np.save(folder / f"{method}.npy", neighbours)
    print(*figures, (read_memory("VmHWM") - before) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="number of embeddings")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("features-cache/index"),
        help="folder of temporary files",
    )
    parser.add_argument("--output", type=Path, help="CSV file (default: none)")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "rows.npy", make_embeddings(options.rows))
    names = ("build_s", *(f"ms_{n}" for n in N_QUERIES), "search_MiB")
    table = []
    for method in METHODS:
        module = "benchmarks.studies.index"
        figures = dict(zip(names, run_for_numbers(module, "measure", method, folder), strict=True))
        neighbours = np.load(folder / f"{method}.npy")
        if method == METHODS[0]:
            exact = neighbours
        hits = [len(np.intersect1d(*pair)) for pair in zip(neighbours, exact, strict=True)]
        row = {"method": method, "rows": options.rows}
        row |= {name: round(figure, 1) for name, figure in figures.items()}
        table.append(row | {"recall@10": round(float(np.mean(hits)) / K, 4)})
        print(table[-1], flush=True)
    if options.output:
        options.output.unlink(missing_ok=True)
        Results(options.output, list(table[0])).append(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
