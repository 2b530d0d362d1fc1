"""Two dimensions of many, and colours of labels, for maps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from .._first_few import first_few
from .._warnings import warn

OTHERS = "(others)"
_MOST_COLORS = 10


def flat_points(
    sides: list[np.ndarray], reducer: Any, center: bool, random_state: Any
) -> tuple[np.ndarray, tuple[str, str]]:
    """Return the points of all rows, NaN where a row is, and the names of the axes."""
    if center:
        sides = [side - np.nanmean(side, axis=0) for side in sides]
    whole = np.concatenate(sides)
    known = np.isfinite(whole).all(axis=1)
    if not known.all():
        warn(
            f"{(~known).sum()} rows are not finite and left out of the map: "
            f"{first_few(np.flatnonzero(~known), str)} of images and texts in a row.",
        )
    n = int(known.sum())
    if n < 3:
        raise ValueError(f"There are {n} points: a map needs at least 3.")
    names = ("", "")
    if isinstance(reducer, str):
        if reducer not in ("pca", "tsne"):
            raise ValueError(f"reducer must be 'pca', 'tsne' or an estimator, not {reducer!r}.")
        made: Any = PCA(2, random_state=random_state)
        if reducer == "tsne":
            made = TSNE(
                2, metric="cosine", init="random", perplexity=min(30.0, (n - 1) / 3),
                random_state=random_state,
            )  # fmt: skip
    else:
        made = clone(reducer)
    found = np.asarray(made.fit_transform(whole[known]))
    if found.shape != (n, 2):
        raise ValueError(f"The reducer gave an array of shape {found.shape}, not ({n}, 2).")
    if isinstance(made, PCA):
        first, second = made.explained_variance_ratio_
        names = f"first component ({first:.0%} of variance)", f"second ({second:.0%})"
    points = np.full((len(whole), 2), np.nan)
    points[known] = found
    return points, names


def colors_of(*labels: Any) -> dict[Any, Any]:
    """Return the colour of every label, the most frequent ones where there are many."""
    counts = Counter(label for some in labels if some is not None for label in some)
    if not counts:
        return {}
    from matplotlib import color_sequences

    palette = color_sequences["tab10"]
    shown = sorted(counts, key=str)
    if len(counts) > _MOST_COLORS:
        shown = sorted((label for label, _ in counts.most_common(_MOST_COLORS - 1)), key=str)
    # Grey, the eighth colour, is kept for the others.
    colors = [color for place, color in enumerate(palette) if place != 7] + [palette[7]]
    found = dict(zip(shown, colors, strict=False))
    if len(counts) > _MOST_COLORS:
        found[OTHERS] = palette[7]
    return found
