"""The figures, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import plan
from .methods import COSINE, KERNEL
from .report import Measurements, curve


def draw(rows: Iterable[dict[str, str]], letters: str, folder: Path) -> None:
    """Write a PNG for every table that has one and has rows."""
    try:
        import matplotlib
    except ImportError:
        print("\nNo figures, since matplotlib is not installed: pip install matplotlib")
        return
    matplotlib.use("Agg")
    found = Measurements(rows)
    for letter, plot in PLOTS.items():
        if letter in letters:
            figure = plot(found)
            if figure is not None:
                file = folder / f"accuracy_{letter}.png"
                figure.savefig(file, dpi=120)
                print(f"wrote {file}")


def _axes(n: int, **kwargs: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * n, 4), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, n, **kwargs))


def _tick(axis: Any, sizes: Iterable[int]) -> None:
    """Label these sizes and no powers of ten between."""
    axis.set_xticks(sorted(sizes), labels=map(str, sorted(sizes)))
    axis.set_xticks([], minor=True)


def _sample_efficiency(found: Measurements) -> Any:
    """Draw the paper's two plots: accuracy against pairs, and against seconds."""
    figure, (by_pairs, by_seconds) = _axes(2, sharey=True)
    ticks: set[int] = set()
    for name in plan.SAMPLE_EFFICIENCY:
        points = {}
        for row in found.rows:
            is_size = row["setting"].split(", ")[0] == plan.ON_CLIP_ART
            if is_size and row["fit"] == name and row["n_pairs"]:
                points[row["setting"]] = int(row["n_pairs"])
        where = {"fit": name, "test": plan.STAMPS, "scores": COSINE}
        settings = sorted(points, key=points.__getitem__)
        if not settings:
            continue
        recall = [found.values("i2t@1", setting=setting, **where) for setting in settings]
        mean = [values.mean() for values in recall]
        spread = [values.std(ddof=1) if len(values) > 1 else 0 for values in recall]
        seconds = [max(0.01, found.mean("seconds", setting=s, **where)) for s in settings]
        pairs = [points[setting] for setting in settings]
        # The default often is the kernel ridge map: both are to be seen.
        style = "--" if name == KERNEL else "-"
        by_pairs.errorbar(pairs, mean, spread, ls=style, marker="o", capsize=2, label=name)
        by_seconds.plot(seconds, mean, ls=style, marker="o", label=name)
        ticks |= set(pairs)
    if not ticks:
        return None
    by_pairs.set(xscale="log", xlabel="pairs", ylabel="zero-shot top-1 on stamps, %")
    _tick(by_pairs, ticks)
    by_seconds.set(xscale="log", xlabel="seconds of the fit, CPU")
    by_pairs.legend(fontsize="small")
    return figure


def _overfitting(found: Measurements) -> Any:
    figure, axes = _axes(len(plan.OVERFITTING), sharey=True)
    drawn = False
    for name, axis in zip(plan.OVERFITTING, axes, strict=True):
        for test in ("training pairs", "held-out pairs"):
            steps, recall = curve(found, name, test)
            drawn = drawn or bool(len(steps))
            axis.plot(steps, recall, label=test)
        axis.set(title=name, xlabel="epoch")
    axes[0].set_ylabel("recall@1, mean of both directions, %")
    axes[0].legend(fontsize="small")
    return figure if drawn else None


def _depth(found: Measurements) -> Any:
    figure, (axis,) = _axes(1)
    drawn = False
    for kind in plan.DEPTH_HEADS:
        here = {"setting": plan.BY_DEPTH, "fit": kind}
        depths = found.values("step", **here)
        if len(depths):
            drawn = True
            score, spread = found.values("score", **here), found.values("spread", **here)
            axis.errorbar(depths, score, spread, marker="o", capsize=2, label=kind)
    axis.set(xlabel="depth", ylabel="recall@1 in folds by concept, %")
    axis.legend(fontsize="small")
    return figure if drawn else None


def _curation(found: Measurements) -> Any:
    figure, axes = _axes(len(plan.CURATION), sharey=True)
    drawn = False
    for name, axis in zip(plan.CURATION, axes, strict=True):
        for way in ("random", "curated"):
            settings = {
                row["setting"]
                for row in found.rows
                if row["fit"] == name and row["setting"].startswith(way)
            }
            sizes = sorted(int(setting.rpartition(", ")[2]) for setting in settings)
            recall = [
                found.values("i2t@1", fit=name, setting=f"{way}, {n}", scores=COSINE)
                for n in sizes
            ]
            spread = [values.std(ddof=1) if len(values) > 1 else 0 for values in recall]
            if sizes:
                drawn = True
                mean = [values.mean() for values in recall]
                axis.errorbar(sizes, mean, spread, marker="o", capsize=2, label=way)
        axis.set(title=name, xlabel="pairs", xscale="log")
        _tick(axis, sizes)
    axes[0].legend(fontsize="small")
    axes[0].set_ylabel("zero-shot top-1 on stamps, %")
    return figure if drawn else None


PLOTS = {"B": _sample_efficiency, "D": _overfitting, "E": _depth, "G": _curation}
