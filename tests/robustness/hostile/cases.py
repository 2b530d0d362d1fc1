"""One hostile item, and what a straightforward reading of it gives."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Case:
    """An item, and what may come of it.

    `expect`: "right", "error", or "either". `truth` holds its RGB pixels; None stands for what
    Pillow makes of it. Pixels may differ by `tolerance`. `large` is how many it may decode.
    """

    name: str
    item: Any
    expect: str = "either"
    truth: np.ndarray | None = None
    tolerance: int = 1
    large: int = 0


def plain(item):
    """Decode with Pillow alone, upright and on white: what ours is compared with."""
    if isinstance(item, np.ndarray):
        image = Image.fromarray(item)
    elif isinstance(item, Image.Image):
        image = item.copy()
    else:
        image = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a damaged tag: the pixels stand
        image.load()
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(ground, image).convert("RGB"))


def as_bytes(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def base_image(width=40, height=30):
    """Return an image without symmetry, of many colours."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    blue = 255 * ((x // 5 + y // 7) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).round().astype(np.uint8))
