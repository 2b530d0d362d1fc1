"""Pairs that are not worth fitting on, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..curation import drop_near_duplicates, drop_noisy, find_near_duplicates, pair_quality
from ._errors import say

__all__ = ["unsound"]


def unsound(
    features: np.ndarray,
    words: np.ndarray,
    captions: Sequence[str],
    paths: Sequence[str],
    noisy: float,
    duplicates: float,
    random_state: int,
) -> dict[int, str]:
    """Return what is wrong with those pairs that are to be dropped.

    Parameters
    ----------
    features, words : ndarray of shape (n_pairs, n_features)
        Of the images and of the captions.
    captions, paths : sequence of str, length n_pairs
        An image of several captions is there as often.
    noisy : float
        Share of the pairs to drop whose captions fit least.
    duplicates : float
        Cosine from which on two images are alike; the pair that fits best is kept.
    random_state : int
        Deals pairs to the folds in which they are judged.

    Returns
    -------
    reasons : dict of {int: str}
        By row. A reason begins with its kind, which a colon ends.
    """
    groups = find_near_duplicates(features, threshold=duplicates)
    scores, sound = None, np.arange(len(features))
    if noisy:
        try:
            quality = pair_quality(
                features, words, list(captions), groups=groups, random_state=random_state
            )
        except ValueError as error:  # too few pairs to learn from
            say(f"Captions are not compared with their images: {error}")
        else:
            scores, sound = quality.score, drop_noisy(quality, share=noisy)
    reasons = {
        row: f"a caption that fits its image poorly: its score is {scores[row]:.2f}"
        for row in np.setdiff1d(np.arange(len(features)), sound).tolist()
        if scores is not None
    }
    best = sound[drop_near_duplicates(groups[sound], None if scores is None else scores[sound])]
    first = {int(groups[row]): paths[row] for row in best.tolist()}
    for row in sound.tolist():
        other = first[int(groups[row])]
        if other != paths[row]:  # rows of one image are alike, and none is a copy
            reasons[row] = f"nearly the same image as another: {other!r}"
    return reasons
