"""What all encoders of pictures share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import Tags

from ._base import FrozenEncoder, _check_choice
from ._errors import ItemError
from ._images import check_image, image_digest, read_image

# Resized to a network's input, a narrower picture would fill the memory.
_NARROWEST = 100


class ImageEncoder(FrozenEncoder):
    """Base of the encoders of pictures: `_prepare_image` is the network's own preprocessing."""

    _modality = "image"

    crop: str

    def _digest(self, item: Any) -> bytes:
        return image_digest(item)

    def _check(self, item: Any) -> None:
        check_image(item)

    def _prepare(self, prepare: Any, item: Any) -> Any:
        image = read_image(item)
        if max(image.size) > _NARROWEST * min(image.size):
            raise ItemError(f"is too narrow: {image.width} x {image.height} pixels. Crop it.")
        if self.crop == "pad" and image.width != image.height:
            image = _square_on_white(image)
        return self._prepare_image(prepare, image)

    def _prepare_image(self, prepare: Any, image: Any) -> Any:
        return prepare(image)

    def _blank(self) -> Any:
        from PIL import Image

        return Image.new("RGB", (32, 32), "white")

    def _as_list(self, X: Any) -> list[Any]:
        is_array = isinstance(X, np.ndarray) and X.dtype.kind in "buif"
        if is_array and (X.ndim == 2 or (X.ndim == 3 and X.shape[-1] in (1, 3, 4))):
            raise ValueError(
                f"X is one array of shape {X.shape}, not a sequence of pictures: pass a single "
                "picture as [X]; features need no image encoder."
            )
        return super()._as_list(X)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_choice("crop", self.crop, ("center", "pad"))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def stacked(batch: list[Any], device: torch.device) -> torch.Tensor:
    """Return prepared pictures as one tensor (n, 3, h, w) on the device."""
    # Channels last is what convolutions are fastest on, by far so on a CPU.
    pixels = torch.stack(batch).contiguous(memory_format=torch.channels_last)
    return pixels.to(device, non_blocking=True)


def _square_on_white(image: Any) -> Any:
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
