"""Time and memory of classifying 1,000 rows to a million; memory of ranks and labels.

Every figure is of a process of its own. Times are of the processor, so that what else the machine
does counts less.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._process import child
from benchmarks._results import Row, show
from benchmarks.speed.zero_shot import classifier_of_features, write_features
from sklearn_ape._label_embeddings import embed_labels
from sklearn_ape.metrics import retrieval_report

_N_WARM = 3000
_LEAST_SECONDS = 1.0
_N_LABELS, _N_TEMPLATES, _LABEL_WIDTH = 10_000, 80, 384


def measure(quick: bool) -> list[Row]:
    sizes = [1_000, 10_000, 100_000] + ([] if quick else [1_000_000])
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder) / "features.npy", sizes[-1])
        with (Path(folder) / "classifier.pickle").open("wb") as file:
            pickle.dump(classifier_of_features(), file)
        runs = [child("zero_shot", "classify", str(n_rows), folder) for n_rows in sizes]
    rows = [
        Row(f"classify {n_rows:,} rows: CPU time a row", run[0] * 1e6, "µs", "the fewest rows",
            runs[0][0] * 1e6, "at most 1.3")
        for n_rows, run in zip(sizes, runs, strict=True)
    ]  # fmt: skip
    rows += [
        Row(f"classify {n_rows:,} rows: resident memory", run[1], "MB", "the fewest rows",
            runs[0][1], "at most 1.3")
        for n_rows, run in zip(sizes, runs, strict=True)
    ]  # fmt: skip
    n_ranked = str(8_000 if quick else 20_000)
    rows.append(_beside(f"recall both ways of {n_ranked} pairs", "ranks", "the whole matrix",
                        "matrix", n_ranked))  # fmt: skip
    n_labels = str(3_000 if quick else _N_LABELS)
    what = f"embed {n_labels} labels × {_N_TEMPLATES} templates, stand-in encoder"
    rows.append(_beside(what, "labels", "all prompts at once", "prompts", n_labels))
    return rows


def _beside(what: str, ours: str, peer: str, theirs: str, size: str) -> Row:
    grown, theirs_grown = (child("zero_shot", mode, size)[1] for mode in (ours, theirs))
    return Row(f"{what}: memory added", grown, "MB", peer, theirs_grown, "at most 0.5")


def _classify(n_rows: int, folder: Path) -> tuple[float, float]:
    with (folder / "classifier.pickle").open("rb") as file:
        classifier = pickle.load(file)
    X = np.load(folder / "features.npy", mmap_mode="r")[:n_rows]
    classifier.predict(np.array(X[:_N_WARM]))
    times, spent = [], 0.0
    while spent < _LEAST_SECONDS:
        start = time.process_time()
        classifier.predict(X)
        times.append(time.process_time() - start)
        spent += times[-1]
    # Not the best: the fewest rows have hundreds of times to choose it from, a million one.
    return median(times) / n_rows, _peak()


def _added(size: int, mode: str) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, size if mode in ("ranks", "matrix") else 1, 64), "f4")
    pairs = np.column_stack([np.arange(size), rng.permutation(size)])
    names = {f"thing {number}": [f"thing {number}"] for number in range(size)}
    templates = tuple(f"image {number} of a {{}}" for number in range(_N_TEMPLATES))
    retrieval_report(image[:1], text[:1], np.zeros((1, 2), int))
    before, start = _peak(), time.process_time()
    if mode == "ranks":
        retrieval_report(image, text, pairs)
    elif mode == "matrix":
        scores = image @ text.T
        own = scores[pairs[:, 0], pairs[:, 1]]
        (
            (scores >= own[:, None]).sum(axis=1),
            (scores >= own[np.argsort(pairs[:, 1])]).sum(axis=0),
        )
    elif mode == "labels":
        embed_labels(_StandIn(), names, templates)
    else:
        prompts = [template.replace("{}", name) for name in names for template in templates]
        embeddings = _StandIn().transform_text(prompts).reshape(size, _N_TEMPLATES, -1)
        means = embeddings.mean(axis=1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    return (time.process_time() - start) / size, _peak() - before


class _StandIn:
    """An aligner whose embeddings are as large as real ones, and say nothing."""

    fingerprint_ = "stand-in"
    n_components_ = _LABEL_WIDTH

    def transform_text(self, texts: list[str]) -> np.ndarray:
        rng = np.random.default_rng(list(texts[0].encode()))
        return rng.standard_normal((len(texts), _LABEL_WIDTH), dtype=np.float32)


def _peak() -> float:
    # Not getrusage: its peak is also that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--quick"]
    if not arguments:
        show(measure("--quick" in sys.argv))
    elif arguments[0] == "classify":
        print(*_classify(int(arguments[1]), Path(arguments[2])))
    else:
        print(*_added(int(arguments[1]), arguments[0]))
