"""Search in large collections, compared with faiss used directly and with clip-retrieval's index.

Embeddings are mixtures of random vectors with noise, and `CrossModalRetriever` gets them through
an aligner that only normalizes them. The time to build includes the normalization, on both sides.

autofaiss, which builds the index of clip-retrieval, requires an older numpy. Install both into
another environment, and set ``BENCHMARK_AUTOFAISS`` to its interpreter; otherwise this comparison
is skipped. autofaiss chooses the type of the index and tunes its search to take 10 ms.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_ape import CLIPAligner, CrossModalRetriever

from .._results import Comparison
from ._rounds import skip_missing, time_in_turns
from .libraries import save_open_clip_model

_K, _N_QUERIES, _N_BASE = 10, 200, 2000
_N_ROUNDS = 3
# Parameters of the graphs of usearch, for those of faiss. The first two are its defaults.
_CONNECTIVITY, _EXPANSION_ADD, _EXPANSION_SEARCH = 16, 128, 256

# Arguments as in clip-retrieval's `clip_index`. Prints the seconds to build, and the median
# seconds of a search for one query and for all; writes the neighbours.
_AUTOFAISS = """
import sys, time
import faiss, numpy as np
from autofaiss import build_index
folder, k = sys.argv[1], int(sys.argv[2])
queries = np.load(folder + "/queries.npy")
start = time.perf_counter()
build_index(
    embeddings=folder + "/embeddings",
    index_path=folder + "/image.index",
    index_infos_path=folder + "/image.json",
    max_index_memory_usage="4G",
    current_memory_available="16G",
    verbose=50,
)
figures = [time.perf_counter() - start]
index = faiss.read_index(folder + "/image.index")
for n_queries in (1, len(queries)):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        neighbours = index.search(queries[:n_queries], k)[1]
        seconds.append(time.perf_counter() - start)
    figures.append(float(np.median(seconds)))
np.save(folder + "/neighbours.npy", neighbours)
print(*figures)
"""


def measure(quick: bool) -> list[Comparison]:
    """Measure seconds to build and to search, and recall of the exact neighbours."""
    try:
        import faiss
    except ImportError as error:
        skip_missing("faiss", error)
        return []
    # As many threads as the matrix products of numpy have.
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    sizes = ((5_000, 384), (20_000, 128)) if quick else ((100_000, 384), (1_000_000, 128))
    rows = []
    for n_rows, width in sizes:
        rows += _compare_exact(n_rows, width, 1 if quick else _N_ROUNDS)
        gc.collect()
    return rows + _compare_graphs(5_000 if quick else 30_000, 384, 1 if quick else _N_ROUNDS)


def make_embeddings(n_rows: int, width: int) -> np.ndarray:
    """Return vectors that have near neighbours, in blocks of which each is drawn separately."""
    rng = np.random.default_rng(0)
    spectrum = 1 / np.sqrt(1 + np.arange(width, dtype=np.float32))
    base = rng.standard_normal((_N_BASE, width), dtype=np.float32) * spectrum
    embeddings = np.empty((n_rows, width), np.float32)
    for start in range(0, n_rows, 50_000):
        block = embeddings[start : start + 50_000]
        left, right = base[rng.integers(_N_BASE, size=(2, len(block)))]
        noise = rng.standard_normal(block.shape, dtype=np.float32)
        block[:] = left + rng.random((len(block), 1), dtype=np.float32) * right
        block += 0.3 * base.std(axis=0) * noise
    return embeddings


def _draw_queries(embeddings: np.ndarray) -> np.ndarray:
    return embeddings[:: len(embeddings) // _N_QUERIES][:_N_QUERIES].copy()


def _make_retriever(folder: str, width: int, index: str) -> CrossModalRetriever:
    save_open_clip_model(Path(folder), width)
    return CrossModalRetriever(CLIPAligner(folder, device="cpu"), index=index)


def _normalize(embeddings: np.ndarray) -> np.ndarray:
    import faiss

    normalized = embeddings.copy()
    faiss.normalize_L2(normalized)
    return normalized


def _compare_exact(n_rows: int, width: int, n_rounds: int) -> list[Comparison]:
    """Compare both exact indexes with a flat index of faiss."""
    import faiss

    embeddings = make_embeddings(n_rows, width)
    queries = _draw_queries(embeddings)
    peer_index: Any = None

    def build_peer() -> None:
        nonlocal peer_index
        peer_index = None
        peer_index = faiss.IndexFlatIP(width)
        peer_index.add(_normalize(embeddings))

    def search_peer(n_queries: int) -> np.ndarray:
        return peer_index.search(_normalize(queries[:n_queries]), _K)[1]

    rows = []
    for index in ("exact", "faiss"):
        with tempfile.TemporaryDirectory() as folder:
            retriever = _make_retriever(folder, width, index)
            few = embeddings[:1000]
            retriever.fit(few)  # load the model before the clock starts

            def build_ours(retriever: CrossModalRetriever = retriever, few: Any = few) -> None:
                retriever.fit(few)  # frees previous embeddings, as build_peer does
                retriever.fit(embeddings)

            build = time_in_turns({"ours": build_ours, "peer": build_peer}, n_rounds)
            name = f"{n_rows:,} × {width}, index={index!r}"
            peer = "faiss, flat index"
            rows.append(Comparison(f"{name}: build", build["ours"], "s", peer, build["peer"]))
            for n_queries, n_searches in ((1, 5 * n_rounds), (_N_QUERIES, n_rounds)):
                search = _make_search(retriever, queries[:n_queries])
                seconds = time_in_turns(
                    {"ours": search, "peer": lambda n=n_queries: search_peer(n)}, n_searches
                )
                title = f"{name}: search for {n_queries:,} images"
                rows.append(
                    Comparison(
                        title, 1000 * seconds["ours"], "ms", peer, 1000 * seconds["peer"],
                        "at most 1.2",
                    )
                )  # fmt: skip
            recall = compute_recall(search(), search_peer(_N_QUERIES))
            rows.append(Comparison(f"{name}: recall@{_K} of the neighbours of faiss", recall, "%"))
    return rows


def _make_search(retriever: CrossModalRetriever, queries: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: retriever.search(queries, _K, modality="image").indices


def _compare_graphs(n_rows: int, width: int, n_rounds: int) -> list[Comparison]:
    """Compare the approximate index with HNSW of faiss, and with the index of clip-retrieval."""
    import faiss

    embeddings = make_embeddings(n_rows, width)
    normalized = _normalize(embeddings)
    queries = _draw_queries(embeddings)
    normalized_queries = _normalize(queries)
    flat = faiss.IndexFlatIP(width)
    flat.add(normalized)
    exact = flat.search(normalized_queries, _K)[1]
    graph: Any = None

    def build_graph() -> None:
        nonlocal graph
        graph = None
        graph = faiss.IndexHNSWFlat(width, _CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = _EXPANSION_ADD
        graph.hnsw.efSearch = _EXPANSION_SEARCH
        graph.add(_normalize(embeddings))

    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as folder:
        retriever = _make_retriever(model, width, "usearch")
        retriever.fit(embeddings[:1000])  # load the model before the clock starts
        np.save(Path(folder, "queries.npy"), normalized_queries)
        Path(folder, "embeddings").mkdir()
        np.save(Path(folder, "embeddings", "0.npy"), normalized)
        contenders = {"ours": lambda: retriever.fit(embeddings), "faiss": build_graph}
        autofaiss: list[list[float]] = []
        if "BENCHMARK_AUTOFAISS" in os.environ:
            contenders["autofaiss"] = lambda: autofaiss.append(_run_autofaiss(folder))
        else:
            print("skipped autofaiss: BENCHMARK_AUTOFAISS is not set", flush=True)
        build = time_in_turns(contenders, n_rounds)
        searches: dict[int, dict[str, float]] = {}
        for n_queries in (1, _N_QUERIES):
            search = _make_search(retriever, queries[:n_queries])
            searches[n_queries] = time_in_turns(
                {
                    "ours": search,
                    "faiss": lambda n=n_queries: graph.search(_normalize(queries[:n]), _K),
                },
                5 * n_rounds,
            )
        recalls = {
            "ours": compute_recall(search(), exact),
            "faiss": compute_recall(graph.search(normalized_queries, _K)[1], exact),
        }
        if autofaiss:
            figures = [statistics.median(column) for column in zip(*autofaiss, strict=True)]
            build["autofaiss"], searches[1]["autofaiss"], searches[_N_QUERIES]["autofaiss"] = (
                figures
            )
            recalls["autofaiss"] = compute_recall(np.load(Path(folder, "neighbours.npy")), exact)
    name = f"{n_rows:,} × {width}, index='usearch'"
    peers = {
        "faiss": "faiss, HNSW of the same size",
        "autofaiss": "clip-retrieval's index (autofaiss)",
    }
    rows = []
    for key, peer in peers.items():
        if key not in build:
            continue
        rows.append(Comparison(f"{name}: build", build["ours"], "s", peer, build[key]))
        for n_queries, seconds in searches.items():
            title = f"{name}: search for {n_queries:,} images"
            rows.append(Comparison(title, 1000 * seconds["ours"], "ms", peer, 1000 * seconds[key]))
        rows.append(Comparison(f"{name}: recall@{_K}", recalls["ours"], "%", peer, recalls[key]))
    return rows


def _run_autofaiss(folder: str) -> list[float]:
    """Build and search an index in another environment, and return the seconds."""
    command = [os.environ["BENCHMARK_AUTOFAISS"], "-c", _AUTOFAISS, folder, str(_K)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"autofaiss failed:\n{process.stderr[-2000:]}")
    return list(map(float, process.stdout.splitlines()[-1].split()))


def compute_recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the percentage of the exact neighbours that were found."""
    shared = [len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]
    return 100 * float(np.mean(shared)) / exact.shape[1]
