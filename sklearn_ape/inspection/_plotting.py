"""Axes, texts, thumbnails and input checks of the displays."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import ImageOps
from sklearn.utils.validation import check_is_fitted

from ..aligners.pairs import holds_images
from ..aligners.wrapper import resolve_aligner, unwrap
from ..encoders.images import read_image
from ..encoders.items import ItemError
from ..metrics import retrieval
from ..utils.messages import import_optional
from ..utils.validation import check_sequence, to_list

# Matplotlib fails for figures of 2**16 pixels or more on a side.
_MAX_FIGURE_INCHES = 40.0
_THUMBNAIL_SIDE = 96
_GREY = 200


def get_axes(ax: Any, width: float, height: float) -> Any:
    """Return the axes, or the axes of a new figure whose width and height are in inches."""
    import_optional("matplotlib", extra="plots", purpose="sklearn_ape.inspection")
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    if ax is None:
        size = min(width, _MAX_FIGURE_INCHES), min(height, _MAX_FIGURE_INCHES)
        return pyplot.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(
            f"ax must be a single matplotlib Axes or None, not {type(ax).__name__}. If you have "
            "several axes, pass one of them, such as axes[0]."
        )
    return ax


def format_text(text: Any, width: int = 40, lines: int = 1) -> str:
    """Return a text as lines that matplotlib shows literally; it ends in "…" if it is too long."""
    # Characters such as joiners have no glyph, and lone surrogates have no encoding.
    printable = "".join(c if c.isprintable() or c.isspace() else " " for c in str(text))
    wrapped = textwrap.wrap(" ".join(printable.split()), width)
    if len(wrapped) > lines:
        # Not textwrap's max_lines, which drops a word that fills the line: "…" would remain.
        wrapped[lines - 1 :] = [wrapped[lines - 1][: width - 1] + "…"]
    escaped = "\n".join(wrapped).replace("$", r"\$")
    # A legend leaves out labels that begin with an underscore.
    return f" {escaped}" if escaped.startswith("_") else escaped


def name_others(labels: Iterable[Any]) -> str:
    """Return the name of the group of labels that are not shown, which is not a label itself.

    >>> name_others(["cat"]), name_others(["cat", "(others)"])
    ('(others)', '((others))')
    """
    names, name = set(map(str, labels)), "(others)"
    while name in names:
        name = f"({name})"
    return name


def write_in_cell(
    ax: Any, row: float, column: float, text: str, background: np.ndarray, fontsize: float
) -> Any:
    """Write a text in black or white, whichever contrasts more with the background."""
    # Weights of the luma of ITU-R BT.601.
    is_bright = background[:3] @ (0.299, 0.587, 0.114) > 0.5
    color = "black" if is_bright else "white"
    return ax.text(column, row, text, ha="center", va="center", color=color, fontsize=fontsize)


def make_thumbnail(item: Any, side: int = _THUMBNAIL_SIDE) -> np.ndarray:
    """Return an image as pixels of a square with a white background.

    None and images that cannot be read give a grey square, so that one unreadable image does not
    prevent a figure of many.
    """
    with suppress(ItemError):
        if item is not None:
            image = read_image(item, min_side=side, use_longer_side=True)
            return np.asarray(ImageOps.pad(image, (side, side), color="white"))
    return np.full((side, side, 3), _GREY, np.uint8)


def draw_thumbnail(
    ax: Any, item: Any, center: tuple[float, float], size: float, frame: str | None = None
) -> Any:
    """Draw an image in a square at a position in data coordinates, and return the artist.

    The position may be outside of the axes, whose limits are not changed. `frame` is the colour of
    a frame, or None.
    """
    from matplotlib.image import AxesImage

    x, y, half = *center, size / 2
    # ax.imshow would set limits and aspect. The y axis may be inverted.
    bottom, top = (y + half, y - half) if ax.yaxis_inverted() else (y - half, y + half)
    image = AxesImage(ax, extent=(x - half, x + half, bottom, top), zorder=2, origin="upper")
    image.set_data(make_thumbnail(item))
    image.set_clip_on(False)
    ax.add_artist(image)
    image.set_clip_path(None)  # add_artist sets it
    if frame is not None:
        draw_frame(ax, y, x, size, ec=frame, lw=3, zorder=3)
    return image


def draw_frame(ax: Any, row: float, column: float, size: float, **style: Any) -> None:
    """Draw a square frame around a cell, also outside of the axes."""
    from matplotlib.patches import Rectangle

    corner = column - size / 2, row - size / 2
    ax.add_patch(Rectangle(corner, size, size, fill=False, clip_on=False, **style))


def get_aligner_and_input(estimator: Any, X: Any) -> tuple[Any, Any]:
    """Return the fitted aligner within an estimator, and X as that aligner takes it."""
    preprocessing, aligner = unwrap(resolve_aligner(estimator), "estimator")
    check_is_fitted(aligner)
    return aligner, X if preprocessing is None else preprocessing.transform(X)


def get_images(X: Any) -> list[Any] | None:
    """Return the images in X, or None if X is a table of features."""
    return to_list(X) if holds_images(X) else None


def get_texts(y: Any) -> list[str] | None:
    """Return the texts in y, or None if y is features."""
    items = get_images(y)
    return items if items and all(isinstance(item, str) for item in items) else None


def check_items(items: Any, n_items: int, name: str, noun: str) -> list[Any] | None:
    """Return one label, caption or image per `noun` as a list, or None; check the length."""
    if items is None:
        return None
    check_sequence(items, name, name.removesuffix("s").replace("_", " "))
    items = to_list(items)
    if len(items) != n_items:
        raise ValueError(
            f"{name} has {len(items)} items for {n_items} {noun}s. Pass one item per {noun}."
        )
    return items


def check_pairs(pairs: Any, n_images: int, n_texts: int) -> np.ndarray:
    """Return pairs as valid indices of shape (n_pairs, 2); None pairs items at the same index."""
    if pairs is None:
        if n_images != n_texts:
            raise ValueError(
                f"pairs is None, and there are {n_images} images and {n_texts} texts. Pass an "
                "array of shape (n_pairs, 2) with the indices of images and their texts."
            )
        return np.column_stack([np.arange(n_images)] * 2)
    if np.size(pairs) == 0:
        return np.empty((0, 2), dtype=int)
    return retrieval.check_pairs(pairs, (n_images, n_texts), ("images", "texts"))


def resolve_pairs(pairs: Any, n_images: int, n_texts: int) -> np.ndarray | None:
    """Return the pairs to draw, or None; ``"auto"`` pairs as many texts as images by index."""
    if isinstance(pairs, str):
        if pairs != "auto":
            raise ValueError(f"pairs must be 'auto', an array or None, not {pairs!r}.")
        return check_pairs(None, n_images, n_texts) if n_images == n_texts else None
    return None if pairs is None else check_pairs(pairs, n_images, n_texts)
