"""Captions of pairs: texts, several texts a pair, or features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..aligners._captions import flat_captions, holds_texts, plain_sequence
from ._checks import float_rows


class CaptionRows(NamedTuple):
    """All captions in one list, and where those of each row begin."""

    n_rows: int
    starts: np.ndarray
    texts: list[str] | None
    features: np.ndarray | None

    def captions_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the captions of some rows, and where each row's begin."""
        counts = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        shift = np.repeat(self.starts[rows] - starts, counts)
        return np.arange(counts.sum()) + shift, starts


def caption_rows(captions: Any) -> CaptionRows:
    """Check captions; every row has at least one."""
    captions = plain_sequence(captions, "captions")
    if holds_texts(captions):
        texts, rows = flat_captions(captions)
        counts = np.bincount(rows, minlength=len(captions))
        return CaptionRows(len(captions), np.concatenate([[0], np.cumsum(counts)]), texts, None)
    features = float_rows(captions, "captions")
    return CaptionRows(len(features), np.arange(len(features) + 1), None, features)


def max_by_row(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the highest values of each row's captions."""
    return values if len(starts) == len(values) else np.maximum.reduceat(values, starts, axis=0)
