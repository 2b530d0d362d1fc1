"""Views of one image, whose features are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

NUMBERS_OF_VIEWS = (1, 2, 4)
LARGEST_ZOOM = 4 / 3


def views_of(image: Image.Image, n_views: int) -> Iterator[Image.Image]:
    """Yield the image, its mirror image, a smaller copy and a larger one, `n_views` of them.

    One after the other, since each takes as much memory as the image.

    Parameters
    ----------
    image : PIL.Image.Image
        Of mode RGB.
    n_views : {1, 2, 4}
        How many.

    Yields
    ------
    view : PIL.Image.Image
        Of the same proportions, up to a pixel. The smaller copy is the image at two thirds of
        its size, in the middle of white; the larger one is its middle, at four thirds.
    """
    from PIL import ImageOps

    yield image
    if n_views > 1:
        yield ImageOps.mirror(image)
    if n_views > 2:
        width, height = image.size
        yield ImageOps.expand(image, (width // 4, height // 4), "white")
        yield image.crop((width // 8, height // 8, width - width // 8, height - height // 8))
