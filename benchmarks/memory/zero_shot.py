"""Time and memory of classifying 1,000 to 1,000,000 rows; memory of ranks and labels.

Each figure is measured in a separate process. Times are CPU seconds, so that other work on the
machine matters less.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from sklearn_ape.metrics import retrieval_report
from sklearn_ape.zero_shot._label_embeddings import embed_labels

from .._process import read_memory, run_for_numbers
from .._results import Comparison
from ..speed.zero_shot import make_classifier, write_features

_N_WARM = 3000
_MIN_SECONDS = 1.0
_N_LABELS, _N_TEMPLATES, _LABEL_WIDTH = 10_000, 80, 384


def measure(quick: bool) -> list[Comparison]:
    """Measure classification by number of rows, and the memory that ranks and labels add."""
    sizes = [1_000, 10_000, 100_000] + ([] if quick else [1_000_000])
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder) / "features.npy", sizes[-1])
        with (Path(folder) / "classifier.pickle").open("wb") as file:
            pickle.dump(make_classifier(), file)
        runs = [run_for_numbers(__name__, "classify", n_rows, folder) for n_rows in sizes]
    peer, target = f"{sizes[0]:,} rows", "at most 1.3"
    rows = []
    for column, quantity, unit, factor in (
        (0, "CPU time per row", "µs", 1e6),
        (1, "resident memory", "MiB", 1),
    ):
        values = [factor * run[column] for run in runs]
        rows += [
            Comparison(
                f"classify {n_rows:,} rows: {quantity}", value, unit, peer, values[0], target
            )
            for n_rows, value in zip(sizes, values, strict=True)
        ]
    n_pairs = 8_000 if quick else 20_000
    name = f"recall in both directions of {n_pairs:,} pairs"
    rows.append(_compare_memory(name, "ranks", "the whole matrix", "matrix", n_pairs))
    n_labels = 3_000 if quick else _N_LABELS
    name = f"embed {n_labels:,} labels × {_N_TEMPLATES} templates, simulated encoder"
    rows.append(_compare_memory(name, "labels", "all prompts at once", "prompts", n_labels))
    return rows


def _compare_memory(name: str, mode: str, peer: str, peer_mode: str, size: int) -> Comparison:
    memory, peer_memory = (
        run_for_numbers(__name__, "memory", each, size)[0] for each in (mode, peer_mode)
    )
    name = f"{name}: memory added"
    return Comparison(name, memory, "MiB", peer, peer_memory, "at most 0.5")


def _classify(n_rows: int, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds per row and the peak of memory in MiB."""
    with (folder / "classifier.pickle").open("rb") as file:
        classifier = pickle.load(file)
    X = np.load(folder / "features.npy", mmap_mode="r")[:n_rows]
    classifier.predict(np.array(X[:_N_WARM]))
    times: list[float] = []
    while sum(times) < _MIN_SECONDS:
        start = time.process_time()
        classifier.predict(X)
        times.append(time.process_time() - start)
    # Not the minimum: it would favour small sizes, which are timed hundreds of times.
    return median(times) / n_rows, _read_peak()


def _measure_added_memory(mode: str, size: int) -> float:
    """Return by how many MiB a calculation raises the peak of memory."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, size if mode in ("ranks", "matrix") else 1, 64), "f4")
    pairs = np.column_stack([np.arange(size), rng.permutation(size)])
    names = {f"thing {number}": [f"thing {number}"] for number in range(size)}
    templates = tuple(f"image {number} of a {{}}" for number in range(_N_TEMPLATES))
    retrieval_report(image[:1], text[:1], np.zeros((1, 2), int))
    before = _read_peak()
    if mode == "ranks":
        retrieval_report(image, text, pairs)
    elif mode == "matrix":
        scores = image @ text.T
        positives = scores[pairs[:, 0], pairs[:, 1]]
        (
            (scores >= positives[:, None]).sum(axis=1),
            (scores >= positives[np.argsort(pairs[:, 1])]).sum(axis=0),
        )
    elif mode == "labels":
        embed_labels(_SimulatedAligner(), names, templates)
    else:
        prompts = [template.replace("{}", name) for name in names for template in templates]
        embeddings = _SimulatedAligner().transform_text(prompts).reshape(size, _N_TEMPLATES, -1)
        means = embeddings.mean(axis=1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    return _read_peak() - before


class _SimulatedAligner:
    """Aligner that returns random embeddings of the usual size."""

    fingerprint_ = "simulated"
    n_components_ = _LABEL_WIDTH

    def transform_text(self, texts: list[str]) -> np.ndarray:
        rng = np.random.default_rng(list(texts[0].encode()))
        return rng.standard_normal((len(texts), _LABEL_WIDTH), dtype=np.float32)


def _read_peak() -> float:
    return read_memory("VmHWM") / 2**20


if __name__ == "__main__":
    command, first, second = sys.argv[1:]
    if command == "classify":
        print(*_classify(int(first), Path(second)))
    else:
        print(_measure_added_memory(first, int(second)))
