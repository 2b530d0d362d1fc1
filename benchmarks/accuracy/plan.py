"""Fits that the tables need, their order, and the data of each setting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .data import Collections, EvaluationSet, TrainingPairs
from .methods import APE, KERNEL, LIT, METHODS, PLAIN

ON_CLIP_ART = "clip art"
ON_EMOJI = "emoji"
ON_MOST_EMOJI = "emoji 80 %"
ON_MOST_FOLDERS = "clip art 75 %"
BY_EPOCH = "by epoch"
BY_DEPTH = "by depth"
STAMPS, PHOTOGRAPHS, DRAWINGS = "stamps", "stamps: photographs", "stamps: drawings"
SIZES = (250, 500, 1000, 2000)
QUICK_SIZES = (100, 200)

SAMPLE_EFFICIENCY = (APE, PLAIN, LIT, "linear (recipe)", "CCA", "ASIF", KERNEL)
COST = (APE, PLAIN, KERNEL, LIT)
SHIFT = SAMPLE_EFFICIENCY
CURATION = (KERNEL, APE, "CCA")
OVERFITTING = (PLAIN, LIT)
DEPTH_HEADS = ("mlp", "residual", "glu")
# LiT takes minutes with more pairs, so it is run with a single seed there.
MAX_REPEATED_LIT = 500

COLUMNS = (
    "table", "fit", "setting", "seed", "method", "test", "scores", "step", "n_pairs",
    "i2t@1", "i2t@5", "t2i@1", "t2i@5", "score", "std",
    "seconds", "parameters", "epochs", "peak_mb", "added_mb", "note",
)  # fmt: skip


class Task(NamedTuple):
    """A fit: the tables that use it, the method (or kind of head), the setting and the seed."""

    table: str
    fit: str
    setting: str
    seed: int
    isolated: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """Return the columns that identify the fit in the CSV file."""
        return self.fit, self.setting, self.seed


def find_completed_fits(rows: Iterable[Mapping[str, str]]) -> set[tuple[str, str, int]]:
    """Return the keys of the tasks that have rows in the CSV file."""
    return {(row["fit"], row["setting"], int(row["seed"])) for row in rows}


def plan_tasks(tables: str, n_seeds: int, sizes: tuple[int, ...] = SIZES) -> list[Task]:
    """Return the fits of the given tables in the order in which they should be run.

    The first seed comes first and expensive fits are repeated last, so that an interrupted run
    has rows for every table.
    """
    first = sorted(
        _iterate_tasks(0, sizes),
        key=lambda task: _is_expensive(task) and task.setting != ON_CLIP_ART,
    )
    later = [task for seed in range(1, n_seeds) for task in _iterate_tasks(seed, sizes)]
    # Expensive fits within one collection come last.
    later.sort(
        key=lambda task: (_is_expensive(task), _is_expensive(task) and task.setting != ON_CLIP_ART)
    )
    return [task for task in first + later if set(task.table) & set(tables)]


def _is_expensive(task: Task) -> bool:
    return task.fit in METHODS and METHODS[task.fit].expensive


def _iterate_tasks(seed: int, sizes: tuple[int, ...]) -> Iterator[Task]:
    for setting, table in ((ON_CLIP_ART, "ABCFH"), (ON_MOST_EMOJI, "AH"), (ON_MOST_FOLDERS, "A")):
        for name in METHODS:
            if seed and name == LIT and setting != ON_MOST_EMOJI:
                continue
            tables = table if setting != ON_CLIP_ART else _find_tables(name)
            # Memory is measured in a separate process.
            isolated = setting == ON_CLIP_ART and name in COST and not seed
            yield Task(tables, name, setting, seed, isolated)
    for n in sizes:
        for name in SAMPLE_EFFICIENCY:
            if not (seed and name == LIT and n > MAX_REPEATED_LIT):
                yield Task("BH", name, f"{ON_CLIP_ART}, {n}", seed)
    for name in ("chance", *SHIFT):
        if not (seed and name == LIT):
            yield Task("F", name, ON_EMOJI, seed)
    if not seed:
        for name in OVERFITTING:
            yield Task("DH", name, BY_EPOCH, seed)
        for kind in DEPTH_HEADS:
            yield Task("E", kind, BY_DEPTH, seed)
    for n in sizes:
        for selection in ("random", "curated"):
            for name in CURATION:
                yield Task("G", name, f"{selection}, {n}", seed)


def _find_tables(name: str) -> str:
    also = {"B": SAMPLE_EFFICIENCY, "C": COST, "F": SHIFT, "H": (APE, LIT)}
    return "A" + "".join(table for table, names in also.items() if name in names)


@lru_cache(maxsize=2)
def load_setting(
    collections: Collections, setting: str, seed: int
) -> tuple[TrainingPairs, list[EvaluationSet]]:
    """Return the training pairs and test sets of a setting."""
    name, _, number = setting.partition(", ")
    if name == ON_CLIP_ART:
        rows = collections.draw_clip_art_rows(seed)[: int(number) if number else None]
        tests = [_make_stamps(collections)]
        if not number:
            emoji = collections.make_evaluation_set("emoji", collections.emoji)
            tests += [_make_stamps(collections, True), _make_stamps(collections, False), emoji]
        return collections.make_training_pairs(collections.clip_art, rows), tests
    if name == ON_EMOJI:
        tests = [
            _make_stamps(collections),
            _make_stamps(collections, True),
            collections.draw_clip_art_sample(seed),
        ]
        return collections.make_training_pairs(
            collections.emoji, np.arange(len(collections.emoji.captions))
        ), tests
    if name in (ON_MOST_EMOJI, BY_EPOCH):
        train, test = collections.split_emoji(seed)
        held_out = collections.make_evaluation_set(
            "emoji, held-out concepts", collections.emoji, test
        )
        return collections.make_training_pairs(collections.emoji, train), [held_out]
    if name == ON_MOST_FOLDERS:
        train, test = collections.split_folders(seed)
        held_out = collections.make_evaluation_set(
            "clip art, held-out folders", collections.clip_art, test
        )
        return collections.make_training_pairs(collections.clip_art, train), [held_out]
    if name == "curated":
        rows = collections.select_curated_rows(int(number), seed)
    else:
        permutation = np.random.default_rng(seed).permutation(len(collections.clip_art.captions))
        rows = permutation[: int(number)]
    return collections.make_training_pairs(collections.clip_art, rows), [_make_stamps(collections)]


def _make_stamps(collections: Collections, photographs: bool | None = None) -> EvaluationSet:
    if photographs is None:
        return collections.make_evaluation_set(STAMPS, collections.stamps)
    rows = np.flatnonzero(collections.stamps.photographs == photographs)
    return collections.make_evaluation_set(
        PHOTOGRAPHS if photographs else DRAWINGS, collections.stamps, rows
    )
