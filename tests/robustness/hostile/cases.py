"""Hostile items with their expected results."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Case:
    """Item with its expected result.

    `expect` is "right", "error" or "either". `pixels` are the expected RGB pixels; None means
    those that Pillow decodes. Pixels may differ by `tolerance`. `large` is the number of pixels
    for which memory may be used.
    """

    name: str
    item: Any
    expect: str = "either"
    pixels: np.ndarray | None = None
    tolerance: int = 1
    large: int = 0


def decode_with_pillow(item):
    """Return the reference pixels: decoded by Pillow, upright and on a white background."""
    if isinstance(item, np.ndarray):
        image = Image.fromarray(item)
    elif isinstance(item, Image.Image):
        image = item.copy()
    else:
        image = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a damaged tag does not affect the pixels
        image.load()
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(background, image).convert("RGB"))


def as_bytes(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def base_image(width=40, height=30):
    """Return an asymmetric image with many colours."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    blue = 255 * ((x // 5 + y // 7) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).round().astype(np.uint8))
