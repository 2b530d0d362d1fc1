"""Loading of images of any supported type."""

import contextlib
import io
import os
import shutil
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from sklearn_ape.encoders.images import check_image, digest_image, read_image
from sklearn_ape.encoders.items import ItemError

RGB = np.random.default_rng(0).integers(0, 256, size=(24, 32, 3), dtype=np.uint8)


def pixels(item):
    image = read_image(item)
    assert image.mode == "RGB"
    return np.asarray(image)


def encoded(image, suffix, **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def is_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    return np.abs(actual.astype(int) - expected).mean() < tolerance


def png(width, height, bit_depth, color_type, raw, *more):
    """Write a PNG without Pillow, which cannot write 16-bit RGB or a wrong header."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0))]
    chunks += [*more, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


# ---------------------------------------------------------------- types of images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_modes_are_converted(mode):
    image = Image.fromarray(RGB).convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    np.testing.assert_array_equal(pixels(image), expected)


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "RGBX", "LAB"])
def test_rare_pil_modes_are_read_or_raise(mode):
    image = Image.new(mode, (8, 8))
    with contextlib.suppress(ItemError):
        assert read_image(image).size == (8, 8)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I;16", [0, 257 * 100, 65535], [0, 100, 255]),
        ("I;16", [0, 100, 255], [0, 100, 255]),
        ("I;16", [0, 512, 1000], [0, 128, 249]),
        ("I;16", [0, 2048, 4095], [0, 128, 255]),
        ("I", [0, 257 * 100, 65535], [0, 100, 255]),
        ("I", [0, 100, 255], [0, 100, 255]),
        ("I", [-5, 0, 10**6], [0, 0, 255]),
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),
        ("F", [-0.02, 0.5, 1.02], [0, 128, 255]),
        ("F", [0.0, 100.0, 255.0], [0, 100, 255]),
        ("F", [-20.0, 100.0, 290.0], [0, 100, 255]),  # the result of a bicubic interpolation
        ("F", [0.0, 0.0, 0.0], [0, 0, 0]),
        ("F", [0.0, 8.0, 16.0], [0, 8, 16]),
        ("F", [0.0, 32768.0, 65535.0], [0, 128, 255]),
    ],
)
def test_deep_grey_is_scaled_not_clipped(mode, values, expected):
    """16-bit, 32-bit and float grey values are scaled (`convert` would clip them)."""
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.array([values], dtype=dtype))
    assert image.mode == mode
    np.testing.assert_array_equal(pixels(image)[0, :, 0], expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0.5, 2.5], "values from 0 to 2.5, of which none is known to be white. Scale them"),
        ([-1, 0, 1], "values from -1 to 1, of which none is known to be white. Scale them"),
        ([-3, -2, -1], "values from -3 to -1, of which none"),
        (
            [0, 0.5, np.nan],
            r"pixels that are NaN or infinite\. Replace them, for example by 0",
        ),
        ([0, 0.5, np.inf], "has pixels that are NaN or infinite"),
    ],
)
def test_float_image_of_unknown_range_raises(values, message, tmp_path):
    """Most values would become black, or white would be chosen at random."""
    image = Image.fromarray(np.array([values], dtype=np.float32))
    image.save(tmp_path / "image.tif")
    for item in (image, tmp_path / "image.tif"):
        with pytest.raises(ItemError, match=message) as caught:
            read_image(item)
        assert "Replace the file" not in str(caught.value)  # which is not damaged


def test_transparency_is_blended_with_white():
    """Transparent pixels are white, and half-transparent ones are blended."""
    rgba = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [255, 0, 0, 128]]], dtype=np.uint8)
    expected = [[255, 255, 255], [255, 0, 0], [255, 127, 127]]
    np.testing.assert_array_equal(pixels(rgba)[0], expected)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(rgba), "png"))[0], expected)
    la = Image.fromarray(np.array([[[0, 0], [0, 255], [0, 128]]], dtype=np.uint8), "LA")
    np.testing.assert_array_equal(pixels(la)[0, :, 0], [255, 0, 127])


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_of_a_png_is_white(mode):
    """A transparent palette entry or color (tRNS) is white."""
    image = Image.new(mode, (4, 4), 0)
    if mode == "P":
        image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), (200, 100, 50) if mode == "RGB" else 1)
    clear = (0, 0, 0) if mode == "RGB" else 0
    actual = pixels(encoded(image, "png", transparency=clear))
    np.testing.assert_array_equal(actual[1:], np.full((3, 4, 3), 255))
    assert tuple(actual[0, 0]) == {"P": (200, 100, 50), "L": (1,) * 3, "RGB": (200, 100, 50)}[mode]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("clear", [0, 1])
def test_transparent_grey_of_few_bits_is_white(bits, clear):
    """Pillow scales the pixels of such a PNG file to 8 bits, but not the transparent value."""
    row = {1: b"\x40", 2: b"\x1b", 4: b"\x01\x23", 8: bytes(range(4))}[bits]  # pixels 0, 1, ...
    expected = np.arange(min(4, 2**bits)) * (255 // (2**bits - 1))
    content = png(len(expected), 1, bits, 0, b"\0" + row, (b"tRNS", bytes([0, clear])))
    expected[clear] = 255
    opened, loaded = (Image.open(io.BytesIO(content)) for _ in range(2))
    loaded.load()
    # Reading an image again does not change it.
    for item in (content, opened, opened, loaded, loaded):
        np.testing.assert_array_equal(pixels(item)[0, :, 0], expected)


def test_fits_of_more_than_8_bits_raises():
    """Pillow reads the numbers, which are big-endian, as if they were little-endian."""
    values = np.array([[0, 60], [100, 255]], np.uint8)
    for bits, dtype in ((8, ">u1"), (16, ">i2"), (32, ">i4"), (-32, ">f4")):
        cards = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": 2, "NAXIS1": 2, "NAXIS2": 2}
        header = "".join(f"{f'{name:8}= {value:>20}':80}" for name, value in cards.items()) + "END"
        content = f"{header:2880}".encode() + values.astype(dtype).tobytes().ljust(2880, b"\0")
        if bits == 8:
            assert pixels(content)[::-1, :, 0].tolist() == values.tolist()  # the lowest row first
        else:
            with pytest.raises(ItemError, match="FITS file of more than 8 bits"):
                read_image(content)


def test_16_bit_rgb_png_is_scaled():
    """Channels of 16 bits are reduced to their upper 8 bits."""
    raw = b"\0" + struct.pack(">6H", 0, 257 * 100, 65535, 257 * 7, 257 * 8, 257 * 9)
    np.testing.assert_array_equal(pixels(png(2, 1, 16, 2, raw))[0], [[0, 100, 255], [7, 8, 9]])


def test_16_bit_grey_png_is_scaled(tmp_path):
    """16-bit grey values keep their differences."""
    Image.fromarray(np.array([[0, 257 * 60, 65535]], dtype=np.uint16)).save(tmp_path / "g.png")
    np.testing.assert_array_equal(pixels(tmp_path / "g.png")[0, :, 1], [0, 60, 255])


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0.01),
        ("tiff", {}, 0.01),
        ("tiff", {"compression": "tiff_lzw"}, 0.01),
        ("bmp", {}, 0.01),
        ("webp", {"lossless": True}, 0.01),
        ("jpeg", {"quality": 95}, 3),
        ("jpeg", {"quality": 95, "progressive": True}, 3),
        ("gif", {}, 20),
    ],
)
def test_file_formats_are_read(tmp_path, suffix, options, tolerance):
    """Path, str, bytes, bytearray and memoryview of a file give the same image."""
    smooth = Image.fromarray(RGB).resize((4, 3)).resize((64, 48), Image.Resampling.BICUBIC)
    content = encoded(smooth, suffix, **options)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    image = pixels(path)
    assert is_close(image, np.asarray(smooth), tolerance)
    for item in (str(path), content, bytearray(content), memoryview(content)):
        np.testing.assert_array_equal(pixels(item), image)
        assert digest_image(item) == digest_image(path)


def test_cmyk_jpeg_is_not_inverted():
    """Adobe's inverted CMYK is read with the right sign."""
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = pixels(encoded(cmyk, "jpeg", quality=95)).reshape(-1, 3).mean(axis=0)
    assert red[0] > 200
    assert red[1:].max() < 60


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(RGB), "png", exif=exif)
    upright = np.rot90(RGB, -1)
    np.testing.assert_array_equal(pixels(content), upright)
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(content))), upright)


def test_image_dict_is_read(tmp_path):
    content = encoded(Image.fromarray(RGB), "png")
    (tmp_path / "a.png").write_bytes(content)
    for item in ({"bytes": content, "path": None}, {"path": tmp_path / "a.png"}):
        np.testing.assert_array_equal(pixels(item), RGB)
    with pytest.raises(ItemError, match=r"is of type dict\. .*'bytes' or 'path'"):
        read_image({"bytes": None, "path": None})


def test_masked_array_raises():
    """Masked pixels would be read as if they were valid."""
    with pytest.raises(ItemError, match=r"masked pixels. Pass array\.filled\(255\)"):
        read_image(np.ma.masked_less(RGB, 9))
    np.testing.assert_array_equal(pixels(np.ma.array(RGB)), RGB)


def test_animation_gives_first_frame():
    """The first frame of a file is used, and the current frame of a PIL image."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    content = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(content)[0, 0], [255, 0, 0])
    with Image.open(io.BytesIO(content)) as image:
        image.seek(2)
        np.testing.assert_array_equal(pixels(image)[0, 0], [0, 0, 255])


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 1), (24, 32, 3), (24, 32, 4)])
def test_arrays_are_read(shape):
    """uint8 arrays of 1, 3 or 4 channels are read, contiguous or not."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, size=shape, dtype=np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 255
    expected = array if shape[-1] == 3 else array[..., :3]
    if array.ndim == 2 or shape[-1] == 1:
        expected = np.repeat(array.reshape(24, 32, 1), 3, axis=2)
    np.testing.assert_array_equal(pixels(array), expected)
    np.testing.assert_array_equal(pixels(array[::-1, ::2]), expected[::-1, ::2])


def test_reading_does_not_change_image():
    image = Image.fromarray(RGB).convert("P")
    read_image(image)
    assert image.mode == "P"
    image.load()
    rgb = Image.fromarray(RGB)
    read_image(rgb).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(rgb), RGB)


# ---------------------------------------------------------------- digests


def test_digest_depends_on_content(tmp_path):
    """A copied file has the same digest; other content has another."""
    path, other = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(RGB).save(path)
    shutil.copy(path, other)
    first = digest_image(path)
    assert digest_image(str(other)) == first
    path.rename(tmp_path / "c.png")
    assert digest_image(tmp_path / "c.png") == first
    Image.fromarray(RGB[::-1]).save(other)
    assert digest_image(other) != first


def test_array_digest_depends_on_shape():
    assert digest_image(RGB) != digest_image(RGB.reshape(32, 24, 3))
    assert digest_image(RGB[::-1]) != digest_image(RGB)
    assert digest_image(RGB) == digest_image(Image.fromarray(RGB))


@pytest.mark.parametrize("age", [0, 3600])
def test_changed_file_of_same_size_and_time_has_new_digest(tmp_path, age):
    """A file rewritten at once with equal name, size and mtime has a new digest."""
    path = tmp_path / "a.bmp"
    for attempt in range(20):
        when = time.time() - age
        path.write_bytes(b"%4d" % attempt + b"a" * 1000)
        os.utime(path, (when, when))
        first = digest_image(path)
        path.write_bytes(b"%4d" % attempt + b"b" * 1000)
        os.utime(path, (when, when))
        assert digest_image(path) != first


def test_file_changed_after_clock_step_has_new_digest(tmp_path, monkeypatch):
    """Digests from before the clock was set back are not used."""
    path = tmp_path / "a.png"
    path.write_bytes(b"aaaa")
    before = os.stat(path)
    monkeypatch.setattr("sklearn_ape.encoders.images._stat_file", lambda path: before)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10)
    first = digest_image(path)
    path.write_bytes(b"bbbb")  # the file status does not change
    assert digest_image(path) == first, "the digest is not cached, so the test has no effect"
    monkeypatch.setattr(time, "time", lambda: now)
    assert digest_image(path) != first


def test_unchanged_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    monkeypatch.setattr("sklearn_ape.utils.files._MIN_STAMP_AGE_S", -1.0)
    first = digest_image(path)

    def fails(self):
        raise AssertionError("the file was read twice")

    monkeypatch.setattr("pathlib.Path.read_bytes", fails)
    assert digest_image(path) == first


# ---------------------------------------------------------------- invalid images


def bad_items(folder):
    good = encoded(Image.fromarray(RGB), "png")
    files = {
        "empty.png": b"",
        "text.png": b"a cat on a mat",
        "page.jpg": b"<!DOCTYPE html><html></html>",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "drawing.png": b'\n<?xml version="1.0"?><svg/>',
        "cut.png": good[: len(good) // 2],
        "header.png": good[:20],
        "zeros.png": bytes(500),
        "iphone.jpg": b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic" + bytes(100),
        "cut.jpg": encoded(Image.fromarray(RGB), "jpeg")[:-300],
        "bomb.png": png(60_000, 60_000, 8, 2, b"\0" * 100),
        "small-bomb.png": png(10_000, 10_000, 8, 2, b"\0" * 100),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    closed = Image.open(io.BytesIO(good))
    closed.close()
    return {
        "an empty text": ("", "is an empty text, not a path"),
        "a caption": ("a cat on a mat", "looks like a caption. Pass images as X"),
        "a caption with a slash": ("a black/white cat", "looks like a caption"),
        "a long caption": ("a very long caption " * 30, "looks like a caption"),
        "a missing file": (folder / "none.png", "does not exist"),
        "a missing relative file": ("none.png", "does not exist .looked for '/"),
        "a url": ("https://example.org/cat.png", "Download the image and pass"),
        "a data uri": ("data:image/png;base64,AAAA" + "A" * 400, "Download the image and pass"),
        "a NUL": ("a\0b.png", "cannot be opened"),
        "a folder": (folder / "folder.png", "is a folder, not an image"),
        "an empty file": (folder / "empty.png", "is an empty file"),
        "a text file": (folder / "text.png", "a text file, not an image .it starts with 'a cat"),
        "a web page": (folder / "page.jpg", "a text file, not an image"),
        "an svg": (folder / "drawing.svg", "Render it to PNG"),
        "an svg called png": (folder / "drawing.png", "Render it to PNG"),
        "a truncated png": (folder / "cut.png", "damaged or cut short"),
        "half a header": (folder / "header.png", "cannot be opened as an image|damaged|supports"),
        "zeros": (folder / "zeros.png", "not an image in a format"),
        "a heic image": (folder / "iphone.jpg", "is a HEIC image, .* Convert it to JPEG"),
        "a truncated jpeg": (folder / "cut.jpg", "damaged or cut short"),
        "a bomb": (folder / "bomb.png", "is rejected"),
        "a smaller bomb": (folder / "small-bomb.png", "raise PIL.Image.MAX_IMAGE_PIXELS"),
        "no bytes": (b"", "is empty"),
        "text as bytes": (b"a cat", "a text file, not an image"),
        "None": (None, "is of type NoneType. Pass a path"),
        "nan": (float("nan"), "is of type float"),
        "a number": (3, "is of type int"),
        "a dict": ({"bytes": good}, "is of type dict"),
        "a closed image": (closed, "cannot be read"),
        "a float array": (RGB / 255.0, "not uint8 from 0 to 255.*255 . array.*such as 0 to 16"),
        "a bool array": (RGB > 100, "not uint8"),
        "channels first": (RGB.transpose(2, 0, 1), "Channels must be last"),
        "two channels": (RGB[..., :2], "shape .H, W, 3."),
        "a vector": (RGB[0, 0], "shape .H, W, 3."),
        "no pixels": (RGB[:0], "shape .H, W, 3."),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_invalid_items_raise_item_error(tmp_path):
    for kind, (item, message) in bad_items(tmp_path).items():
        with pytest.raises(ItemError, match=message) as caught:  # noqa: PT012
            digest_image(item)
            check_image(item)
            read_image(item)
        assert str(caught.value)[0].islower(), kind


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_header_defects_are_found_without_decoding(tmp_path, monkeypatch):
    def fails(self):
        raise AssertionError("decoded")

    items = bad_items(tmp_path)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fails)
    for kind in ("a bomb", "a smaller bomb", "a text file", "an svg", "zeros"):
        with pytest.raises(ItemError):
            check_image(items[kind][0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
def test_damaged_files_give_image_or_item_error(suffix):
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if suffix in ("png", "jpeg", "webp", "tiff") else {}
    sound = encoded(image, suffix, **options)
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(150):
        damaged = bytearray(sound)
        for place in rng.integers(min(len(sound), 400), size=3):
            damaged[place] = rng.integers(256)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        if not damaged:
            continue
        try:
            check_image(damaged)
            read_image(damaged)
        except ItemError:
            n_refused += 1
    assert n_refused


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.ones((4, 4, 3)), r"\(255 \* array\).* from 0 to 1, .* from -1 to 1, or .* 0 to 255"),
        (np.full((4, 1), "photo.jpg"), r"use X\.ravel\(\)\.tolist\(\) to pass a list"),
    ],
)
def test_advice_for_other_types_names_the_range_of_values(array, advice):
    """The advice for fractions alone would turn other values into a negative."""
    with pytest.raises(ItemError, match=advice):
        read_image(array)
