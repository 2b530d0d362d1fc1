"""Small square images in data coordinates, of anything that encoders take."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..encoders._errors import ItemError
from ..encoders._images import read_image

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
