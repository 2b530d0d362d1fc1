"""Base class for image encoders, and preprocessing of images."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.utils import Tags
from torch import nn
from torch.nn.functional import interpolate

from .base import FrozenEncoder, _check_choice
from .images import check_image, image_digest, read_image, undecoded
from .items import ItemError
from .weights import Network

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


# Large images are first reduced by a whole factor, which is fast, to no less than so many times
# the size asked for. On drawings of 2200 pixels the features of EfficientNet-Lite0 then differ by
# 2e-5 (median of 1 - cosine; at most 2e-4); 3 gives up to 2e-4 more often, 2 up to 3e-3.
_GAP = 4


class Preprocessing(NamedTuple):
    """Resize, crop and normalise as torchvision does, with the last step left to the network.

    Parameters
    ----------
    resize : int or tuple of (int, int)
        Length of the shorter side, or height and width.
    crop : tuple of (int, int)
        Height and width of the middle that is kept.
    interpolation : {"bicubic", "bilinear"}
        With antialiasing.
    mean, std : tuple of float
        Of the three channels, from 0 to 1.

    Notes
    -----
    Pixels stay bytes until the network's first step, so that a batch takes a quarter of the
    memory, and torch resizes bytes several times as fast as Pillow does, to within rounding.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, transform: Any) -> Self | None:
        """Return what does the same as a torchvision transform, or None when it is of its own."""
        from torchvision import transforms

        steps = [
            step
            for step in getattr(transform, "transforms", [])
            if type(step).__name__ not in ("ToTensor", "MaybeToTensor")
            and getattr(step, "__name__", "") != "_convert_to_rgb"
        ]
        kinds = [transforms.Resize, transforms.CenterCrop, transforms.Normalize]
        if [type(step) for step in steps] != kinds:
            return None
        resize, crop, normalize = steps
        interpolation = resize.interpolation.value
        size = resize.size
        if isinstance(size, list | tuple):
            size = size[0] if len(size) == 1 else tuple(size)
        height, width = (size, size) if isinstance(size, int) else size
        if (
            interpolation not in ("bicubic", "bilinear")
            or resize.max_size is not None
            or not resize.antialias
            or height < crop.size[0]
            or width < crop.size[1]
        ):
            return None
        mean, std = (
            tuple(np.broadcast_to(np.asarray(numbers, dtype=float), 3).tolist())
            for numbers in (normalize.mean, normalize.std)
        )
        return cls(size, (int(crop.size[0]), int(crop.size[1])), interpolation, mean, std)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return bytes (height, width, 3) of an image of mode RGB."""
        wide, high = self._resized(*image.size)
        factor = min(image.width // (_GAP * wide), image.height // (_GAP * high))
        if factor > 1:
            image = image.reduce(factor)
        pixels = torch.from_numpy(np.array(image))
        if (image.width, image.height) != (wide, high):
            planes = pixels.permute(2, 0, 1).unsqueeze(0)
            planes = interpolate(planes, (high, wide), mode=self.interpolation, antialias=True)
            pixels = planes[0].permute(1, 2, 0)
        height, width = self.crop
        top, left = round((high - height) / 2), round((wide - width) / 2)
        return pixels[top : top + height, left : left + width].contiguous()

    @property
    def least_side(self) -> int:
        """Pixels below which the side that `resize` measures must not be decoded."""
        return _GAP * (self.resize if isinstance(self.resize, int) else max(self.resize))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize


class OnPixels(nn.Module):
    """A network on prepared images, with several views of each averaged.

    Parameters
    ----------
    network : torch.nn.Module
        Takes normalised pixels (n, 3, height, width).
    prepare : object
        A `Preprocessing`, whose bytes are normalised here, or another one, which normalises.
    n_views : int, default=1
        Views of an image.
    """

    def __init__(self, network: nn.Module, prepare: Any, n_views: int = 1) -> None:
        super().__init__()
        self.network = network
        self.n_views = n_views
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.takes_bytes = isinstance(prepare, Preprocessing)
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        mean, std = (
            (255 * torch.tensor(numbers, device=device)).view(3, 1, 1)
            for numbers in ((prepare.mean, prepare.std) if self.takes_bytes else ((0.0,) * 3,) * 2)
        )
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels of n images, (n, ...) or (n, n_views, ...), to (n, n_features)."""
        if self.n_views > 1:
            pixels = pixels.flatten(0, 1)
        features = self.network(self.normalized(pixels))
        if self.n_views > 1:
            features = features.float().unflatten(0, (-1, self.n_views)).mean(dim=1)
        return features

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return prepared pixels as the network takes them, (n, 3, height, width)."""
        if not self.takes_bytes:
            return pixels.contiguous(memory_format=torch.channels_last)
        # Bytes with the channels last are, seen this way, what convolutions are fastest on.
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std


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
