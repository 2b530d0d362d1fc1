"""Selection of training pairs from large, noisy datasets.

A small set of pairs that match the labels trains a better aligner than the same number of random
pairs. The functions return row numbers, so they can be used with lists, tables and arrays.
"""

from ._quality import (
    PairQuality,
    drop_near_duplicates,
    drop_noisy,
    find_near_duplicates,
    pair_quality,
)
from ._relevance import Selection, select_relevant

__all__ = [
    "PairQuality",
    "Selection",
    "drop_near_duplicates",
    "drop_noisy",
    "find_near_duplicates",
    "pair_quality",
    "select_relevant",
]
