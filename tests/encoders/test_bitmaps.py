"""Loading of BMP, TGA and icon files, whose alpha channel may be unused."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from sklearn_ape.encoders.images import read_image

RGB = np.random.default_rng(0).integers(0, 256, size=(16, 16, 3), dtype=np.uint8)


def pixels(item):
    image = read_image(item)
    assert image.mode == "RGB"
    return np.asarray(image)


def bmp(rgba):
    """Write a BMP file with an alpha channel, which Pillow does not write."""
    height, width = rgba.shape[:2]
    content = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    header = struct.pack("<IiiHHI", 108, width, height, 1, 32, 3)
    header += struct.pack("<5I", len(content), 2835, 2835, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    size = 14 + len(header) + len(content)
    return b"BM" + struct.pack("<3I", size, 0, 14 + len(header)) + header + content


def encode(alpha, kind):
    """Return a file with the colors of RGB and an alpha channel."""
    rgba = np.dstack([RGB, np.full((16, 16), alpha, np.uint8)])
    if kind == "bmp":
        return bmp(rgba)
    buffer = io.BytesIO()
    options = {"lossless": True, "exact": True} if kind == "webp" else {}
    if kind in ("ico", "cur"):
        options = {"bitmap_format": "bmp", "sizes": [(16, 16)]}
    Image.fromarray(rgba).save(buffer, "ico" if kind == "cur" else kind, **options)
    content = bytearray(buffer.getvalue())
    if kind == "cur":
        content[2] = 2  # the type of the file
    return bytes(content)


def forms(content, folder):
    """Yield a file as a path, as bytes, and as an image before and after it is loaded."""
    path = folder / "file"
    path.write_bytes(content)
    yield path
    yield content
    for source in (path, io.BytesIO(content)):
        with Image.open(source) as image:
            yield image
            image.load()
            yield image


@pytest.mark.parametrize("kind", ["bmp", "tga", "ico", "cur"])
def test_alpha_of_zero_everywhere_is_not_used(kind, tmp_path):
    """The images were white."""
    for item in forms(encode(0, kind), tmp_path):
        np.testing.assert_array_equal(pixels(item), RGB)


def test_grey_tga_with_alpha_of_zero_is_opaque(tmp_path):
    grey = RGB[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([grey, np.zeros_like(grey)]), "LA").save(buffer, "tga")
    for item in forms(buffer.getvalue(), tmp_path):
        np.testing.assert_array_equal(pixels(item)[:, :, 0], grey)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_transparent_image_of_other_formats_is_white(kind, tmp_path):
    for item in forms(encode(0, kind), tmp_path):
        assert (pixels(item) == 255).all()


@pytest.mark.parametrize("kind", ["bmp", "tga", "ico", "cur"])
def test_alpha_that_is_used_blends_with_white(kind, tmp_path):
    alpha = np.zeros((16, 16), np.uint8)
    alpha[0, :8], alpha[1] = 255, 128
    for item in forms(encode(alpha, kind), tmp_path):
        actual = pixels(item)
        np.testing.assert_array_equal(actual[0, :8], RGB[0, :8])
        np.testing.assert_allclose(actual[1], (RGB[1] + 254.0) / 2, atol=2)
        assert (actual[0, 8:] == 255).all()
        assert (actual[2:] == 255).all()
