"""The tables: printed, and as csv files."""

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
    """A table as it is printed; `remarks` stand below it."""

    letter: str
    title: str
    header: list[str]
    rows: list[list[str]]
    remarks: list[str]


class Measurements:
    """The rows of the csv file, to be asked for means over seeds."""

    def __init__(self, rows: Iterable[dict[str, str]]) -> None:
        self.rows = list(rows)

    def values(self, column: str, **where: object) -> np.ndarray:
        """Return the values of a column in the rows that have all of `where`."""
        found = [
            row[column]
            for row in self.rows
            if all(row[key] == str(wanted) for key, wanted in where.items())
        ]
        return np.array([float(value) for value in found if value])

    def mean(self, column: str, **where: object) -> float:
        """Return the mean over seeds, NaN where there is none."""
        values = self.values(column, **where)
        return float(values.mean()) if len(values) else float("nan")

    def cell(self, columns: Sequence[str], digits: int = 1, **where: object) -> str:
        """Return "mean ± standard deviation over seeds" of some columns, with slashes between."""
        parts = []
        for column in columns:
            values = self.values(column, **where)
            if not len(values):
                return ""
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            parts.append(f"{values.mean():.{digits}f}{spread}")
        return " / ".join(parts)

    def seconds(self, **where: object) -> str:
        """Return the least of the seeds: other work slows a fit, nothing speeds it."""
        values = self.values("seconds", **where)
        return f"{values.min():.1f}" if len(values) else ""

    def note(self, **where: object) -> str:
        """Return the note of the first seed."""
        notes = [
            row["note"]
            for row in self.rows
            if all(row[key] == str(wanted) for key, wanted in where.items())
        ]
        return notes[0] if notes else ""

    def has(self, **where: object) -> bool:
        """Say whether there is such a row."""
        return any(all(row[k] == str(v) for k, v in where.items()) for row in self.rows)


def _methods(found: Measurements) -> Table:
    header = ["method", "stamps i2t@1", "i2t@5", "t2i@1", "t2i@5", "standardised: i2t@1 / t2i@1"]
    for test in HELD_OUT.values():
        header += [f"{test}: i2t@1 / t2i@1", "standardised"]
    header += ["seconds", "numbers trained or stored", "seeds", "note"]
    rows = []
    for name in METHODS:
        here = {"fit": name, "setting": plan.ON_CLIP_ART, "test": plan.STAMPS}
        row = [name, *(found.cell([c], scores=COSINE, **here) for c in ALL_FOUR)]
        row.append(found.cell(BOTH, scores=STANDARDISED, **here))
        for setting, test in HELD_OUT.items():
            there = {"fit": name, "setting": setting, "test": test}
            row += [found.cell(BOTH, scores=s, **there) for s in (COSINE, STANDARDISED)]
        if any(row[1:]):
            row.append(found.seconds(scores=COSINE, **here))
            row.append(found.cell(["parameters"], 0, scores=COSINE, **here).split(" ±")[0])
            row.append(str(len(found.values("i2t@1", scores=COSINE, **here))))
            rows.append([*row, found.note(**here)])
    title = (
        "Zero-shot recall in %, image → caption (i2t) and caption → image (t2i). Stamps: "
        "trained on Open Clip Art. Held-out columns: trained on the rest of the same collection."
    )
    return Table("A", title, header, rows, [])


def _sizes(found: Measurements) -> list[tuple[str, int]]:
    """Return the settings of clip art by number of pairs, and these numbers."""
    numbers = {
        row["setting"]: int(row["n_pairs"])
        for row in found.rows
        if row["setting"].startswith(plan.ON_CLIP_ART)
        and row["setting"] != plan.ON_MOST_FOLDERS
        and row["n_pairs"]
    }
    return sorted(numbers.items(), key=lambda item: item[1])


def _sample_efficiency(found: Measurements) -> Table:
    header = ["method", "pairs", "i2t@1", "t2i@1", "standardised: i2t@1 / t2i@1", "seconds"]
    rows = []
    for name in plan.SAMPLE_EFFICIENCY:
        for setting, n in _sizes(found):
            here = {"fit": name, "setting": setting, "test": plan.STAMPS}
            row = [name, str(n), *(found.cell([c], scores=COSINE, **here) for c in BOTH)]
            row.append(found.cell(BOTH, scores=STANDARDISED, **here))
            row.append(found.seconds(scores=COSINE, **here))
            if any(row[2:]):
                rows.append(row)
    return Table("B", "Sample efficiency: Open Clip Art pairs, tested on stamps", header, rows, [])


def _cost(found: Measurements) -> Table:
    columns = {"parameters": 0, "seconds": 1, "peak_mb": 0, "added_mb": 0}
    header = ["method", "numbers trained or stored", "seconds", "peak MB", "of it by the fit"]
    header += ["stamps i2t@1 / t2i@1"]
    # One process of its own each, so the first seed alone.
    here = {"setting": plan.ON_CLIP_ART, "test": plan.STAMPS, "scores": COSINE, "seed": 0}
    of_lit = {column: found.mean(column, fit=LIT, **here) for column in columns}
    rows = []
    for name in plan.COST:
        if not found.has(fit=name, **here):
            continue
        cells = [found.cell([c], digits, fit=name, **here) for c, digits in columns.items()]
        rows.append([name, *cells, found.cell(BOTH, fit=name, **here)])
        if name != LIT and not np.isnan(of_lit["seconds"]):
            shares = [found.mean(c, fit=name, **here) / of_lit[c] for c in columns]
            rows.append([f"{name}, share of LiT", *(f"{share:.3f}" for share in shares), ""])
    remarks = ["APE (init=None): all of its numbers are trained; of closed forms they are stored."]
    return Table("C", "Cost of a fit on all Open Clip Art pairs, in a process of its own",
                 header, rows, remarks)  # fmt: skip


def _overfitting(found: Measurements) -> Table:
    header = ["method", "epochs", "pairs", "best epoch", "recall there", "recall at the end"]
    rows = []
    for name in plan.OVERFITTING:
        for test in ("training pairs", "held-out pairs"):
            steps, recall = curve(found, name, test)
            if not len(steps):
                continue
            best = int(recall.argmax())
            cells = (f"{recall[best]:.1f}", f"{recall[-1]:.1f}")
            rows.append([name, str(steps[-1]), test, str(steps[best]), *cells])
    title = "Overfitting: mean recall@1 of both directions by epoch, on 80 % of OpenMoji"
    return Table("D", title, header, rows, ["Every epoch is in the raw rows and in the figure."])


def curve(found: Measurements, name: str, test: str) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs, and the mean recall@1 of both directions after each."""
    here = {"fit": name, "setting": plan.BY_EPOCH, "test": test, "seed": 0}
    recall = np.mean([found.values(column, **here) for column in BOTH], axis=0)
    return found.values("step", **here).astype(int), recall


def _depth(found: Measurements) -> Table:
    where = {"setting": plan.BY_DEPTH}
    depths = sorted(set(found.values("step", **where).astype(int)))
    rows = []
    for kind in plan.DEPTH_HEADS:
        cells = []
        for depth in depths:
            here = where | {"fit": kind, "step": depth}
            score, spread = found.mean("score", **here), found.mean("spread", **here)
            cells.append("" if np.isnan(score) else f"{score:.1f} ± {spread:.1f}")
        if any(cells):
            rows.append([kind, *cells])
    title = "Depth × kind of head: GridSearchCV of APEAligner(init=None) on OpenMoji, score in %"
    remarks = ["Spread over folds. " + found.note(**where)] if rows else []
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


def _shift(found: Measurements) -> Table:
    rows = []
    for name in ("chance", *plan.SHIFT):
        for scores in (COSINE, STANDARDISED):
            cells = [
                found.cell(BOTH, fit=name, setting=setting, test=test, scores=scores)
                for setting, test in SHIFTS
            ]
            if any(cells):
                rows.append([name, scores, *cells])
    header = ["method", "scores", *(f"{setting} → {test}" for setting, test in SHIFTS)]
    remarks = [
        "A stamp is taken for a photograph when it has many distinct colours and is in no folder "
        "of cartoons; captions to choose from are those of the images tested."
    ]
    title = "Distribution shift: i2t@1 / t2i@1, trained on → tested on"
    return Table("F", title, header, rows, remarks)


def _curation(found: Measurements) -> Table:
    settings = {row["setting"] for row in found.rows if "G" in row["table"]}
    sizes = sorted({int(setting.rpartition(", ")[2]) for setting in settings})
    rows = []
    for name in plan.CURATION:
        for way in ("random", "curated"):
            cells = [
                found.cell(BOTH, fit=name, setting=f"{way}, {n}", test=plan.STAMPS, scores=COSINE)
                for n in sizes
            ]
            if any(cells):
                rows.append([name, way, *cells])
    header = ["method", "pairs chosen", *map(str, sizes)]
    title = "Curated against random pairs of Open Clip Art: i2t@1 / t2i@1 on stamps"
    return Table("G", title, header, rows, [])


def _overtaking(found: Measurements) -> Table:
    """Compare LiT with the default wherever both were run."""
    rows = []
    places = [(setting, plan.STAMPS) for setting, _ in _sizes(found)]
    places += [(plan.ON_MOST_EMOJI, HELD_OUT[plan.ON_MOST_EMOJI])]
    places += [(plan.ON_MOST_FOLDERS, HELD_OUT[plan.ON_MOST_FOLDERS])]
    places += [place for place in SHIFTS if place[1] != plan.STAMPS or place[0] == plan.ON_EMOJI]
    for setting, test in places:
        both = [
            np.mean([found.mean(c, fit=name, setting=setting, test=test, scores=COSINE)
                     for c in BOTH])
            for name in (APE, LIT)
        ]  # fmt: skip
        rows.append([f"{setting} → {test}", *both])
    _, recall = curve(found, LIT, "held-out pairs")
    if len(recall):
        name = f"{plan.ON_MOST_EMOJI}, {len(recall)} epochs of LiT, the best of them on the test"
        where = {"setting": plan.ON_MOST_EMOJI, "scores": COSINE, "seed": 0, "fit": APE}
        best = np.mean([found.mean(column, **where) for column in BOTH])
        rows.append([name, best, recall.max()])
    rows = [row for row in rows if not np.isnan(row[1:]).any()]
    above = [str(place) for place, ape, lit in rows if lit > ape]
    if not rows:
        verdict = "Nothing to compare yet."
    elif above:
        verdict = "LiT is above the default on: " + "; ".join(above) + "."
    else:
        verdict = "LiT does not overtake the default within reach of these runs."
    cells = [[place, f"{ape:.1f}", f"{lit:.1f}", f"{lit - ape:+.1f}"] for place, ape, lit in rows]
    header = ["trained on → tested on", APE, LIT, "LiT less APE"]
    title = "Where LiT overtakes: mean recall@1 of both directions"
    remarks = [verdict, "By cosine. LiT's epochs are few, as its notes in the raw rows say."]
    return Table("H", title, header, cells, remarks)


MAKERS: dict[str, Callable[[Measurements], Table]] = {
    "A": _methods,
    "B": _sample_efficiency,
    "C": _cost,
    "D": _overfitting,
    "E": _depth,
    "F": _shift,
    "G": _curation,
    "H": _overtaking,
}


def report(rows: Iterable[dict[str, str]], letters: str, folder: Path) -> None:
    """Print the tables that have rows and write each to a csv file."""
    found = Measurements(rows)
    for letter in letters:
        table = MAKERS[letter](found)
        if not table.rows:
            continue
        print(f"\n{letter}. {table.title}\n")
        print(as_text(table))
        with (folder / f"accuracy_{letter}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([table.header, *table.rows])


def as_text(table: Table) -> str:
    """Return a Markdown table with aligned columns, and the remarks below it."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    lines.insert(1, ["-" * width for width in widths])
    text = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([*text, *(["", *table.remarks] if table.remarks else [])])
