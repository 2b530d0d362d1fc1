"""Recall by number of training pairs, on icon sets that were not trained on.

    python -m benchmarks.scale PACKAGE [--sizes 1000 4000 16000] [--methods METHOD ...] [--all]

PACKAGE is the folder of the unpacked npm package @iconify/json. Whole sets are held out: icons of
one set have a style in common, and most concepts occur in many sets. Icons are rendered and
encoded in bfloat16 once, and their features are kept in the folder of --cache, so that a run that
was killed continues. Every fit runs in a process of its own.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, KernelAligner
from sklearn_ape.datasets import load_iconify
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

from ._results import RESULTS, Results

# Drawings in color, of maps, of medicine, flat, of games, and by hand.
TEST_SETS = (
    *("twemoji", "temaki", "healthicons", "flat-color-icons", "game-icons"),
    "streamline-freehand-color",
)
# Sets by the same authors as a test set, or copies of it.
_RELATED_SETS = ("streamline-freehand", "streamline-kameleon-color")
_MAX_TEST_ICONS = 1000

DEPTHS = (1, 2, 4, 6)

# Functions of a seed that return an aligner.
METHODS: dict[str, Any] = {
    "ape": lambda seed: APEAligner(random_state=seed),
    "kernel": lambda seed: KernelAligner(random_state=seed),
    "asif": lambda seed: ASIFAligner(),
    "cca": lambda seed: CCAAligner(),
} | {
    f"head-{depth}": lambda seed, depth=depth: APEAligner(
        init=None, depth=depth, random_state=seed
    )
    for depth in DEPTHS
}
LABELS = {
    "ape": "APEAligner()",
    "kernel": "KernelAligner()",
    "asif": "ASIFAligner()",
    "cca": "CCAAligner()",
} | {f"head-{depth}": f"APEAligner(init=None, depth={depth})" for depth in DEPTHS}

COLUMNS = (
    *("method", "n_pairs", "seed", "test_set", "image_to_text", "text_to_image"),
    *("seconds", "summary"),
)


def load_features(
    package: str, cache: Path, loads_all: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image features, text features and the set of every icon."""
    options = {"variants": True, "categories": "all"} if loads_all else {}
    data = load_iconify(package, n_jobs=-1, verbose=1, **options)
    image_encoder = TimmImageEncoder(
        "efficientnet_lite0",
        pooling="gem",
        crop="pad",
        dtype="bfloat16",
        cache=cache,
        verbose=1,
    )
    text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=cache, verbose=1)
    image = image_encoder.transform(data.images)
    captions = sorted(set(data.captions))
    text = text_encoder.transform(captions)
    rows = {caption: row for row, caption in enumerate(captions)}
    return image, text[[rows[caption] for caption in data.captions]], data.sets


def measure(
    method: str, train: tuple[Any, Any], tests: dict[str, tuple[Any, Any]], seed: int
) -> list[dict[str, Any]]:
    """Return one row per test set."""
    aligner = METHODS[method](seed)
    start = time.perf_counter()
    aligner.fit(*train)
    seconds = time.perf_counter() - start
    rows = []
    for name, (image, text) in tests.items():
        report = aligner.retrieval_report(image, text, (1,))
        rows.append(
            {
                "method": method,
                "n_pairs": len(train[0]),
                "seed": seed,
                "test_set": name,
                **{direction: f"{100 * recall[1]:.1f}" for direction, recall in report.items()},
                "seconds": f"{seconds:.0f}",
                "summary": aligner.training_summary_ if method == "ape" else "",
            }
        )
    return rows


def print_table(results: Results) -> None:
    """Print the mean recall over test sets and directions by method and number of pairs."""
    sizes = sorted({int(row["n_pairs"]) for row in results.rows})
    print("| method |" + "".join(f" {size:,} |" for size in sizes))
    print("|---|" + "---|" * len(sizes))
    for method in METHODS:
        cells = []
        for size in sizes:
            rows = [
                row
                for row in results.rows
                if row["method"] == method and int(row["n_pairs"]) == size
            ]
            values = [
                float(row[key]) for row in rows for key in ("image_to_text", "text_to_image")
            ]
            cells.append(f"{np.mean(values):.1f} ({rows[0]['seconds']} s)" if rows else "")
        if any(cells):
            print(f"| `{LABELS[method]}` | " + " | ".join(cells) + " |")


def plot_recall(results: Results, path: Path) -> None:
    """Plot the mean recall over test sets, directions and seeds by number of pairs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for method in METHODS:
        rows = [row for row in results.rows if row["method"] == method]
        sizes = sorted({int(row["n_pairs"]) for row in rows})
        means = [
            np.mean(
                [
                    float(row[key])
                    for row in rows
                    if int(row["n_pairs"]) == size
                    for key in ("image_to_text", "text_to_image")
                ]
            )
            for size in sizes
        ]
        if sizes:
            axes.plot(sizes, means, marker="o", label=LABELS[method])
    axes.set(
        xscale="log",
        xlabel="training pairs",
        ylabel="recall@1 on icon sets not trained on (%)",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure what is missing in the file of results, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", help="folder of the unpacked npm package @iconify/json")
    parser.add_argument("--cache", type=Path, default=Path("features-cache"))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of scale.csv")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ape", "kernel"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--all", action="store_true", help="also logos and variants in style; writes scale_all.csv"
    )
    args = parser.parse_args()
    results = Results(args.output / ("scale_all.csv" if args.all else "scale.csv"), COLUMNS)
    done = {(row["method"], row["n_pairs"], row["seed"]) for row in results.rows}
    image, text, sets = load_features(args.package, args.cache, args.all)
    candidates = np.flatnonzero(~np.isin(sets, (*TEST_SETS, *_RELATED_SETS)))
    tests = {}
    for name in TEST_SETS:
        rows = np.flatnonzero(sets == name)[:_MAX_TEST_ICONS]
        tests[name] = image[rows], text[rows]
    for size in args.sizes:
        for seed in range(args.seeds):
            rows = np.sort(np.random.default_rng(seed).permutation(candidates)[:size])
            train = image[rows], text[rows]
            for method in args.methods:
                if (method, str(len(rows)), str(seed)) in done:
                    continue
                # A new process, so that no fit profits from what an earlier one loaded.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    results.append(pool.submit(measure, method, train, tests, seed).result())
                print(method, len(rows), "pairs", flush=True)
    print_table(results)
    plot_recall(results, results.path.with_suffix(".png"))


if __name__ == "__main__":
    main()
