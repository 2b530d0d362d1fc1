"""Recall by number of training pairs, on icon sets that were not trained on.

    python -m benchmarks.scale PACKAGE [--sizes 1000 4000 16000] [--methods METHOD ...] [--all]

PACKAGE is the folder of the unpacked npm package @iconify/json. Whole sets are held out: icons of
one set have a style in common, and most concepts occur in many sets. Recall is also computed on
the Tux Paint stamps if they are installed, and on 1,000 of the training pairs. Icons are rendered
and encoded once, and their features are kept in the folder of --cache, so that a run that was
killed continues. Every fit runs in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, KernelAligner, LiTAligner
from sklearn_ape.datasets import load_iconify, load_tuxpaint_stamps
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

from ._process import read_memory
from ._results import RESULTS, Results, make_parser

# Drawings in color, of maps, of medicine, flat, of games, and by hand.
TEST_SETS = (
    *("twemoji", "temaki", "healthicons", "flat-color-icons", "game-icons"),
    "streamline-freehand-color",
)
# Sets by the same authors as a test set, or copies of it.
RELATED_SETS = ("streamline-freehand", "streamline-kameleon-color")
_MAX_TEST_PAIRS = 1000
# Tests beside the sets: another kind of images, and pairs that were trained on.
STAMPS, TRAINING = "stamps", "training pairs"

DEPTHS = (1, 2, 4, 6)

# Functions of a seed that return an aligner.
METHODS: dict[str, Any] = {
    "ape": lambda seed: APEAligner(random_state=seed),
    "kernel": lambda seed: KernelAligner(random_state=seed),
    "asif": lambda seed: ASIFAligner(),
    "cca": lambda seed: CCAAligner(),
    "lit": lambda seed: LiTAligner(
        text_encoder="all-MiniLM-L6-v2",
        batch_size=256,
        max_epochs=6,
        dtype="bfloat16",
        random_state=seed,
    ),
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
    "lit": "LiTAligner(max_epochs=6)",
} | {f"head-{depth}": f"APEAligner(init=None, depth={depth})" for depth in DEPTHS}

COLUMNS = (
    *("method", "n_pairs", "seed", "test_set", "image_to_text", "text_to_image"),
    *("seconds", "peak_mb", "summary"),
)


class Pairs(NamedTuple):
    """Features of images and captions, and the captions themselves."""

    image: np.ndarray
    text: np.ndarray
    captions: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        """Return the pairs of some rows."""
        return Pairs(*(values[rows] for values in self))


def load_features(
    package: str, cache: Path, loads_all: bool
) -> tuple[Pairs, np.ndarray, Pairs | None]:
    """Return the icons, the set of every icon, and the stamps if they are installed."""
    options = {"variants": True, "categories": "all"} if loads_all else {}
    data = load_iconify(package, n_jobs=-1, verbose=1, **options)
    image_encoder = TimmImageEncoder(
        "efficientnet_lite0",
        pooling="gem",
        crop="pad",
        dtype="auto",
        cache=cache,
        verbose=1,
    )
    text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=cache, verbose=1)

    def encode(images: Any, captions: Any) -> Pairs:
        distinct, rows = np.unique(np.asarray(captions, dtype=object), return_inverse=True)
        text = text_encoder.transform(distinct)[rows]
        return Pairs(image_encoder.transform(images), text, distinct[rows])

    try:
        stamps = load_tuxpaint_stamps()
    except ImportError:
        stamps = None
    return (
        encode(data.images, data.captions),
        data.sets,
        None if stamps is None else encode(stamps.images, stamps.captions),
    )


def measure(method: str, train: Pairs, tests: dict[str, Pairs], seed: int) -> list[dict[str, Any]]:
    """Return one row per test set."""
    aligner = METHODS[method](seed)

    def choose_texts(pairs: Pairs) -> np.ndarray:
        return pairs.text if aligner.text_encoder is None else pairs.captions

    start = time.perf_counter()
    aligner.fit(train.image, choose_texts(train))
    seconds = time.perf_counter() - start
    peak = read_memory("VmHWM") / 2**20
    tests = tests | {TRAINING: train.take(np.arange(min(len(train.image), _MAX_TEST_PAIRS)))}
    rows = []
    for name, pairs in tests.items():
        # Equal captions are right answers for each other.
        groups = np.unique(pairs.captions, return_inverse=True)[1]
        report = aligner.retrieval_report(pairs.image, choose_texts(pairs), (1,), groups=groups)
        rows.append(
            {
                "method": method,
                "n_pairs": len(train.image),
                "seed": seed,
                "test_set": name,
                **{direction: f"{100 * recall[1]:.1f}" for direction, recall in report.items()},
                "seconds": f"{seconds:.0f}",
                "peak_mb": f"{peak:.0f}",
                "summary": aligner.training_summary_ if method == "ape" else "",
            }
        )
    return rows


def mean_recall(
    results: Results, method: str, size: int, tests: Collection[str]
) -> tuple[float, float] | None:
    """Return the mean recall over tests, directions and seeds, and the mean number of seconds."""
    rows = [
        row
        for row in results.rows
        if row["method"] == method and int(row["n_pairs"]) == size and row["test_set"] in tests
    ]
    if not rows:
        return None
    values = [float(row[key]) for row in rows for key in ("image_to_text", "text_to_image")]
    return float(np.mean(values)), float(np.mean([float(row["seconds"]) for row in rows]))


def count_pairs(results: Results) -> list[int]:
    """Return the numbers of training pairs with results, sorted."""
    return sorted({int(row["n_pairs"]) for row in results.rows})


def print_table(results: Results, tests: Collection[str]) -> None:
    """Print the mean recall over the tests by method and number of pairs."""
    sizes = count_pairs(results)
    print("| method |" + "".join(f" {size:,} |" for size in sizes))
    print("|---|" + "---|" * len(sizes))
    for method in METHODS:
        means = [mean_recall(results, method, size, tests) for size in sizes]
        if any(means):
            cells = [f"{mean[0]:.1f} ({mean[1]:.0f} s)" if mean else "" for mean in means]
            print(f"| `{LABELS[method]}` | " + " | ".join(cells) + " |")


def plot_recall(results: Results, path: Path) -> None:
    """Plot the mean recall over test sets, directions and seeds by number of pairs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for method in METHODS:
        sizes = count_pairs(results)
        means = {size: mean_recall(results, method, size, TEST_SETS) for size in sizes}
        points = [(size, mean[0]) for size, mean in means.items() if mean]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=LABELS[method])
    axes.set(
        xscale="log",
        xlabel="training pairs",
        ylabel="recall@1 on icon sets not trained on (%)",
        ylim=(0, None),
    )
    axes.set_xticks(count_pairs(results), [f"{size:,}" for size in count_pairs(results)])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure what is missing in the file of results, and print all of it."""
    parser = make_parser("scale", __doc__)
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
    icons, sets, stamps = load_features(args.package, args.cache, args.all)
    candidates = np.flatnonzero(~np.isin(sets, (*TEST_SETS, *RELATED_SETS)))
    tests = {
        name: icons.take(np.flatnonzero(sets == name)[:_MAX_TEST_PAIRS]) for name in TEST_SETS
    }
    if stamps is not None:
        tests[STAMPS] = stamps
    for size in args.sizes:
        for seed in range(args.seeds):
            rows = np.sort(np.random.default_rng(seed).permutation(candidates)[:size])
            for method in args.methods:
                if (method, str(len(rows)), str(seed)) in done:
                    continue
                # A new process, so that no fit profits from what an earlier one loaded.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    task = pool.submit(measure, method, icons.take(rows), tests, seed)
                    results.append(task.result())
                print(method, len(rows), "pairs", flush=True)
    for title, names in (
        ("Mean over the icon sets", TEST_SETS),
        ("Stamps", (STAMPS,)),
        ("Training pairs", (TRAINING,)),
    ):
        print(f"\n{title}: recall@1 in %\n")
        print_table(results, names)
    plot_recall(results, results.path.with_suffix(".png"))


if __name__ == "__main__":
    main()
