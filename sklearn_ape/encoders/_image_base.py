"""What all encoders of images share."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.utils import Tags

from ._base import FrozenEncoder, _check_choice
from ._errors import ItemError
from ._images import check_image, image_digest, read_image, undecoded
from ._networks import Network
from ._pixels import OnPixels, Preprocessing
from ._views import LARGEST_ZOOM, views_of

# Resized to a network's input, a narrower image would fill the memory.
_NARROWEST = 100
# A square around a long image has up to a hundred times its pixels.
_WIDEST_SQUARE = 8192


class ImageEncoder(FrozenEncoder):
    """Base of the encoders of images.

    Subclasses say what the network itself is, and where its preprocessing is to be found.
    """

    _modality = "image"
    _worth_exporting = 256

    crop: str
    views: int = 1

    def _digest(self, item: Any) -> bytes:
        return image_digest(item)

    def _check(self, item: Any) -> None:
        check_image(item)

    def _may_change(self, item: Any) -> bool:
        return isinstance(item, str | os.PathLike)

    @abstractmethod
    def _pixel_network(self, network: Network) -> torch.nn.Module:
        """Return what maps normalised pixels (n, 3, height, width) to features."""

    def _preprocessing(self, prepare: Any) -> Any:
        """Return the network's preprocessing of one image."""
        return prepare

    def _module(self, network: Network) -> torch.nn.Module:
        preprocessing = self._preprocessing(network.prepare)
        return OnPixels(self._pixel_network(network), preprocessing, self.views).eval()

    def _tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        return (torch.stack(batch),)

    def _batch_size_for(self, engine: str, device: torch.device) -> int:
        return max(1, super()._batch_size_for(engine, device) // self.views)

    def _default_batch_size(self, engine: str, device: torch.device) -> int:
        if engine == "torch":
            return 16 if device.type == "cpu" else 128
        return 4  # what a core's own cache holds of the first layers

    def _prepare(self, prepare: Any, item: Any) -> Any:
        preprocessing = self._preprocessing(prepare)
        image = read_image(item, self._least_side(preprocessing), self.crop == "pad")
        if max(image.size) > _NARROWEST * min(image.size):
            raise ItemError(f"is too narrow: {image.width} x {image.height} pixels. Crop it.")
        if self.crop == "pad" and image.width != image.height:
            image = _square_on_white(image)
        if self.views == 1:
            return self._pixels(preprocessing, image)
        views = views_of(image, self.views)
        return torch.stack([self._pixels(preprocessing, view) for view in views])

    def _pixels(self, preprocessing: Any, image: Any) -> torch.Tensor:
        return preprocessing(image)

    def _least_side(self, preprocessing: Any) -> int | None:
        """Return the length of an image's side below which detail would be lost."""
        if not isinstance(preprocessing, Preprocessing):
            return None
        return math.ceil(preprocessing.least_side * (LARGEST_ZOOM if self.views > 2 else 1))

    def _blank(self) -> Any:
        from PIL import Image

        return Image.new("RGB", (32, 32), "white")

    def _examples(self) -> list[list[Any]]:
        from PIL import Image

        rng = np.random.default_rng(0)
        clouds = [
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).resize((96, 64))
            for size in (2, 8, 32)
        ]
        return [clouds, [self._blank()]]

    def _as_list(self, X: Any) -> list[Any]:
        is_array = isinstance(X, np.ndarray) and X.dtype.kind in "buif"
        if is_array and (X.ndim == 2 or (X.ndim == 3 and X.shape[-1] in (1, 3, 4))):
            raise ValueError(
                f"X is one array of shape {X.shape}, not a sequence of images: pass a single "
                "image as [X]; features need no image encoder."
            )
        return [undecoded(item) for item in super()._as_list(X)]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_choice("crop", self.crop, ("center", "pad"))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _square_on_white(image: Any) -> Any:
    from PIL import Image

    if max(image.size) > _WIDEST_SQUARE:
        image = image.reduce(math.ceil(max(image.size) / _WIDEST_SQUARE))
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
