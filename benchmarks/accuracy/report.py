"""The tables, printed and as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import plan
from .methods import APE, COSINE, LIT, METHODS, STANDARDISED

BOTH = ("i2t@1", "t2i@1")
ALL_FOUR = ("i2t@1", "i2t@5", "t2i@1", "t2i@5")
HELD_OUT = {
    plan.ON_MOST_EMOJI: "emoji, held-out concepts",
    plan.ON_MOST_FOLDERS: "clip art, held-out folders",
}


class Table(NamedTuple):
    """A table as it is printed, with remarks below it."""

    letter: str
    title: str
    header: list[str]
    rows: list[list[str]]
    remarks: list[str]


class Measurements:
    """Statistics over seeds of the rows of the CSV file.

    Parameters
    ----------
    rows : iterable of dict
        Rows of the CSV file.
    """

    def __init__(self, rows: Iterable[dict[str, str]]) -> None:
        self.rows = list(rows)

    def select(self, **where: object) -> list[dict[str, str]]:
        """Return the rows whose columns equal `where`."""
        return [row for row in self.rows if all(row[k] == str(v) for k, v in where.items())]

    def values(self, column: str, **where: object) -> np.ndarray:
        """Return the values of a column in the rows whose columns equal `where`."""
        cells = [row[column] for row in self.select(**where)]
        return np.array([float(cell) for cell in cells if cell])

    def mean(self, column: str, **where: object) -> float:
        """Return the mean over seeds, NaN if there are no rows."""
        values = self.values(column, **where)
        return float(values.mean()) if len(values) else float("nan")

    def cell(self, columns: Sequence[str], digits: int = 1, **where: object) -> str:
        """Return "mean ± standard deviation" over seeds for each column, joined by slashes."""
        cells = []
        for column in columns:
            values = self.values(column, **where)
            if not len(values):
                return ""
            std = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{std}")
        return " / ".join(cells)

    def seconds(self, **where: object) -> str:
        """Return the minimum over seeds, since other work can only slow a fit down."""
        values = self.values("seconds", **where)
        return f"{values.min():.1f}" if len(values) else ""

    def note(self, **where: object) -> str:
        """Return the note of the first seed."""
        rows = self.select(**where)
        return rows[0]["note"] if rows else ""

    def has(self, **where: object) -> bool:
        """Return whether there is a row whose columns equal `where`."""
        return bool(self.select(**where))


def _make_method_table(measurements: Measurements) -> Table:
    header = ["method", "stamps i2t@1", "i2t@5", "t2i@1", "t2i@5", "standardised: i2t@1 / t2i@1"]
    for test in HELD_OUT.values():
        header += [f"{test}: i2t@1 / t2i@1", "standardised"]
    header += ["seconds", "parameters (trained or stored)", "seeds", "note"]
    rows = []
    for name in METHODS:
        where = {"fit": name, "setting": plan.ON_CLIP_ART, "test": plan.STAMPS}
        row = [name, *(measurements.cell([c], scores=COSINE, **where) for c in ALL_FOUR)]
        row.append(measurements.cell(BOTH, scores=STANDARDISED, **where))
        for setting, test in HELD_OUT.items():
            held_out_where = {"fit": name, "setting": setting, "test": test}
            row += [
                measurements.cell(BOTH, scores=s, **held_out_where) for s in (COSINE, STANDARDISED)
            ]
        if any(row[1:]):
            row.append(measurements.seconds(scores=COSINE, **where))
            row.append(measurements.cell(["parameters"], 0, scores=COSINE, **where).split(" ±")[0])
            row.append(str(len(measurements.values("i2t@1", scores=COSINE, **where))))
            rows.append([*row, measurements.note(**where)])
    title = (
        "Zero-shot recall in %, image → caption (i2t) and caption → image (t2i). Stamps: "
        "trained on Open Clip Art. Held-out columns: trained on the rest of the same collection."
    )
    return Table("A", title, header, rows, [])


def _find_sizes(measurements: Measurements) -> list[tuple[str, int]]:
    """Return the settings of clip art and their numbers of pairs, in ascending order."""
    sizes = {
        row["setting"]: int(row["n_pairs"])
        for row in measurements.rows
        if row["setting"].startswith(plan.ON_CLIP_ART)
        and row["setting"] != plan.ON_MOST_FOLDERS
        and row["n_pairs"]
    }
    return sorted(sizes.items(), key=lambda item: item[1])


def _make_sample_efficiency_table(measurements: Measurements) -> Table:
    header = ["method", "pairs", "i2t@1", "t2i@1", "standardised: i2t@1 / t2i@1", "seconds"]
    rows = []
    for name in plan.SAMPLE_EFFICIENCY:
        for setting, n in _find_sizes(measurements):
            where = {"fit": name, "setting": setting, "test": plan.STAMPS}
            row = [name, str(n), *(measurements.cell([c], scores=COSINE, **where) for c in BOTH)]
            row.append(measurements.cell(BOTH, scores=STANDARDISED, **where))
            row.append(measurements.seconds(scores=COSINE, **where))
            if any(row[2:]):
                rows.append(row)
    return Table("B", "Sample efficiency: Open Clip Art pairs, tested on stamps", header, rows, [])


def _make_cost_table(measurements: Measurements) -> Table:
    columns = {"parameters": 0, "seconds": 1, "peak_mb": 0, "added_mb": 0}
    header = [
        "method",
        "parameters (trained or stored)",
        "seconds",
        "peak MB",
        "MB added by the fit",
    ]
    header += ["stamps i2t@1 / t2i@1"]
    # Only the first seed is run in a separate process.
    where = {"setting": plan.ON_CLIP_ART, "test": plan.STAMPS, "scores": COSINE, "seed": 0}
    lit = {column: measurements.mean(column, fit=LIT, **where) for column in columns}
    rows = []
    for name in plan.COST:
        if not measurements.has(fit=name, **where):
            continue
        cells = [
            measurements.cell([c], digits, fit=name, **where) for c, digits in columns.items()
        ]
        rows.append([name, *cells, measurements.cell(BOTH, fit=name, **where)])
        if name != LIT and not np.isnan(lit["seconds"]):
            ratios = [measurements.mean(c, fit=name, **where) / lit[c] for c in columns]
            rows.append([f"{name}, ratio to LiT", *(f"{ratio:.3f}" for ratio in ratios), ""])
    remarks = ["APE (init=None) trains all of its parameters; closed-form aligners store theirs."]
    return Table("C", "Cost of a fit on all Open Clip Art pairs, in a separate process",
                 header, rows, remarks)  # fmt: skip


def _make_overfitting_table(measurements: Measurements) -> Table:
    header = [
        "method",
        "epochs",
        "pairs",
        "best epoch",
        "recall at the best epoch",
        "recall at the last epoch",
    ]
    rows = []
    for name in plan.OVERFITTING:
        for test in ("training pairs", "held-out pairs"):
            steps, recall = read_recall_curve(measurements, name, test)
            if not len(steps):
                continue
            best = int(recall.argmax())
            cells = (f"{recall[best]:.1f}", f"{recall[-1]:.1f}")
            rows.append([name, str(steps[-1]), test, str(steps[best]), *cells])
    title = "Overfitting: mean recall@1 of both directions by epoch, on 80 % of OpenMoji"
    return Table("D", title, header, rows, ["The CSV file and the figure show every epoch."])


def read_recall_curve(
    measurements: Measurements, name: str, test: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and the mean recall@1 of both directions after each."""
    where = {"fit": name, "setting": plan.BY_EPOCH, "test": test, "seed": 0}
    recall = np.mean([measurements.values(column, **where) for column in BOTH], axis=0)
    return measurements.values("step", **where).astype(int), recall


def _make_depth_table(measurements: Measurements) -> Table:
    where = {"setting": plan.BY_DEPTH}
    depths = sorted(set(measurements.values("step", **where).astype(int)))
    rows = []
    for kind in plan.DEPTH_HEADS:
        cells = []
        for depth in depths:
            cell_where = where | {"fit": kind, "step": depth}
            score, std = (
                measurements.mean("score", **cell_where),
                measurements.mean("std", **cell_where),
            )
            cells.append("" if np.isnan(score) else f"{score:.1f} ± {std:.1f}")
        if any(cells):
            rows.append([kind, *cells])
    title = "Depth × kind of head: GridSearchCV of APEAligner(init=None) on OpenMoji, score in %"
    remarks = (
        ["Mean ± standard deviation over folds. " + measurements.note(**where)] if rows else []
    )
    return Table("E", title, ["head", *(f"depth {depth}" for depth in depths)], rows, remarks)


SHIFTS = (
    (plan.ON_CLIP_ART, plan.STAMPS),
    (plan.ON_CLIP_ART, plan.PHOTOGRAPHS),
    (plan.ON_CLIP_ART, plan.DRAWINGS),
    (plan.ON_CLIP_ART, "emoji"),
    (plan.ON_EMOJI, plan.STAMPS),
    (plan.ON_EMOJI, plan.PHOTOGRAPHS),
    (plan.ON_EMOJI, "clip art"),
)


def _make_shift_table(measurements: Measurements) -> Table:
    rows = []
    for name in ("chance", *plan.SHIFT):
        for scores in (COSINE, STANDARDISED):
            cells = [
                measurements.cell(BOTH, fit=name, setting=setting, test=test, scores=scores)
                for setting, test in SHIFTS
            ]
            if any(cells):
                rows.append([name, scores, *cells])
    header = ["method", "scores", *(f"{setting} → {test}" for setting, test in SHIFTS)]
    remarks = [
        "Stamps with many distinct colours that are not in a cartoon folder count as photographs. "
        "The candidates are the captions of the test images."
    ]
    title = "Distribution shift: i2t@1 / t2i@1, trained on → tested on"
    return Table("F", title, header, rows, remarks)


def _make_curation_table(measurements: Measurements) -> Table:
    settings = {row["setting"] for row in measurements.rows if "G" in row["table"]}
    sizes = sorted({int(setting.rpartition(", ")[2]) for setting in settings})
    rows = []
    for name in plan.CURATION:
        for selection in ("random", "curated"):
            cells = [
                measurements.cell(
                    BOTH, fit=name, setting=f"{selection}, {n}", test=plan.STAMPS, scores=COSINE
                )
                for n in sizes
            ]
            if any(cells):
                rows.append([name, selection, *cells])
    header = ["method", "selection", *map(str, sizes)]
    title = "Curated against random pairs of Open Clip Art: i2t@1 / t2i@1 on stamps"
    return Table("G", title, header, rows, [])


def _make_lit_table(measurements: Measurements) -> Table:
    """Compare LiT with the default aligner wherever both were run."""
    rows = []
    comparisons = [(setting, plan.STAMPS) for setting, _ in _find_sizes(measurements)]
    comparisons += [(plan.ON_MOST_EMOJI, HELD_OUT[plan.ON_MOST_EMOJI])]
    comparisons += [(plan.ON_MOST_FOLDERS, HELD_OUT[plan.ON_MOST_FOLDERS])]
    comparisons += [
        (setting, test)
        for setting, test in SHIFTS
        if test != plan.STAMPS or setting == plan.ON_EMOJI
    ]
    for setting, test in comparisons:
        means = [
            np.mean([measurements.mean(c, fit=name, setting=setting, test=test, scores=COSINE)
                     for c in BOTH])
            for name in (APE, LIT)
        ]  # fmt: skip
        rows.append([f"{setting} → {test}", *means])
    _, recall = read_recall_curve(measurements, LIT, "held-out pairs")
    if len(recall):
        name = f"{plan.ON_MOST_EMOJI}, best of {len(recall)} epochs of LiT on the test set"
        where = {"setting": plan.ON_MOST_EMOJI, "scores": COSINE, "seed": 0, "fit": APE}
        best = np.mean([measurements.mean(column, **where) for column in BOTH])
        rows.append([name, best, recall.max()])
    rows = [row for row in rows if not np.isnan(row[1:]).any()]
    lit_wins = [str(name) for name, ape, lit in rows if lit > ape]
    if not rows:
        verdict = "No setting has rows of both methods."
    elif lit_wins:
        verdict = "LiT is better than the default on: " + "; ".join(lit_wins) + "."
    else:
        verdict = "LiT is not better than the default in any setting."
    cells = [[name, f"{ape:.1f}", f"{lit:.1f}", f"{lit - ape:+.1f}"] for name, ape, lit in rows]
    header = ["trained on → tested on", APE, LIT, "LiT - APE"]
    title = "LiT and the default aligner: mean recall@1 of both directions"
    remarks = [
        verdict,
        "Scores are cosines. LiT is trained for few epochs; see its notes in the CSV file.",
    ]
    return Table("H", title, header, cells, remarks)


TABLE_MAKERS: dict[str, Callable[[Measurements], Table]] = {
    "A": _make_method_table,
    "B": _make_sample_efficiency_table,
    "C": _make_cost_table,
    "D": _make_overfitting_table,
    "E": _make_depth_table,
    "F": _make_shift_table,
    "G": _make_curation_table,
    "H": _make_lit_table,
}


def write_tables(rows: Iterable[dict[str, str]], letters: str, folder: Path) -> None:
    """Print the tables that have rows and write each to a CSV file."""
    measurements = Measurements(rows)
    for letter in letters:
        table = TABLE_MAKERS[letter](measurements)
        if not table.rows:
            continue
        print(f"\n{letter}. {table.title}\n")
        print(format_table(table))
        with (folder / f"accuracy_{letter}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([table.header, *table.rows])


def format_table(table: Table) -> str:
    """Return a Markdown table with aligned columns, and the remarks below it."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    lines.insert(1, ["-" * width for width in widths])
    formatted = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([*formatted, *(["", *table.remarks] if table.remarks else [])])
