"""Load images of any supported type as 8-bit RGB, and identify them by content."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.concurrency import LRUCache
from ..utils.files import IMAGE_SUFFIXES, is_settled, stamp_of
from .items import ItemError, as_items

if TYPE_CHECKING:
    from PIL import Image

# Files beyond this are looked at before they are read whole: a sparse file costs nothing to make.
_LARGE_FILE = 2**26


_READ_AT_ONCE = 2**20


_PIXELS_AT_ONCE = 2**20


_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


_SVG_STARTS = (b"<svg", b"<?xml", b"<!DOCTYPE svg")


# By absolute path: the file's stamp, and the digest of its content at that time.
_file_digests: LRUCache[str, tuple[tuple[int, ...], bytes]] = LRUCache(max_entries=1_000_000)


def undecoded(item: Any) -> Any:
    """Return what a dict of a Hugging Face data set holds, bytes or a path; else the item."""
    if not isinstance(item, Mapping):
        return item
    found = (item.get("bytes"), item.get("path"))
    return next((value for value in found if value is not None), item)


def image_digest(item: Any) -> bytes:
    """Return the sha256 of an image's content; a path stands for its file's bytes."""
    if isinstance(item, str | os.PathLike):
        return _file_digest(os.fsdecode(item))
    if isinstance(item, bytes | bytearray | memoryview):
        if not len(item):
            raise ItemError("is empty (0 bytes).")
        content = bytes(item)  # a view may have gaps
        digest = _new_digest(content[:4])
        digest.update(content)
        return digest.digest()
    pixels = _pixels(item)
    head = f"pixels {pixels.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).digest()


def check_image(item: Any) -> None:
    """Raise `ItemError` for what can be seen to be no image without decoding it."""
    if isinstance(item, str | os.PathLike | bytes | bytearray | memoryview):
        _open(item).close()


def read_image(item: Any, least_side: int | None = None, longer: bool = False) -> Image.Image:
    """Return an image as RGB, upright, on white.

    Parameters
    ----------
    item : str, path-like, bytes, PIL.Image.Image, ndarray of uint8 or dict
        An animated file gives its first frame. A dict has ``"bytes"`` or ``"path"``.
    least_side : int or None, default=None
        A JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size, for a fraction of the time, as
        long as its shorter side keeps so many pixels. None decodes it at its size.
    longer : bool, default=False
        The longer side must keep them, not the shorter one.

    Returns
    -------
    image : PIL.Image.Image
        Of mode RGB.

    Raises
    ------
    ItemError
        When it is not an image, is damaged, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    from PIL import Image

    item = undecoded(item)
    if isinstance(item, str | os.PathLike | bytes | bytearray | memoryview):
        image = _open(item)
        try:
            with image:
                if least_side is not None:
                    side = max(image.size) if longer else min(image.size)
                    width, height = (math.ceil(n * least_side / side) for n in image.size)
                    image.draft(None, (width, height))
                with _without_memory_map(image):
                    image.load()
                return _to_rgb(image)
        except MemoryError:
            raise ItemError(_too_large(image)) from None
        except Exception as error:  # Pillow's plugins raise anything on a damaged file
            raise ItemError(f"is damaged or cut short ({_reason(error)}).") from error
    if isinstance(item, Image.Image):
        try:
            with _without_memory_map(item):
                copy = item.copy()
            return _to_rgb(copy)
        except Exception as error:  # opened, but not yet read: as above
            raise ItemError(f"cannot be read ({_reason(error)}).") from error
    return _to_rgb(Image.fromarray(_pixels(item)))


@contextmanager
def _without_memory_map(image: Image.Image) -> Iterator[None]:
    """Keep Pillow from mapping a TIFF file into memory while its pixels are loaded.

    Pillow maps an uncompressed file with the size that it has after rotation by EXIF, so that the
    rows of a file that lies on its side come out wrong. It maps files that have a name.
    """
    name = getattr(image, "filename", "")
    if image.format != "TIFF" or not name:
        yield
        return
    known: Any = image
    known.filename = ""
    try:
        yield
    finally:
        known.filename = name


def _file_status(path: str) -> os.stat_result:
    """Return the status of a file with something in it; opening a pipe might wait for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ItemError(_no_such_file(path)) from None
    except (OSError, ValueError) as error:  # a NUL in the name, no permission
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise ItemError(_no_such_file(path)) from None
        raise ItemError(f"cannot be opened ({error}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise ItemError(
            "is a folder, not an image. List its files, for instance with "
            "sklearn_ape.datasets.load_image_folder."
        )
    if not stat.S_ISREG(status.st_mode):
        raise ItemError("is a pipe, a socket or a device, not a file. Pass the bytes it gives.")
    if status.st_size == 0:
        raise ItemError("is an empty file (0 bytes).")
    return status


def _file_digest(path: str) -> bytes:
    status = _file_status(path)
    stamp = stamp_of(status)
    key = os.path.abspath(path)
    cached = _file_digests.get(key)
    if cached is not None and cached[0] == stamp:
        return cached[1]
    if status.st_size > _LARGE_FILE:
        check_image(path)
    try:
        with open(path, "rb") as file:
            block = file.read(_READ_AT_ONCE)
            sha256 = _new_digest(block[:4])
            while block:
                sha256.update(block)
                block = file.read(_READ_AT_ONCE)
    except OSError as error:
        raise ItemError(f"cannot be read ({error.strerror}).") from None
    digest = sha256.digest()
    if is_settled(status):
        _file_digests.put(key, (stamp, digest))
    return digest


def _new_digest(start: bytes) -> Any:
    """Return the digest of a file that begins with some bytes, before it has read them.

    TIFF files have another digest than with the first versions, which read some rotated ones
    wrongly (see `_without_memory_map`): their features in a cache are not to be returned.
    """
    return hashlib.sha256(b"tiff" if start in _TIFF_STARTS else b"file")


def _no_such_file(path: str) -> str:
    if "://" in path or path.startswith("data:"):
        return "is an address, not a file. Download the image first and pass its path."
    is_one_name = not os.path.dirname(path) or (" " in path and not os.path.isabs(path))
    if is_one_name and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
        return (
            "is not a file. It looks like a caption: images go in X and captions in y "
            "(a path is taken relative to the current folder)."
        )
    return f"does not exist (looked for {os.path.abspath(path)[:500]!r})."


def _reason(error: Exception) -> str:
    """Return what Pillow says, in one line, or the kind of its error where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _too_large(image: Image.Image) -> str:
    return f"needs more memory than there is: {image.width} x {image.height} pixels. Shrink it."


def _open(item: Any) -> Image.Image:
    """Open a file or its bytes, reading the header alone."""
    from PIL import Image, UnidentifiedImageError

    is_path = isinstance(item, str | os.PathLike)
    if is_path:
        item = os.fsdecode(item)
        _file_status(item)
    try:
        image = Image.open(item if is_path else io.BytesIO(item))
    except UnidentifiedImageError:
        raise ItemError(_unidentified(item, is_path)) from None
    except Image.DecompressionBombError as error:
        raise ItemError(f"is refused: {error}") from None
    except Exception as error:  # Pillow's plugins raise anything on a damaged file
        raise ItemError(f"cannot be opened as an image ({_reason(error)}).") from None
    if image.format == "EPS":  # Pillow would run Ghostscript on it: a program, not an image
        image.close()
        raise ItemError("is a PostScript drawing. Render it to PNG first.")
    limit = Image.MAX_IMAGE_PIXELS
    width, height = image.size
    if limit is not None and width * height > limit:
        image.close()
        raise ItemError(
            f"is refused: {width} x {height} pixels are more than {limit:,}, as in a "
            "decompression bomb. Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        )
    return image


def _unidentified(item: Any, is_path: bool) -> str:
    if is_path:
        with open(item, "rb") as file:
            start = file.read(64)
    else:
        start = bytes(item[:64])
    if start.lstrip().startswith(_SVG_STARTS):
        return "is a vector drawing (SVG or XML). Render it to PNG first."
    if start.isascii() and b"\0" not in start:
        return f"is not an image but text (it begins with {start[:20].decode()!r})."
    return "is not an image in a format that Pillow knows, or its header is damaged."


def _pixels(item: Any) -> np.ndarray:
    """Return a PIL image or an array as uint8 pixels, (H, W) or (H, W, channels)."""
    from PIL import Image

    if isinstance(item, Image.Image):
        return np.asarray(read_image(item))
    if not isinstance(item, np.ndarray):
        raise ItemError(
            f"is of type {type(item).__name__}: expected a path, bytes, a PIL image or a uint8 "
            f"array of shape (H, W, 3).{_remedy(item)}"
        )
    if item.dtype != np.uint8:
        raise ItemError(
            f"is an array of {item.dtype}: expected uint8 from 0 to 255. For values between 0 "
            "and 1, pass (255 * array).astype('uint8')."
        )
    if np.ma.is_masked(item):
        raise ItemError(
            "is an array with masked pixels: pass array.filled(255) to show them white."
        )
    pixels = item[..., 0] if item.ndim == 3 and item.shape[2] == 1 else item
    if (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) and pixels.size:
        return pixels
    hint = ""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
        hint = " Channels come last: pass array.transpose(1, 2, 0)."
    raise ItemError(
        f"is an array of shape {item.shape}: expected (H, W, 3), (H, W, 4) or (H, W).{hint}"
    )


def _remedy(item: Any) -> str:
    """Say what to pass instead of a common kind of object that is not an image."""
    if isinstance(item, tuple | list):
        return (
            " Of a data set of tuples such as torchvision's ImageFolder, pass the images alone, "
            "[image for image, *_ in dataset]."
        )
    if isinstance(item, Mapping):
        return " A dict is an image where it has 'bytes' or 'path', as in Hugging Face data sets."
    if hasattr(item, "__array__") and hasattr(item, "dtype"):  # of torch, tensorflow, jax
        return (
            " Convert it with torchvision.transforms.functional.to_pil_image(tensor), or to a "
            "NumPy array with the channels last and values from 0 to 255."
        )
    return ""


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode, which may be changed, to upright RGB on white."""
    from PIL import Image, ImageOps

    image.load()
    # Damaged tags do not cost the image, and raise anything.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if not all(image.size):
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    if image.mode == "La":  # Pillow knows no other way from it
        image = image.convert("LA")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bit(image).convert("RGB")
    # `convert` copies what is of the mode already.
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", rgba.size, "white")
        ground.paste(rgba, mask=rgba)
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and floating point grey to 0..255 instead of clipping it."""
    from PIL import Image

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it has pixels that are not finite")
    if image.mode == "F":
        full = 1.0 if high <= 1.0 else 255.0 if high <= 255.0 else high
    elif image.mode == "I":
        full = 255.0 if high <= 255.0 else 65535.0 if high <= 65535.0 else high
    else:
        full = 65535.0
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, values.size, _PIXELS_AT_ONCE):  # as doubles, all would fill the memory
        some = slice(start, start + _PIXELS_AT_ONCE)
        scaled = values.reshape(-1)[some].astype(np.float64) * (255.0 / full)
        grey.reshape(-1)[some] = np.clip(scaled, 0, 255).round()
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def image_digests(X: Any) -> np.ndarray | None:
    """Return 16 bytes per image, equal for images with the same content.

    Parameters
    ----------
    X : sequence of images
        Paths, bytes, PIL images or arrays. A path stands for the bytes of its file.

    Returns
    -------
    digests : ndarray of shape (n_images,) and dtype V16, or None
        An item that is not an image, or cannot be read, differs from all others. None where X
        is not a sequence of items but, for instance, a table.
    """
    try:
        items = as_items(X, "image")
    except ValueError:
        return None
    digests = np.empty(len(items), dtype="V16")
    for row, item in enumerate(items):
        try:
            digest = image_digest(item)
        except ItemError:
            digest = hashlib.sha256(f"row {row}".encode()).digest()
        digests[row] = np.void(digest[:16])
    return digests


def image_groups(images: Any) -> np.ndarray:
    """Return the group of every image, for scores of their features: equal content, equal group.

    Parameters
    ----------
    images : sequence of images
        See `image_digests`.

    Returns
    -------
    groups : ndarray of int, shape (n_images,)
        Pass it as ``groups`` where an aligner scores features of these images.
    """
    digests = image_digests(images)
    if digests is None:
        raise ValueError(f"images must be a sequence of images, not {type(images).__name__}.")
    return np.unique(digests, return_inverse=True)[1]
