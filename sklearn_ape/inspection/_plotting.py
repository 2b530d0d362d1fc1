"""Axes, thumbnails, projections and inputs of the displays."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..aligners.wrapper import resolve_aligner, unwrap
from ..encoders.images import read_image
from ..encoders.items import ItemError
from ..utils.validation import check_sequence, format_list
from ..utils.warnings import warn

_LARGEST_FIGURE = 40.0  # inches


def axes_for(ax: Any, width: float, height: float) -> Any:
    """Return the axes given, or those of a new figure of about this size in inches.

    Parameters
    ----------
    ax : matplotlib.axes.Axes or None
        None makes a figure.
    width, height : float
        Of that figure; bounded.

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    TypeError
        When `ax` is not one Axes.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            "sklearn_ape.inspection draws with matplotlib, which is not installed. "
            'Install it with: pip install "sklearn-ape[plots]"'
        ) from error
    if ax is None:
        size = min(width, _LARGEST_FIGURE), min(height, _LARGEST_FIGURE)
        return pyplot.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(
            f"ax must be one matplotlib Axes or None, not {type(ax).__name__}: of several axes "
            "pass one, such as axes[0]."
        )
    return ax


def plain(text: Any, width: int = 40, lines: int = 1) -> str:
    """Return any text as some short lines that matplotlib shows as they are.

    Parameters
    ----------
    text : object
        Its str is shown.
    width : int, default=40
        The most characters of a line.
    lines : int, default=1
        The most lines; what does not fit ends in "…".
    """
    # Joiners and the like have no glyph, lone surrogates no encoding.
    visible = "".join(c if c.isprintable() or c.isspace() else " " for c in str(text))
    wrapped = textwrap.wrap(
        " ".join(visible.split()), max(width, 2), max_lines=lines, placeholder="…"
    )
    shown = "\n".join(wrapped).replace("$", r"\$")
    # A legend leaves out what begins with an underscore.
    return f" {shown}" if shown.startswith("_") else shown


def ink_on(color: Any) -> str:
    """Return black or white, whichever is readable on a colour of red, green, blue in [0, 1]."""
    red, green, blue = (float(part) for part in color[:3])
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


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
            f"{format_list(np.flatnonzero(~known), str)} of images and texts in a row.",
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


_SIDE = 96


_GREY = 200


def thumbnail(item: Any, side: int = _SIDE) -> np.ndarray:
    """Return an image as a square on white.

    Parameters
    ----------
    item : str, path-like, bytes, PIL.Image.Image, ndarray of uint8 or None
        What encoders take.
    side : int, default=96
        In pixels.

    Returns
    -------
    pixels : ndarray of uint8, shape (side, side, 3)
        All grey where there is no image, or none that can be read: a figure of many images
        is not lost for one of them.
    """
    from PIL import ImageOps

    if item is None:
        return np.full((side, side, 3), _GREY, np.uint8)
    try:
        image = read_image(item, least_side=side, longer=True)
    except ItemError:
        return np.full((side, side, 3), _GREY, np.uint8)
    return np.asarray(ImageOps.pad(image, (side, side), color="white"))


def draw_thumbnail(
    ax: Any, item: Any, center: tuple[float, float], size: float, frame: str | None = None
) -> Any:
    """Draw an image with its centre and its side in data coordinates, beyond the axes too.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Its limits stay.
    item : object
        See `thumbnail`.
    center : tuple of float
        x and y.
    size : float
        Side of the square.
    frame : str or None, default=None
        Colour of a frame.

    Returns
    -------
    image : matplotlib.image.AxesImage
        What was drawn.
    """
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

    x, y, half = *center, size / 2
    # Not ax.imshow, which sets limits and aspect. The y axis may point down.
    bottom, top = (y + half, y - half) if ax.yaxis_inverted() else (y - half, y + half)
    image = AxesImage(ax, extent=(x - half, x + half, bottom, top), zorder=2, origin="upper")
    image.set_data(thumbnail(item))
    image.set_clip_on(False)
    ax.add_artist(image)
    image.set_clip_path(None)
    if frame is not None:
        corner = x - half, y - half
        ax.add_patch(
            Rectangle(corner, size, size, fill=False, ec=frame, lw=3, zorder=3, clip_on=False)
        )
    return image


def aligner_and_input(estimator: Any, X: Any) -> tuple[Any, Any]:
    """Return the aligner within an estimator, and X as that aligner takes it.

    Parameters
    ----------
    estimator : estimator, str or None
        An aligner, or a Pipeline or search that ends in one; a name or None as
        `ZeroShotClassifier` takes them.
    X : sequence of images, or array-like of shape (n_samples, n_features)
        What the estimator takes.

    Raises
    ------
    TypeError
        When there is no aligner in it.
    """
    preprocessing, aligner = unwrap(resolve_aligner(estimator))
    return aligner, X if preprocessing is None else preprocessing.transform(X)


def images_in(X: Any) -> list[Any] | None:
    """Return the images in X, None where X is a table of features."""
    if hasattr(X, "to_pylist"):
        return X.to_pylist()
    if hasattr(X, "columns") or getattr(X, "ndim", 1) == 2:
        return None
    items = list(X)
    is_row = items and isinstance(items[0], list | tuple | np.ndarray) and np.ndim(items[0]) == 1
    return None if is_row else items


def texts_in(y: Any) -> list[str] | None:
    """Return the texts in y, None where y is features."""
    items = images_in(y)
    return items if items and all(isinstance(item, str) for item in items) else None


def check_names(names: Any, n: int, what: str, of: str) -> list[Any] | None:
    """Return names or images as a list, refusing another number of them than there are."""
    if names is None:
        return None
    check_sequence(names, what, of)
    items = list(names)
    if len(items) != n:
        raise ValueError(f"There are {len(items)} {what} for {n} {of}s: pass one for each.")
    return items


def checked_pairs(pairs: Any, n_images: int, n_texts: int) -> np.ndarray:
    """Return pairs as an array of shape (n_pairs, 2) whose rows exist.

    None pairs what stands at the same place, which needs as many images as texts.
    """
    if pairs is None:
        if n_images != n_texts:
            raise ValueError(
                f"There are {n_images} images and {n_texts} texts: pass pairs, an array of "
                "shape (n_pairs, 2) of rows that belong together."
            )
        return np.column_stack([np.arange(n_images)] * 2)
    checked = np.asarray(pairs)
    if checked.size == 0:
        return np.empty((0, 2), dtype=int)
    if checked.ndim != 2 or checked.shape[1] != 2 or checked.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must be integers of shape (n_pairs, 2), not {checked.dtype} of shape "
            f"{checked.shape}."
        )
    absent = np.flatnonzero(((checked < 0) | (checked >= (n_images, n_texts))).any(axis=1))
    if absent.size:
        raise ValueError(
            f"Pair {absent[0]} is of rows {checked[absent[0]].tolist()}, and there are {n_images} "
            f"images and {n_texts} texts."
        )
    return checked
