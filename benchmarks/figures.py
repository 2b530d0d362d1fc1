"""Figures of the speed, memory and few-label benchmarks, drawn from their published results.

    python -m benchmarks.figures

Reads speed.csv, memory.csv and few_labels.csv in docs/results, and writes a PNG file next to each.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._results import RESULTS, make_parser

Rows = list[dict[str, str]]

_OURS, _PEERS = "tab:blue", "tab:gray"
_ENGINES = {
    "torch": "sklearn_ape, torch",
    "torch bf16": "sklearn_ape, torch, bfloat16",
    "openvino": "sklearn_ape, OpenVINO",
    "openvino float32": "sklearn_ape, OpenVINO",
    "openvino bf16": "sklearn_ape, OpenVINO, bfloat16",
    "onnx": "sklearn_ape, ONNX Runtime",
}
_MEGABYTES = {"MB": 1, "MiB": 2**20 / 1e6}


def read_rows(path: Path) -> Rows:
    """Return the rows of a file of results."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _make_axes(n: int, width: float = 4.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n, 3.6), layout="constrained")
    return figure, figure.subplots(1, n)


def read_speeds(rows: Rows, kind: str) -> dict[str, float]:
    """Return the items encoded per second by method; `kind` is "images" or "texts"."""
    speeds = {}
    for row in rows:
        match = re.fullmatch(rf"encode {kind},? (.+)", row["name"])
        if match and row["unit"]:
            speeds[row["peer"]] = float(row["peer_value"])
            speeds[_ENGINES[match[1]]] = float(row["value"])
    return dict(sorted(speeds.items(), key=lambda item: item[1]))


def plot_speed(rows: Rows) -> Any:
    """Plot the images and texts encoded per second, by method."""
    figure, axes = _make_axes(2)
    for axis, kind in zip(axes, ("images", "texts"), strict=True):
        speeds = read_speeds(rows, kind)
        colors = [_OURS if name in _ENGINES.values() else _PEERS for name in speeds]
        bars = axis.barh(list(speeds), list(speeds.values()), color=colors)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(title=f"{kind} per second")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def read_memory(rows: Rows, pattern: str, column: str = "value") -> tuple[list[int], list[float]]:
    """Return sizes and megabytes of the matching rows; the group of the pattern is the size."""
    points = {
        int(match[1].replace(",", "")): float(row[column]) * _MEGABYTES[row["unit"]]
        for row in rows
        if (match := re.fullmatch(pattern, row["name"])) and row[column]
    }
    sizes = sorted(points)
    return sizes, [points[size] for size in sizes]


def plot_memory(rows: Rows) -> Any:
    """Plot the memory of the loss by batch size, and that of three tasks by number of rows."""
    figure, (loss, tasks) = _make_axes(2)
    pattern = r"InfoNCE of ([\d,]+) pairs.*: memory added"
    for column, label, color in (
        ("value", "in tiles (sklearn_ape)", _OURS),
        ("peer_value", "all logits at once", _PEERS),
    ):
        loss.plot(*read_memory(rows, pattern, column), marker="o", label=label, color=color)
    loss.set(
        title="memory added by the contrastive loss",
        xlabel="pairs in a batch",
        ylabel="MB",
        xscale="log",
        yscale="log",
    )
    for pattern, label in (
        (r"train on a memory map of ([\d,]+) pairs: resident memory", "train a head"),
        (r"encode_to, ([\d,]+) rows: peak of resident memory", "encode_to"),
        (r"classify ([\d,]+) rows: resident memory", "classify"),
    ):
        tasks.plot(*read_memory(rows, pattern), marker="o", label=label)
    tasks.set(
        title="memory of the process, features on disk",
        xlabel="rows",
        ylabel="MB",
        xscale="log",
        ylim=(0, None),
    )
    for axis in (loss, tasks):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return figure


def plot_few_labels(rows: Rows) -> Any:
    """Plot accuracy by number of labelled images per class, one plot per collection."""
    rows = [row for row in rows if row["table"] == "few labels"]
    collections = list(dict.fromkeys(row["data"] for row in rows))
    methods = sorted({row["method"] for row in rows})
    figure, axes = _make_axes(len(collections), width=3.0)
    for axis, data in zip(axes, collections, strict=True):
        for method in methods:
            points = [row for row in rows if (row["data"], row["method"]) == (data, method)]
            n_images = [int(row["case"]) for row in points]
            accuracies = [float(row["accuracy"]) for row in points]
            axis.plot(n_images, accuracies, marker="o", markersize=4, label=method)
        ticks = sorted({int(row["case"]) for row in rows})
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set_xticks(ticks, labels=map(str, ticks))
        axis.set(title=data, ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy (%)")
    figure.supxlabel("labelled images per class", fontsize="medium")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3)
    return figure


PLOTS: dict[str, Callable[[Rows], Any]] = {
    "speed": plot_speed,
    "memory": plot_memory,
    "few_labels": plot_few_labels,
}


def draw(folder: Path) -> None:
    """Write the figure of each file of results in a folder."""
    for name, plot in PLOTS.items():
        path = folder / f"{name}.csv"
        plot(read_rows(path)).savefig(path.with_suffix(".png"), dpi=120)
        print(f"Wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    make_parser("figures", __doc__).parse_args()
    draw(RESULTS)
