"""The figures, drawn if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import plan
from .methods import COSINE, KERNEL
from .report import Measurements, read_recall_curve


def draw_figures(rows: Iterable[dict[str, str]], letters: str, folder: Path) -> None:
    """Write a PNG file for every table that has a figure and rows."""
    try:
        import matplotlib
    except ImportError:
        print("\nNo figures were drawn: matplotlib is not installed. Run: pip install matplotlib")
        return
    matplotlib.use("Agg")
    measurements = Measurements(rows)
    for letter, plot in PLOTS.items():
        figure = plot(measurements) if letter in letters else None
        if figure is not None:
            path = folder / f"accuracy_{letter}.png"
            figure.savefig(path, dpi=120)
            print(f"Wrote {path}")


def _make_axes(n: int, **kwargs: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * n, 4), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, n, **kwargs))


def _set_ticks(axis: Any, sizes: Iterable[int]) -> None:
    """Label only the given sizes, not the powers of ten of a log scale."""
    axis.set_xticks(sorted(sizes), labels=map(str, sorted(sizes)))
    axis.set_xticks([], minor=True)


def _plot_sample_efficiency(measurements: Measurements) -> Any:
    """Plot accuracy by number of pairs and by seconds, as in the paper."""
    figure, (by_pairs, by_seconds) = _make_axes(2, sharey=True)
    ticks: set[int] = set()
    for name in plan.SAMPLE_EFFICIENCY:
        points = {}
        for row in measurements.rows:
            is_size = row["setting"].split(", ")[0] == plan.ON_CLIP_ART
            if is_size and row["fit"] == name and row["n_pairs"]:
                points[row["setting"]] = int(row["n_pairs"])
        where = {"fit": name, "test": plan.STAMPS, "scores": COSINE}
        settings = sorted(points, key=points.__getitem__)
        if not settings:
            continue
        recall = [measurements.values("i2t@1", setting=setting, **where) for setting in settings]
        mean = [values.mean() for values in recall]
        std = [values.std(ddof=1) if len(values) > 1 else 0 for values in recall]
        seconds = [max(0.01, measurements.mean("seconds", setting=s, **where)) for s in settings]
        pairs = [points[setting] for setting in settings]
        # Dashed, since the default aligner often equals kernel ridge and hides its line.
        style = "--" if name == KERNEL else "-"
        by_pairs.errorbar(pairs, mean, std, ls=style, marker="o", capsize=2, label=name)
        by_seconds.plot(seconds, mean, ls=style, marker="o", label=name)
        ticks |= set(pairs)
    if not ticks:
        return None
    by_pairs.set(xscale="log", xlabel="pairs", ylabel="zero-shot top-1 on stamps, %")
    _set_ticks(by_pairs, ticks)
    by_seconds.set(xscale="log", xlabel="seconds of the fit, CPU")
    by_pairs.legend(fontsize="small")
    return figure


def _plot_overfitting(measurements: Measurements) -> Any:
    figure, axes = _make_axes(len(plan.OVERFITTING), sharey=True)
    has_rows = False
    for name, axis in zip(plan.OVERFITTING, axes, strict=True):
        for test in ("training pairs", "held-out pairs"):
            steps, recall = read_recall_curve(measurements, name, test)
            has_rows = has_rows or bool(len(steps))
            axis.plot(steps, recall, label=test)
        axis.set(title=name, xlabel="epoch")
    axes[0].set_ylabel("recall@1, mean of both directions, %")
    axes[0].legend(fontsize="small")
    return figure if has_rows else None


def _plot_depth(measurements: Measurements) -> Any:
    figure, (axis,) = _make_axes(1)
    has_rows = False
    for kind in plan.DEPTH_HEADS:
        where = {"setting": plan.BY_DEPTH, "fit": kind}
        depths = measurements.values("step", **where)
        if len(depths):
            has_rows = True
            score, std = measurements.values("score", **where), measurements.values("std", **where)
            axis.errorbar(depths, score, std, marker="o", capsize=2, label=kind)
    axis.set(xlabel="depth", ylabel="recall@1 in folds by concept, %")
    axis.legend(fontsize="small")
    return figure if has_rows else None


def _plot_curation(measurements: Measurements) -> Any:
    figure, axes = _make_axes(len(plan.CURATION), sharey=True)
    has_rows = False
    for name, axis in zip(plan.CURATION, axes, strict=True):
        for selection in ("random", "curated"):
            settings = {
                row["setting"]
                for row in measurements.rows
                if row["fit"] == name and row["setting"].startswith(selection)
            }
            sizes = sorted(int(setting.rpartition(", ")[2]) for setting in settings)
            recall = [
                measurements.values("i2t@1", fit=name, setting=f"{selection}, {n}", scores=COSINE)
                for n in sizes
            ]
            std = [values.std(ddof=1) if len(values) > 1 else 0 for values in recall]
            if sizes:
                has_rows = True
                mean = [values.mean() for values in recall]
                axis.errorbar(sizes, mean, std, marker="o", capsize=2, label=selection)
        axis.set(title=name, xlabel="pairs", xscale="log")
        _set_ticks(axis, sizes)
    axes[0].legend(fontsize="small")
    axes[0].set_ylabel("zero-shot top-1 on stamps, %")
    return figure if has_rows else None


PLOTS = {
    "B": _plot_sample_efficiency,
    "D": _plot_overfitting,
    "E": _plot_depth,
    "G": _plot_curation,
}
