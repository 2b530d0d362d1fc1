"""Images: loading of files, arrays and PIL images as 8-bit RGB, and digests of their content."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.utils import gen_batches

from ..features.matrix import is_table
from ..utils.concurrency import LRUCache
from ..utils.files import describe_missing_image, has_reliable_stamp, read_stamp
from .items import BYTES, ItemError, as_items

# The header of larger files is checked before the whole file is read for its digest, because a
# sparse file may pretend to be of any size.
_LARGE_FILE = 2**26

# Resizing the shorter side of a narrower image would make the longer one fill the memory.
_MAX_ASPECT_RATIO = 100

# Number of pixels scaled at a time, which bounds memory.
_PIXELS_AT_ONCE = 2**20

# Tags of TIFF files.
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT, _TILE_SIZE = 258, 262, 284, 339, (322, 323)
_YCBCR, _SEPARATE = 6, 2
# Pillow's names of big-endian numbers, and of numbers in the byte order of the processor.
_NATIVE_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}

# The stamp and the digest of a file by its absolute path.
_file_digests: LRUCache[str, tuple[tuple[int, ...], bytes]] = LRUCache(max_entries=1_000_000)


def unwrap_image(item: Any) -> Any:
    """Return the bytes or the path in a dict of a Hugging Face dataset, or the item unchanged."""
    if not isinstance(item, Mapping):
        return item
    values = (item.get("bytes"), item.get("path"))
    return next((value for value in values if value is not None), item)


def digest_image(item: Any) -> bytes:
    """Return the sha256 of an image's content: bytes of a file, or pixels."""
    if isinstance(item, str | os.PathLike):
        return _digest_file(os.fsdecode(item))
    if isinstance(item, BYTES):
        if not len(item):
            raise ItemError("is empty (0 bytes). Pass the content of an image file.")
        content = bytes(item)  # a memoryview may have strides
        return hashlib.sha256(b"file" + content).digest()
    pixels = _to_pixels(item)
    header = f"pixels {pixels.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(pixels).tobytes()).digest()


def check_image(item: Any) -> None:
    """Raise ItemError for an item whose header shows that it is not an image."""
    if isinstance(item, str | os.PathLike | BYTES):
        _open(item).close()


def check_proportions(image: Image.Image) -> None:
    """Raise ItemError for an image that is too narrow for the networks of encoders."""
    if max(image.size) > _MAX_ASPECT_RATIO * min(image.size):
        raise ItemError(f"is too narrow ({image.width} x {image.height} pixels). Crop it.")


def read_image(
    item: Any, min_side: int | None = None, use_longer_side: bool = False
) -> Image.Image:
    """Return an upright RGB image, with transparent pixels blended with white.

    The first frame of an animated file is used, and the current frame of a PIL image. A larger
    JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, if the shorter (or
    longer) side then has at least `min_side` pixels.
    """
    item = unwrap_image(item)
    if isinstance(item, str | os.PathLike | BYTES):
        return _read_file(_open(item), min_side, use_longer_side)
    if not isinstance(item, Image.Image):
        image = Image.fromarray(_to_pixels(item))
        return _to_rgb(image, image)
    _check_pixels(item)
    try:
        with _correct_pixels(item):
            _load(item)
        copy = item.copy()
        return _to_rgb(copy, item)
    except ItemError:
        raise
    except Exception as error:  # Pillow opens files lazily, so this may read a damaged file
        reason = _describe_error(error)
        raise ItemError(f"cannot be read ({reason}). Replace the image.") from error


def _read_file(image: Image.Image, min_side: int | None, use_longer_side: bool) -> Image.Image:
    """Return the RGB image of an open file, and close the file."""
    try:
        with image:
            draft = None
            if min_side is not None:
                side = max(image.size) if use_longer_side else min(image.size)
                width, height = (math.ceil(n * min_side / side) for n in image.size)
                draft = image.draft(None, (width, height))  # None for formats except JPEG
            with _correct_pixels(image):
                _load(image)
            if draft is not None and draft[1][2:] != image.size:  # the last pixels are partial
                image = image.resize(image.size, Image.Resampling.BILINEAR, draft[1])
            return _to_rgb(image, image)
    except ItemError:
        raise
    except MemoryError:
        raise ItemError(
            f"does not fit into memory ({image.width} x {image.height} pixels). Shrink it."
        ) from None
    except Exception as error:  # plugins raise many exception types for damaged files
        reason = _describe_error(error)
        raise ItemError(f"is damaged or cut short ({reason}). Replace the file.") from error


# The last marker of a JPEG file, and bytes with all markers at which its pixels may continue. A
# decoder would read these bytes as pixels if some are missing, and skips them otherwise.
_JPEG_END = b"\xff\xd9"
_JPEG_NOISE = b"".join(bytes(range(254, 0, -1)) + bytes((255, 208 + i)) for i in range(8))


def _load(image: Any) -> None:
    """Load the pixels of an image, also those of a JPEG file that lacks only its last marker."""
    try:
        image.load()
    except OSError:
        file = getattr(image, "fp", None)
        if image.format != "JPEG" or "progressive" in image.info or file is None:
            raise
        file.seek(0)
        content = file.read().removesuffix(_JPEG_END[:1])
        if not _has_all_pixels(content):
            raise
        image.fp = io.BytesIO(content + _JPEG_END)
        image.load()
        image.fp = file  # to be closed


def _has_all_pixels(jpeg: bytes) -> bool:
    """Return whether a JPEG file without its last marker has all pixels.

    Zeros at the end are the missing part of an interrupted download. Progressive files would need
    another check, as all pixels are stored several times.
    """
    if jpeg.endswith(bytes(16)):
        return False
    files = [io.BytesIO(jpeg + more + _JPEG_END) for more in (b"", _JPEG_NOISE)]
    first, second = (Image.open(file).tobytes() for file in files)
    return first == second


@contextmanager
def _correct_pixels(image: Any) -> Iterator[None]:
    """Correct how Pillow reads the pixels of a TIFF or PNG file while they are loaded.

    Workarounds: Pillow maps an uncompressed TIFF file with its size after rotation by EXIF if the
    image has a file name. It swaps the bytes of compressed big-endian numbers, which libtiff has
    swapped already. It cannot read numbers of several bytes if a single channel is a separate
    plane. It scales the pixels of a PNG file to 8 bits, but not the value that is transparent.
    """
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(transparent, int):
        scaled = transparent * _find_png_step(image, transparent)
        if scaled <= 255:  # otherwise it was scaled before
            image.info["transparency"] = scaled
    if not hasattr(image, "tag_v2"):  # a converted image may have been given the format as well
        yield
        return
    if image.tile and image.tag_v2.get(_PLANES) == _SEPARATE and len(image.getbands()) == 1:
        image.tag_v2[_PLANES] = 1
        image._setup()
    for index, (decoder, box, offset, args) in enumerate(image.tile):
        if decoder == "libtiff" and args[0] in _NATIVE_MODES:
            image.tile[index] = decoder, box, offset, (_NATIVE_MODES[args[0]], *args[1:])
    name, image.filename = getattr(image, "filename", ""), ""
    try:
        yield
    finally:
        image.filename = name


def _find_png_step(image: Any, transparent: int) -> int:
    """Return the difference of neighbouring grey values of a PNG file, scaled to 8 bits."""
    if tile := getattr(image, "tile", None):
        return {"L;2": 85, "L;4": 17}.get(tile[0][3], 1)
    # The pixels are loaded, and the number of bits is no longer known. If they have the values of
    # a step, and the transparent value is below the number of these, it has not been scaled.
    values = np.flatnonzero(image.histogram())
    steps = (step for step in (85, 17) if transparent <= 255 // step and not (values % step).any())
    return next(steps, 1)


def _stat_file(path: str) -> os.stat_result:
    """Return the status of a regular file that is not empty. Opening a pipe could block."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # for instance a NUL in the name, or no permission
        if getattr(error, "errno", None) in (errno.ENOENT, errno.ENAMETOOLONG):
            raise ItemError(describe_missing_image(path)) from None
        raise ItemError(
            f"cannot be opened ({error}). Check the path and its permissions."
        ) from None
    if stat.S_ISDIR(status.st_mode):
        raise ItemError(
            "is a folder, not an image. List its files, for instance with "
            "sklearn_ape.datasets.load_image_folder."
        )
    if not stat.S_ISREG(status.st_mode):
        raise ItemError("is a pipe, a socket or a device, not a file. Pass its bytes.")
    if status.st_size == 0:
        raise ItemError("is an empty file (0 bytes). Replace the file.")
    return status


def _digest_file(path: str) -> bytes:
    status = _stat_file(path)
    stamp = read_stamp(status)
    key = os.path.abspath(path)
    if (cached := _file_digests.get(key)) and cached[0] == stamp:
        return cached[1]
    if status.st_size > _LARGE_FILE:
        check_image(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.sha256(b"file")).digest()
    except OSError as error:
        raise ItemError(f"cannot be read ({error.strerror}). Check its permissions.") from None
    if has_reliable_stamp(status):
        _file_digests.put(key, (stamp, digest))
    return digest


def _describe_error(error: Exception) -> str:
    """Return the message of an error in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _open(item: Any) -> Image.Image:
    """Open a file or its bytes, reading only the header."""
    is_path = isinstance(item, str | os.PathLike)
    if is_path:
        item = os.fsdecode(item)
        _stat_file(item)
    try:
        image = Image.open(item if is_path else io.BytesIO(item))
    except UnidentifiedImageError:
        with open(item, "rb") if is_path else io.BytesIO(item) as file:
            raise ItemError(_describe_unknown_format(file.read(64))) from None
    except Image.DecompressionBombError as error:
        raise ItemError(f"is rejected: {error} Shrink it.") from None
    except Exception as error:  # plugins raise many exception types for damaged files
        raise ItemError(
            f"cannot be opened as an image ({_describe_error(error)}). Replace the file."
        ) from None
    try:
        if image.format == "EPS":  # a program: Pillow would run Ghostscript on it
            raise ItemError("is a PostScript drawing. Render it to PNG first.")
        limit = Image.MAX_IMAGE_PIXELS
        width, height = image.size
        if limit is not None and width * height > limit:
            raise ItemError(
                f"is rejected: {width} x {height} pixels are more than {limit:,} and may be a "
                "decompression bomb. Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust "
                "it."
            )
        _check_pixels(image)
    except ItemError:
        image.close()
        raise
    return image


def _check_pixels(image: Image.Image) -> None:
    """Raise ItemError for a file whose pixels Pillow reads incorrectly or in too much memory."""
    tags = getattr(image, "tag_v2", {})
    is_raw = image.info.get("compression") == "raw"
    tile = [tags.get(tag, 1) for tag in _TILE_SIZE]  # decoded as a whole, even outside the image
    is_valid = all(isinstance(side, int) for side in tile)
    has_planes = tags.get(_PLANES) == _SEPARATE and len(image.getbands()) > 1
    kind = ""
    if is_raw and tags.get(_PHOTOMETRIC) == _YCBCR:
        kind = "a TIFF file with uncompressed YCbCr colors"
    elif is_raw and has_planes and max(tags.get(_BITS, (1,))) > 8:
        kind = "a TIFF file with uncompressed colors of 16 bits in separate planes"
    elif image.format == "FITS" and image.mode != "L":
        kind = "a FITS file of more than 8 bits"
    elif not is_valid or math.prod(tile) > (Image.MAX_IMAGE_PIXELS or math.inf):
        kind = "a TIFF file with tiles of too many pixels"
    if kind:
        raise ItemError(f"is {kind}, which Pillow cannot read. Save it as PNG.")


def _describe_unknown_format(start: bytes) -> str:
    if start.lstrip().startswith((b"<svg", b"<?xml", b"<!DOCTYPE svg")):
        return "is a vector drawing (SVG or XML). Render it to PNG first."
    if start[4:8] == b"ftyp" and b"heic" in start:
        return "is a HEIC image, which Pillow cannot read. Convert it to JPEG."
    if start.isascii() and b"\0" not in start:
        return (
            f"is a text file, not an image (it starts with {start[:20].decode()!r}). Replace it."
        )
    return "is damaged or not an image in a format that can be read. Convert it to PNG or JPEG."


def _to_pixels(item: Any) -> np.ndarray:
    """Return uint8 pixels, (H, W) or (H, W, channels), of a PIL image or an array."""
    if isinstance(item, Image.Image):
        return np.asarray(read_image(item))
    if not isinstance(item, np.ndarray):
        raise ItemError(
            f"is of type {type(item).__name__}. Pass a path, bytes, a PIL image or a uint8 "
            f"array of shape (H, W, 3).{_suggest_conversion(item)}"
        )
    if item.dtype != np.uint8:
        raise ItemError(
            f"is an array of {item.dtype}, not uint8 from 0 to 255. "
            f"{_suggest_uint8_cast(item.dtype)}"
        )
    if np.ma.is_masked(item):
        raise ItemError(
            "is an array with masked pixels. Pass array.filled(255) to make them white."
        )
    pixels = item[..., 0] if item.ndim == 3 and item.shape[2] == 1 else item
    if (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) and pixels.size:
        return pixels
    hint = ""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
        hint = " Channels must be last: use array.transpose(1, 2, 0)."
    raise ItemError(
        f"is an array of shape {item.shape}. Pass an array of shape (H, W, 3), (H, W, 4) or "
        f"(H, W).{hint}"
    )


def _suggest_uint8_cast(dtype: np.dtype) -> str:
    """Return a sentence on how to make pixels uint8, the same for all images of a dataset."""
    if dtype.kind in "OSU":
        return "If it holds paths, use X.ravel().tolist() to pass a list of them."
    rules = "(255 * array).astype('uint8') for values from 0 to 1"
    if dtype.kind == "f":
        rules += ", (127.5 * (array + 1)).astype('uint8') for values from -1 to 1"
    elif dtype.kind != "b":
        rules = "(array // 16).astype('uint8') for 12 bits, (array // 257).astype('uint8') for 16"
    return (
        f"Pass {rules}, or array.astype('uint8') for values from 0 to 255. Scale values of "
        "another range, such as 0 to 16, to this one."
    )


def _suggest_conversion(item: Any) -> str:
    """Return a sentence on how to convert common types of objects, or ""."""
    if isinstance(item, tuple | list):
        return (
            " For a dataset of tuples such as torchvision's ImageFolder, pass only the images, "
            "[image for image, *_ in dataset]."
        )
    if isinstance(item, Mapping):
        hint = " A dict must have 'bytes' or 'path', as in Hugging Face datasets."
        if "image" in item:
            hint += " For rows of a dataset, pass [row['image'] for row in rows]."
        return hint
    if hasattr(item, "__array__") and len(getattr(item, "shape", ())) > 0:  # torch, tensorflow
        return (
            " Convert it with torchvision.transforms.functional.to_pil_image(tensor), or to a "
            "NumPy array with channels last and values from 0 to 255."
        )
    return ""


# Formats of many files whose alpha channel is not used: it is 0, and programs show the colors.
_OPTIONAL_ALPHA = frozenset({"BMP", "CUR", "DIB", "ICO", "TGA"})


def _to_rgb(image: Image.Image, source: Image.Image) -> Image.Image:
    """Return an image of any mode as upright RGB on white; may change the image in place.

    `source` is the image that was opened. A copy of it has neither its format nor its tags.
    """
    image.load()
    # Damaged EXIF tags raise many exception types; the image is read without rotation then.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if not all(image.size):
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    if image.mode == "La":  # Pillow converts it only to LA
        image = image.convert("LA")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_to_bytes(image, getattr(source, "tag_v2", {})).convert("RGB")
    # Avoid copies: `convert` copies an image that already has the mode.
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        if source.format in _OPTIONAL_ALPHA and not rgba.getchannel("A").getextrema()[1]:
            return rgba.convert("RGB")
        background = Image.new("RGB", rgba.size, "white")
        background.paste(rgba, mask=rgba)
        return background
    return image if image.mode == "RGB" else image.convert("RGB")


# Largest value of a floating point image, relative to its white.
_OVERSHOOT = 1.5
# Smallest maximum of a floating point image whose white is 255. Smaller values are more probably
# standardized, or fractions with highlights, than an image that is almost black.
_MIN_RANGE = 16


def _scale_to_bytes(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Scale 16-bit, 32-bit and floating point grey values to 0..255 instead of clipping them."""
    values = np.asarray(image)
    # Pillow reads both of these kinds as signed 32-bit integers. Sample format 2 is signed.
    kind = image.mode, tags.get(_BITS), tags.get(_SAMPLE_FORMAT, (1,))
    is_uint32, is_int16 = kind == ("I", (32,), (1,)), kind == ("I", (16,), (2,))
    if is_uint32:
        values = values.view(np.uint32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ItemError(
            "has pixels that are NaN or infinite. Replace them, for example by 0 (black)."
        )
    white = _find_white(low, high, is_float=image.mode == "F", is_int16=is_int16)
    grey = np.empty(values.shape, np.uint8)
    for block in gen_batches(values.size, _PIXELS_AT_ONCE):  # bounds memory of float64 copies
        scaled = values.reshape(-1)[block].astype(np.float64) * (255.0 / white)
        grey.reshape(-1)[block] = np.clip(scaled, 0, 255).round()
    # White is 0. Pillow inverts such images of 8 bits only.
    if tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _find_white(low: float, high: float, is_float: bool, is_int16: bool) -> float:
    """Return the value of white in an image whose values are from `low` to `high`.

    The mode of the image does not tell it: cameras and scanners store 10 or 12 bits in 16.
    """
    # Interpolation gives floating point values beyond white.
    if is_float and high <= 255 * _OVERSHOOT:
        if low >= 1 - _OVERSHOOT and high <= _OVERSHOOT:
            return 1.0
        if high < _MIN_RANGE:
            raise ItemError(
                f"has floating point values from {low:.3g} to {high:.3g}, of which none is known "
                "to be white. Scale them, so that black is 0 and white is 1 or 255."
            )
        return 255.0
    largest_values = 255, 1023, 4095, 32767 if is_int16 else 65535  # of 8, 10, 12 and 16 bits
    return next((float(value) for value in largest_values if high <= value), high)


def digest_images(X: Any) -> np.ndarray | None:
    """Return 16 bytes per image, equal for images with the same content, or None for a table.

    An item that is not an image, or cannot be read, has a unique digest.
    """
    if is_table(X):
        return None
    try:
        items = as_items(X, "image")
    except ValueError:
        return None
    if isinstance(items[0], list | tuple) or getattr(items[0], "ndim", 3) < 2:
        return None  # rows of numbers
    digests = np.empty(len(items), dtype="V16")
    for row, item in enumerate(items):
        try:
            digest = digest_image(unwrap_image(item))
        except ItemError:
            digest = hashlib.sha256(f"row {row}".encode()).digest()
        digests[row] = np.void(digest[:16])
    return digests


def group_images(images: Any) -> np.ndarray:
    """Return group numbers of images, which are equal for images with the same content."""
    digests = digest_images(images)
    if digests is None:
        raise ValueError(f"images must be a sequence of images, not {type(images).__name__}.")
    return np.unique(digests, return_inverse=True)[1]
