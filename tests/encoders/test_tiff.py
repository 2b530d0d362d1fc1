"""Loading of TIFF files, of whose pixels Pillow reads some incorrectly."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from sklearn_ape.encoders.images import read_image
from sklearn_ape.encoders.items import ItemError

RGB = np.random.default_rng(0).integers(0, 256, size=(24, 32, 3), dtype=np.uint8)


def pixels(item):
    image = read_image(item)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("dtype", "values", "tag", "expected"),
    [
        (np.uint16, [0, 257 * 60, 65535], (262, 1, 0), [255, 195, 0]),  # white is zero
        (np.float32, [0, 0.2, 1], (262, 1, 0), [255, 204, 0]),
        (np.int32, [0, 2**30, 2**31 - 1, -(2**31), -1], (339, 2, 1), [0, 64, 127, 128, 255]),
    ],
)
def test_grey_tiff_is_read_as_its_tags_say(dtype, values, tag, expected, tmp_path):
    """Pillow does not invert more than 8 bits whose white is 0, and reads uint32 as int32."""
    file = tmp_path / "grey.tif"
    Image.fromarray(np.array([values], dtype=dtype)).save(file)
    number, before, after = tag
    field = struct.pack("<HHI", number, 3, 1)
    content = file.read_bytes()
    assert content.count(field + bytes([before])) == 1
    changed = content.replace(field + bytes([before]), field + bytes([after]))
    file.write_bytes(changed)
    with Image.open(file) as image:
        for item in (file, file.read_bytes(), image):
            assert pixels(item)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([-9, 0, 2**14, 2**15 - 1], [0, 0, 128, 255]), ([-9, 0, 2048, 4095], [0, 0, 128, 255])],
)
def test_white_of_a_signed_16_bit_tiff_is_32767(values, expected, tmp_path):
    file = tmp_path / "signed.tif"
    image = Image.fromarray(np.array([values], dtype=np.int16).view(np.uint16))
    image.save(file, tiffinfo={339: 2})
    with Image.open(file) as opened:
        for item in (file, file.read_bytes(), opened):
            assert pixels(item)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_compressed_big_endian_tiff_is_read(dtype, tmp_path):
    """Pillow swaps the bytes, which libtiff returns in the order of the processor."""
    tifffile = pytest.importorskip("tifffile")
    white = {"int16": 32767, "int32": 65535, "float32": 1}[dtype]
    values = (np.array([[0, 0.2, 1]]) * white).astype(dtype)
    file = tmp_path / "image.tif"
    tifffile.imwrite(file, values, byteorder=">", compression="zlib")
    with Image.open(file) as image:
        for item in (file, file.read_bytes(), image):
            assert pixels(item)[0, :, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize("planar", [False, True])
def test_uncompressed_ycbcr_tiff_raises(planar, tmp_path):
    """Pillow calls it truncated, or, with separate planes, reads its colors as RGB."""
    tifffile = pytest.importorskip("tifffile")
    rgb = Image.new("RGB", (16, 16), (200, 30, 60))
    values = np.asarray(rgb.convert("YCbCr"))
    file, options = tmp_path / "image.tif", {"photometric": "ycbcr"}
    if planar:
        values, options["planarconfig"] = np.moveaxis(values, 2, 0).copy(), "separate"
    tifffile.imwrite(file, values, subsampling=(1, 1), **options)
    with Image.open(file) as image:
        for item in (file, file.read_bytes(), image):
            with pytest.raises(ItemError, match="is a TIFF file with uncompressed YCbCr colors"):
                read_image(item)
    tifffile.imwrite(file, values, subsampling=(1, 1), compression="zlib", **options)
    np.testing.assert_allclose(pixels(file)[0, 0], (200, 30, 60), atol=2)


def test_uncompressed_16_bit_planes_raise(tmp_path):
    """Pillow reads one byte per value, which garbles the image."""
    tifffile = pytest.importorskip("tifffile")
    file, planes = tmp_path / "image.tif", np.full((3, 16, 16), 257 * 60, np.uint16)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(file, planes, **options)
    with Image.open(file) as image:
        for item in (file, file.read_bytes(), image):
            with pytest.raises(ItemError, match="colors of 16 bits in separate planes"):
                read_image(item)
    for values, more in [(planes, {"compression": "zlib"}), ((planes // 257).astype("u1"), {})]:
        tifffile.imwrite(file, values, **options, **more)
        assert (pixels(file) == 60).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tile_of_many_pixels_raises(compression, tmp_path, monkeypatch):
    """The whole tile would be decoded, of a small image as well."""
    tifffile = pytest.importorskip("tifffile")
    file, values = tmp_path / "image.tif", np.full((16, 16), 60, np.uint8)
    tifffile.imwrite(file, values, tile=(128, 128), compression=compression)
    assert (pixels(file) == 60).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 128**2 - 1)
    with Image.open(file) as image:
        for item in (file, file.read_bytes(), image):
            with pytest.raises(ItemError, match="a TIFF file with tiles of too many pixels"):
                read_image(item)


def test_tile_size_of_another_type_raises(tmp_path):
    """Pillow returns the bytes of such a number, and libtiff the number."""
    tifffile = pytest.importorskip("tifffile")
    file = tmp_path / "image.tif"
    tifffile.imwrite(file, np.zeros((16, 16), np.uint8), tile=(128, 128), compression="zlib")
    content = bytearray(file.read_bytes())
    start = content.index(struct.pack("<H", 322))  # tag, type, count, value
    content[start + 2 : start + 4] = struct.pack("<H", 1)
    with pytest.raises(ItemError, match="a TIFF file with tiles of too many pixels"):
        read_image(bytes(content))


@pytest.mark.parametrize(("dtype", "tags"), [("<u2", {}), (">u2", {}), ("<u2", {339: 2})])
def test_single_plane_of_a_tiff_is_read(dtype, tags, tmp_path):
    """Pillow calls such files truncated."""
    white = 32767 if tags else 65535  # of signed values
    values = (np.array([[0, 0.2, 1]]) * white).astype(dtype)
    file = tmp_path / "image.tif"
    Image.fromarray(values).save(file, tiffinfo={284: 2, **tags})
    with Image.open(file) as image:
        assert image.tag_v2[284] == 2
        for item in (file, file.read_bytes(), image):
            assert pixels(item)[0, :, 0].tolist() == [0, 51, 255]


def test_converted_image_may_have_the_format(tmp_path):
    """Pillow does not copy it, so that programs set it themselves."""
    file = tmp_path / "image.tif"
    Image.fromarray(RGB).save(file)
    with Image.open(file) as image:
        converted = image.convert("L")
        converted.format = image.format
    np.testing.assert_array_equal(pixels(converted)[:, :, 0], np.asarray(converted))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "I;16"])
def test_rotated_tiff_is_the_same_by_path_as_by_content(tmp_path, mode, orientation):
    """Regression: Pillow maps uncompressed files with the width after rotation."""
    image = Image.fromarray(RGB).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.tif"
    image.save(path, exif=exif)
    upright = Image.fromarray(pixels(image))
    upright.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    np.testing.assert_array_equal(pixels(path.read_bytes()), expected)
    np.testing.assert_array_equal(pixels(path), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(pixels(opened), expected)
        assert opened.filename == str(path)
