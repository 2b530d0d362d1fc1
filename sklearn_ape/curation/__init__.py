"""Choose from a large noisy set the pairs that are worth training on.

Small sets of pairs that are relevant to the labels in question align encoders better than random
pairs of equal number do. The functions here return row numbers, so they serve lists of images,
tables and arrays of features alike.
"""

from ._duplicates import drop_near_duplicates, find_near_duplicates
from ._quality import PairQuality, drop_noisy, pair_quality
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
