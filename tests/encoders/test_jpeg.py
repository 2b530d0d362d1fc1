"""Loading of JPEG files that lack their last marker, or the last of their pixels."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from sklearn_ape.encoders.images import check_image, digest_image, read_image
from sklearn_ape.encoders.items import ItemError

RNG = np.random.default_rng(0)
CHINA, FLOWER = load_sample_images().images
IMAGES = {
    "photograph": FLOWER[::2, ::2],
    "grey": CHINA[::4, ::4].mean(axis=2).astype(np.uint8),
    "noise": RNG.integers(0, 256, size=(37, 53, 3), dtype=np.uint8),
    "flat": np.full((64, 64, 3), (200, 30, 10), np.uint8),
}
OPTIONS = [
    {"quality": 75},
    {"quality": 100, "subsampling": 0},
    {"restart_marker_blocks": 4},
    {"restart_marker_rows": 1, "quality": 95},
]


def encode(name, options):
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[name]).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def read(item, min_side=None):
    return np.asarray(read_image(item, min_side))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", IMAGES)
def test_file_without_its_last_marker_is_read(name, options, tmp_path):
    """Every viewer shows such files, of which no pixel is missing."""
    content = encode(name, options)
    assert content.endswith(b"\xff\xd9")
    path = tmp_path / "image.jpg"
    for n_missing in (1, 2):
        cut = content[:-n_missing]
        path.write_bytes(cut)
        for min_side in (None, 8):
            expected = read(content, min_side)
            np.testing.assert_array_equal(read(cut, min_side), expected)
            np.testing.assert_array_equal(read(path, min_side), expected)
        for source in (path, io.BytesIO(cut)):
            with Image.open(source) as image:
                np.testing.assert_array_equal(read(image), read(content))
                np.testing.assert_array_equal(np.asarray(image.convert("RGB")), read(content))
                assert digest_image(image) == digest_image(read(content))


@pytest.mark.parametrize("options", [*OPTIONS, {"progressive": True}])
@pytest.mark.parametrize("name", IMAGES)
def test_file_without_its_last_pixels_raises(name, options):
    content = encode(name, options)
    start = content.index(b"\xff\xda") + 14
    places = {*RNG.integers(start, len(content) - 2, size=20), len(content) - 4}
    for place in sorted(places):
        with Image.open(io.BytesIO(content[:place])) as image:
            for _ in range(2):
                with pytest.raises(ItemError, match=r"cannot be read .*truncated"):
                    read_image(image)
        for min_side in (None, 8):
            check_image(content[:place])  # the header is complete
            with pytest.raises(ItemError, match=r"is damaged or cut short .*truncated"):
                read_image(content[:place], min_side)


def test_zeros_instead_of_the_last_pixels_raise():
    """Programs that download files may reserve the space, and be interrupted."""
    buffer = io.BytesIO()
    image = Image.fromarray(IMAGES["photograph"][:128])
    image.save(buffer, "jpeg", restart_marker_rows=1, quality=95)
    if b"\xff\xdd" not in buffer.getvalue():
        pytest.skip("Pillow 10.1 does not write restart markers")
    # If fewer bytes are missing, Pillow reads the zeros as pixels, without an error.
    for n_missing in range(2500, 5000, 100):
        with pytest.raises(ItemError, match="is damaged or cut short"):
            read_image(buffer.getvalue()[:-n_missing] + bytes(5000))
