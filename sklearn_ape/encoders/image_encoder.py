"""Base class for image encoders, and preprocessing of images."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.utils import Tags
from torch import nn
from torch.nn.functional import interpolate

from ..utils.validation import check_choice, format_list
from .base import FrozenEncoder
from .images import check_image, check_proportions, digest_image, read_image, unwrap_image
from .weights import Network

# Magnification of the largest view.
_MAX_ZOOM = 4 / 3

# Large images are first reduced by an integer factor, which is fast, to at least this many times
# the final size. On drawings of 2200 pixels, the features of EfficientNet-Lite0 then differ by a
# 1 - cosine of 2e-5 (median) and at most 2e-4. With 3 the largest differences are more frequent,
# and with 2 they are up to 3e-3.
_REDUCING_GAP = 4

# The square around a long image has up to a hundred times its pixels, so its size is limited.
_MAX_SQUARE = 8192


class Preprocessing(NamedTuple):
    """Resizing, center crop, and mean and standard deviation of the channels, as in torchvision.

    Sizes are height and width; an integer is the length of the shorter side. Pixels are bytes
    until the first step of the network, so a batch takes a quarter of the memory. torch resizes
    bytes several times faster than Pillow, with the same result up to rounding.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_transform(cls, transform: Any) -> Self | None:
        """Return the equivalent of a torchvision transform, or None if it has other steps."""
        from torchvision import transforms

        steps = [
            step
            for step in getattr(transform, "transforms", [])
            # Images are RGB already. open_clip converts them by a class or, earlier, a function.
            if type(step).__name__ not in ("ToTensor", "MaybeToTensor", "MaybeConvertMode")
            and getattr(step, "__name__", "") != "_convert_to_rgb"
        ]
        kinds = [type(step) for step in steps]
        if kinds == [transforms.Resize, transforms.Normalize] and np.size(steps[0].size) == 2:
            steps.insert(1, transforms.CenterCrop(steps[0].size))  # leaves out nothing
        elif kinds != [transforms.Resize, transforms.CenterCrop, transforms.Normalize]:
            return None
        resize, crop, normalize = steps
        interpolation = resize.interpolation.value
        has_other_options = resize.max_size is not None or not resize.antialias
        if interpolation not in ("bicubic", "bilinear") or has_other_options:
            return None
        size = resize.size
        if isinstance(size, list | tuple):
            size = size[0] if len(size) == 1 else tuple(size)
        height, width = (size, size) if isinstance(size, int) else size
        crop_height, crop_width = map(int, crop.size)
        if height < crop_height or width < crop_width:  # the crop would be padded
            return None
        mean, std = (
            tuple(np.broadcast_to(np.asarray(values, dtype=float), 3).tolist())
            for values in (normalize.mean, normalize.std)
        )
        return cls(size, (crop_height, crop_width), interpolation, mean, std)

    def enlarge(self) -> Self:
        """Return the preprocessing to images of twice the size."""
        (height, width), resize = self.crop, self.resize
        doubled = 2 * resize if isinstance(resize, int) else (2 * resize[0], 2 * resize[1])
        return self._replace(resize=doubled, crop=(2 * height, 2 * width))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels of an RGB image as bytes, (height, width, 3)."""
        new_width, new_height = self._compute_size(*image.size)
        factor = min(image.width // new_width, image.height // new_height) // _REDUCING_GAP
        image = _reduce(image, factor)
        pixels = torch.from_numpy(np.array(image))
        if (image.width, image.height) != (new_width, new_height):
            planes = pixels.permute(2, 0, 1).unsqueeze(0)
            planes = interpolate(
                planes, (new_height, new_width), mode=self.interpolation, antialias=True
            )
            pixels = planes[0].permute(1, 2, 0)
        height, width = self.crop
        top, left = round((new_height - height) / 2), round((new_width - width) / 2)
        return pixels[top : top + height, left : left + width].contiguous()

    def _compute_size(self, width: int, height: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize


class OnPixels(nn.Module):
    """Module that maps prepared images to features, averaged over the views of each image.

    It normalizes the bytes of a `Preprocessing`. Other preprocessing returns normalized pixels.
    """

    def __init__(self, network: nn.Module, prepare: Any, n_views: int = 1) -> None:
        super().__init__()
        self.network = network
        self.n_views = n_views
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.takes_bytes = isinstance(prepare, Preprocessing)
        if self.takes_bytes:
            device = next((p.device for p in network.parameters()), torch.device("cpu"))
            for name in ("mean", "std"):
                values = 255 * torch.tensor(getattr(prepare, name), device=device)
                self.register_buffer(name, values.view(3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels, (n, ...) or (n, n_views, ...), to features, (n, n_features)."""
        if self.n_views > 1:
            pixels = pixels.flatten(0, 1)
        features = self.network(self.normalize(pixels))
        if self.n_views > 1:
            features = features.float().unflatten(0, (-1, self.n_views)).mean(dim=1)
        return features

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the input of the network, (n, 3, height, width)."""
        if not self.takes_bytes:
            if pixels.ndim != 4:
                shape = tuple(pixels.shape[1:])
                raise ValueError(
                    f"The image processor of this model returns arrays of shape {shape} instead "
                    "of (3, height, width), as those of video models and of SigLIP 2 NaFlex do. "
                    "Use a model of images of a fixed size, such as "
                    "'google/siglip2-base-patch16-224'."
                )
            return pixels.contiguous(memory_format=torch.channels_last)
        # The permuted bytes are in channels-last format, which is the fastest for convolutions.
        return (pixels.permute(0, 3, 1, 2) - self.mean).div_(self.std)


def pool_patches(last: torch.Tensor, pooling: str, n_prefix: int) -> torch.Tensor:
    """Pool tokens, (n, n_tokens, width), of which `n_prefix` come before those of the patches."""
    if pooling != "mean" and not n_prefix:
        raise ValueError(f"pooling={pooling!r} needs a network with a class token. Use 'mean'.")
    if pooling != "cls" and last.shape[1] <= n_prefix:
        raise ValueError(
            f"pooling={pooling!r} needs features of patches, but this network returns class "
            "tokens only. Use 'auto' or 'cls'."
        )
    mean = last[:, n_prefix:].mean(dim=1)
    if pooling == "mean":
        return mean
    return last[:, 0] if pooling == "cls" else torch.cat([last[:, 0], mean], dim=1)


class ImageEncoder(FrozenEncoder):
    """Base class for image encoders.

    Subclasses define the network and its preprocessing.
    """

    _modality = "image"
    _min_items_to_export = 256
    # The outputs of the first layers for 4 images fit into the cache of a core.
    _cpu_batch_size = 4
    _gpu_batch_size = 128

    crop: str
    views: int = 1

    def _digest_item(self, item: Any) -> bytes:
        return digest_image(item)

    def _check_item(self, item: Any) -> None:
        check_image(item)

    def _may_change(self, item: Any) -> bool:
        return isinstance(item, str | os.PathLike)

    @abstractmethod
    def _make_pixel_network(self, network: Network) -> torch.nn.Module:
        """Return the module that maps normalized pixels, (n, 3, height, width), to features."""

    def _get_preprocessing(self, prepare: Any) -> Any:
        return prepare

    def _make_module(self, network: Network) -> torch.nn.Module:
        preprocessing = self._get_preprocessing(network.prepare)
        return OnPixels(self._make_pixel_network(network), preprocessing, self.views).eval()

    def _make_tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        shapes = {tuple(pixels.shape) for pixels in batch}
        if len(shapes) > 1:
            raise ValueError(
                f"model_name={self.model_name!r} prepares images in different shapes "
                f"({format_list(sorted(shapes))}), which have no common batch. Pass crop='pad'."
            )
        return (torch.stack(batch),)

    def _choose_batch_size(self, device: torch.device) -> int:
        return max(1, super()._choose_batch_size(device) // self.views)

    def _prepare_item(self, prepare: Any, item: Any) -> Any:
        preprocessing = self._get_preprocessing(prepare)
        min_side = self._compute_min_side(preprocessing)
        zoom = _MAX_ZOOM if self.views > 2 else 1
        image = read_image(item, min_side and math.ceil(min_side * zoom), self.crop == "pad")
        check_proportions(image)
        if self.crop == "pad" and image.width != image.height:
            image = _pad_to_square(image)
        if min_side and not isinstance(preprocessing, Preprocessing):  # which reduces images
            image = _reduce(image, min(image.size) // min_side)
        views = [self._preprocess(preprocessing, v) for v in _iter_views(image, self.views)]
        return views[0] if self.views == 1 else torch.stack(views)

    def _preprocess(self, preprocessing: Any, image: Any) -> torch.Tensor:
        return preprocessing(image)

    def _compute_min_side(self, preprocessing: Any) -> int | None:
        """Return the shorter side to which larger images are reduced first, or None."""
        side = _get_resized_side(preprocessing)
        return None if side is None else math.ceil(_REDUCING_GAP * side)

    def _make_blank(self) -> Any:
        return Image.new("RGB", (32, 32), "white")

    def _make_examples(self) -> list[list[Any]]:
        rng = np.random.default_rng(0)
        images = [
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).resize((96, 64))
            for size in (2, 8, 32)
        ]
        return [images, [self._make_blank()]]

    def _as_list(self, X: Any) -> list[Any]:
        is_array = isinstance(X, np.ndarray) and X.dtype.kind in "buif"
        if is_array and (X.ndim == 2 or (X.ndim == 3 and X.shape[-1] in (1, 3, 4))):
            raise ValueError(
                f"X is one array of shape {X.shape}, but a sequence of images is expected. Pass a "
                "single image as [X]. If X holds features of another encoder in a Pipeline, leave "
                "out that encoder, or pass features to an aligner without an image encoder."
            )
        return [unwrap_image(item) for item in super()._as_list(X)]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.crop, "crop", ("center", "pad"))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def make_uncropped_options(processor: Any) -> dict[str, Any]:
    """Return options with which an image processor of transformers keeps all of a square image."""
    if getattr(processor, "crop_pct", None) is not None:  # of ConvNeXt and PoolFormer
        return {"crop_pct": 1.0}
    if not getattr(processor, "do_center_crop", False):
        return {}
    size = {side: processor.crop_size[side] for side in ("height", "width")}
    return {"do_center_crop": False, "size": size}


def _get_resized_side(preprocessing: Any) -> float | None:
    """Return the shorter side of resized images, or an upper bound of it, or None.

    This reads a `Preprocessing` or an image processor of the transformers library.
    """
    if isinstance(preprocessing, Preprocessing):
        resize = preprocessing.resize
        return resize if isinstance(resize, int) else max(resize)
    size = getattr(preprocessing, "size", None)
    if size is None or not getattr(preprocessing, "do_resize", False):
        return None
    sizes = [size.get(key) or 0 for key in ("shortest_edge", "height", "width")]
    # Processors of ConvNeXt divide the size by the part that their crop keeps.
    return max(sizes) / (getattr(preprocessing, "crop_pct", None) or 1) or None


def _reduce(image: Any, factor: int) -> Any:
    """Reduce an image by an integer factor, or return it for a factor below 2.

    Unlike `Image.reduce`, this makes no partial pixels at the borders, which the next step would
    take for whole ones and stretch the image.
    """
    if factor < 2:
        return image
    shortest = min(image.size)
    # Rounded up, since processors of transformers round down the proportional length: 3:2 must
    # not become slightly less.
    width, height = (-(-side * (shortest // factor) // shortest) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.0)


def _pad_to_square(image: Any) -> Any:
    """Center an image on a white square."""
    image = _reduce(image, math.ceil(max(image.size) / _MAX_SQUARE))
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _iter_views(image: Image.Image, n_views: int) -> Iterator[Image.Image]:
    """Yield views of an RGB image: itself, mirrored, scaled by 2/3 on white, center scaled by 4/3.

    The views have the proportions of the image, up to a pixel. They are yielded one at a time,
    because each takes as much memory as the image.
    """
    yield image
    if n_views > 1:
        yield ImageOps.mirror(image)
    if n_views > 2:
        width, height = image.size
        yield ImageOps.expand(image, (width // 4, height // 4), "white")
        yield image.crop((width // 8, height // 8, width - width // 8, height - height // 8))
