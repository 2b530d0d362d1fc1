"""Names of labels found in captions as whole words."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

_ARTICLES = {"a", "an", "the"}
_MOST_WORDS = 8


def words_of_text(text: str) -> list[str]:
    """Split into words that compare equal whatever their case and a plural s.

    >>> words_of_text("Red FROGS, glass")
    ['red', 'frog', 'glass']
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return [re.sub(r"(?<=[^s]{2})s$", "", word) for word in words]


def name_shares(captions: Sequence[str], names: Mapping[Any, list[str]]) -> csr_array:
    """Share of each caption's words that the longest name of each label in it makes up.

    Parameters
    ----------
    captions : sequence of str
        The captions.
    names : mapping of label to names
        Names with a place for the label, ``{}``, are sentences, which are not looked for.

    Returns
    -------
    shares : csr_array of shape (n_captions, n_labels)
        In (0, 1]; nothing is stored where no name of the label occurs.
    """
    labels_of: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, texts in enumerate(names.values()):
        for text in texts:
            words = words_of_text(text)
            while len(words) > 1 and words[0] in _ARTICLES:
                del words[0]
            if words and "{}" not in text and len(words) <= _MOST_WORDS:
                labels_of[tuple(words)].add(number)
    lengths = sorted({len(words) for words in labels_of})
    pointers = [0]
    columns: list[int] = []
    shares: list[float] = []
    for caption in captions:
        words = words_of_text(caption)
        found: dict[int, float] = {}
        for length in lengths:  # ascending, so that the longest name stays
            for start in range(len(words) - length + 1):
                for number in labels_of.get(tuple(words[start : start + length]), ()):
                    found[number] = length / len(words)
        columns += found.keys()
        shares += found.values()
        pointers.append(len(columns))
    return csr_array(
        (np.array(shares, np.float32), np.array(columns, np.intp), np.array(pointers, np.intp)),
        shape=(len(captions), len(names)),
    )
