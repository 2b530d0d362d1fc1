"""Which fits the tables need, in which order, and what each is fitted on and tested with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .data import Train, Trial, World
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
# LiT with more pairs than this is run once: it takes minutes.
LARGEST_REPEATED_LIT = 500


class Task(NamedTuple):
    """A fit: what it is for, the method (or kind of head), the setting and the seed."""

    table: str
    fit: str
    setting: str
    seed: int
    isolated: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others, in the csv file as well."""
        return self.fit, self.setting, self.seed


def tasks(tables: str, n_seeds: int, sizes: tuple[int, ...] = SIZES) -> list[Task]:
    """Return the fits of some tables in the order in which they should be run.

    The first seed comes first, and what is dear is repeated last, so that a run that is
    interrupted has something of every table.
    """
    first = sorted(
        _of_seed(0, sizes), key=lambda task: _dear(task) and task.setting != ON_CLIP_ART
    )
    later = [task for seed in range(1, n_seeds) for task in _of_seed(seed, sizes)]
    # What is dear, and of the collections that are most like one another, comes last.
    later.sort(key=lambda task: (_dear(task), _dear(task) and task.setting != ON_CLIP_ART))
    return [task for task in first + later if set(task.table) & set(tables)]


def _dear(task: Task) -> bool:
    return task.fit in METHODS and METHODS[task.fit].heavy


def _of_seed(seed: int, sizes: tuple[int, ...]) -> Iterator[Task]:
    for setting, table in ((ON_CLIP_ART, "ABCFH"), (ON_MOST_EMOJI, "AH"), (ON_MOST_FOLDERS, "A")):
        for name in METHODS:
            if seed and name == LIT and setting != ON_MOST_EMOJI:
                continue
            used = table if setting != ON_CLIP_ART else _tables_of(name)
            # Memory is measured in a process of its own.
            isolated = setting == ON_CLIP_ART and name in COST and not seed
            yield Task(used, name, setting, seed, isolated)
    for n in sizes:
        for name in SAMPLE_EFFICIENCY:
            if not (seed and name == LIT and n > LARGEST_REPEATED_LIT):
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
        for way in ("random", "curated"):
            for name in CURATION:
                yield Task("G", name, f"{way}, {n}", seed)


def _tables_of(name: str) -> str:
    also = {"B": SAMPLE_EFFICIENCY, "C": COST, "F": SHIFT, "H": (APE, LIT)}
    return "A" + "".join(table for table, names in also.items() if name in names)


@lru_cache(maxsize=2)
def data_of(world: World, setting: str, seed: int) -> tuple[Train, list[Trial]]:
    """Return what a setting is fitted on and tested with."""
    name, _, number = setting.partition(", ")
    if name == ON_CLIP_ART:
        rows = world.clip_art_rows(seed)[: int(number) if number else None]
        tests = [_stamps(world)]
        if not number:
            emoji = world.test("emoji", world.emoji)
            tests += [_stamps(world, True), _stamps(world, False), emoji]
        return world.train(world.clip_art, rows), tests
    if name == ON_EMOJI:
        tests = [_stamps(world), _stamps(world, True), world.clip_art_sample(seed)]
        return world.train(world.emoji, np.arange(len(world.emoji.captions))), tests
    if name in (ON_MOST_EMOJI, BY_EPOCH):
        train, test = world.emoji_rows(seed)
        held_out = world.test("emoji, held-out concepts", world.emoji, test)
        return world.train(world.emoji, train), [held_out]
    if name == ON_MOST_FOLDERS:
        train, test = world.folder_rows(seed)
        held_out = world.test("clip art, held-out folders", world.clip_art, test)
        return world.train(world.clip_art, train), [held_out]
    if name == "curated":
        rows = world.curated_rows(int(number), seed)
    else:
        everything = np.random.default_rng(seed).permutation(len(world.clip_art.captions))
        rows = everything[: int(number)]
    return world.train(world.clip_art, rows), [_stamps(world)]


def _stamps(world: World, photographs: bool | None = None) -> Trial:
    if photographs is None:
        return world.test(STAMPS, world.stamps)
    rows = np.flatnonzero(world.stamps.photographs == photographs)
    return world.test(PHOTOGRAPHS if photographs else DRAWINGS, world.stamps, rows)
