"""Share out pairs among labels by their scores, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ._checks import row_tiles

_SPARE = 64


class Choice(NamedTuple):
    """Pairs in the order in which they were chosen, and the labels they were chosen for."""

    pairs: np.ndarray
    labels: np.ndarray


class Scores(NamedTuple):
    """Scores of pairs with labels, a tile at a time; -inf where a pair must not be chosen."""

    n_pairs: int
    n_labels: int
    of: Callable[[np.ndarray], np.ndarray]


def best_first(
    scores: Scores, order: np.ndarray, groups: np.ndarray, most: int, per_label: int
) -> Choice:
    """Choose pairs by their score with their best label."""
    best = np.empty(scores.n_pairs, dtype=np.intp)
    value = np.empty(scores.n_pairs, dtype=np.float32)
    for tile in row_tiles(scores.n_pairs, scores.n_labels):
        part = scores.of(order[tile])
        best[tile] = part.argmax(axis=1)
        value[tile] = part[np.arange(len(part)), best[tile]]
    pairs: list[int] = []
    labels: list[int] = []
    room = np.full(scores.n_labels, per_label)
    used: set[int] = set()
    for place in np.argsort(-value, kind="stable").tolist():
        if len(pairs) == most or value[place] == -np.inf:
            break
        pair, label = int(order[place]), int(best[place])
        if room[label] and groups[pair] not in used:
            used.add(groups[pair])
            room[label] -= 1
            pairs.append(pair)
            labels.append(label)
    return Choice(np.array(pairs, dtype=np.intp), np.array(labels, dtype=np.intp))


def in_turns(choice: Choice) -> Choice:
    """Order a choice by rounds: first the first pair of every label, then the second ones."""
    by_label = np.argsort(choice.labels, kind="stable")
    counts = np.bincount(choice.labels)
    rounds = np.empty(len(by_label), dtype=np.intp)
    rounds[by_label] = np.arange(len(by_label)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(rounds, kind="stable")
    return Choice(choice.pairs[order], choice.labels[order])


def round_robin(
    scores: Scores, order: np.ndarray, groups: np.ndarray, most: int, per_label: int
) -> Choice:
    """Let the labels take turns: in each round every label gets the best pair still free."""
    rounds = min(per_label, -(-most // scores.n_labels))
    depth = min(scores.n_pairs, 2 * rounds + _SPARE)
    while True:
        try:
            return _take_turns(_candidates(scores, order, depth), scores, groups, most, per_label)
        except _TooShallow:
            depth = min(scores.n_pairs, 4 * depth)


class _TooShallow(Exception):
    """A label's list of candidates came to its end, and there are more."""


class _Candidates(NamedTuple):
    """The best pairs of each label, best first: both of shape (n_labels, depth)."""

    pairs: np.ndarray
    values: np.ndarray


def _candidates(scores: Scores, order: np.ndarray, depth: int) -> _Candidates:
    places = np.empty((scores.n_labels, 0), dtype=np.intp)
    values = np.empty((scores.n_labels, 0), dtype=np.float32)
    for tile in row_tiles(scores.n_pairs, scores.n_labels):
        part = scores.of(order[tile]).T
        here = np.broadcast_to(np.arange(tile.start, tile.stop), part.shape)
        values = np.concatenate([values, part], axis=1)
        places = np.concatenate([places, here], axis=1)
        # By value, then by place: ties go by `order`, whatever the tiles.
        kept = np.argsort(-values, axis=1, kind="stable")[:, :depth]
        values = np.take_along_axis(values, kept, axis=1)
        places = np.take_along_axis(places, kept, axis=1)
    return _Candidates(order[places], values)


def _take_turns(
    candidates: _Candidates, scores: Scores, groups: np.ndarray, most: int, per_label: int
) -> Choice:
    used: set[int] = set()
    depth = candidates.pairs.shape[1]
    feeds = [_feed(candidates, label, groups, used) for label in range(scores.n_labels)]
    pairs: list[int] = []
    labels: list[int] = []
    open_labels = list(range(scores.n_labels))
    for _ in range(per_label):
        waiting = []
        for label in open_labels:
            offer = next(feeds[label], None)
            if offer is not None:
                waiting.append((-offer[0], label, offer[1]))
            elif depth < scores.n_pairs and candidates.values[label, -1] > -np.inf:
                raise _TooShallow
        heapq.heapify(waiting)
        open_labels = []
        while waiting and len(pairs) < most:
            _, label, pair = heapq.heappop(waiting)
            if groups[pair] not in used:
                used.add(groups[pair])
                pairs.append(pair)
                labels.append(label)
                open_labels.append(label)
                continue
            offer = next(feeds[label], None)  # another label was before it
            if offer is not None:
                heapq.heappush(waiting, (-offer[0], label, offer[1]))
            elif depth < scores.n_pairs and candidates.values[label, -1] > -np.inf:
                raise _TooShallow
        if len(pairs) == most or not open_labels:
            break
    return Choice(np.array(pairs, dtype=np.intp), np.array(labels, dtype=np.intp))


def _feed(
    candidates: _Candidates, label: int, groups: np.ndarray, used: set[int]
) -> Iterator[tuple[float, int]]:
    """Yield the pairs of a label that are free when it is asked, best first."""
    for value, pair in zip(
        candidates.values[label].tolist(), candidates.pairs[label].tolist(), strict=True
    ):
        if value == -np.inf:
            return
        if groups[pair] not in used:
            yield value, pair
