"""Image preprocessing compared with torchvision and Pillow."""

import io

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersImageEncoder
from sklearn_ape.encoders.image_encoder import OnPixels, Preprocessing, _reduce
from sklearn_ape.encoders.images import read_image

SIZES = [(300, 200), (200, 300), (224, 224), (50, 40), (256, 256), (1000, 999), (7, 300), (91, 90)]


def random_image(width, height, seed=0):
    """Return an image with smooth areas and edges."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def composed(resize=256, crop=224, mode=InterpolationMode.BICUBIC):
    return transforms.Compose(
        [
            transforms.Resize(resize, mode),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ]
    )


class Identity(torch.nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", [InterpolationMode.BICUBIC, InterpolationMode.BILINEAR])
@pytest.mark.parametrize("resize", [256, (240, 230)])
def test_pixels_equal_torchvision(size, mode, resize):
    """Pixels are equal up to rounding for enlarged, reduced and oblong images."""
    transform = composed(resize, mode=mode)
    prepare = Preprocessing.from_transform(transform)
    image = random_image(*size)
    pixels = OnPixels(Identity(), prepare).normalize(prepare(image)[None])[0]
    steps = (pixels - transform(image)).abs() * torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1) * 255
    assert pixels.shape == (3, 224, 224)
    assert steps.mean() < 0.3
    assert steps.max() < 4.5


@pytest.mark.parametrize(("resize", "doubled"), [(256, 512), ((240, 230), (480, 460))])
def test_enlarged_preprocessing_has_twice_the_size(resize, doubled):
    prepare = Preprocessing.from_transform(composed(resize)).enlarge()
    expected = Preprocessing.from_transform(composed(doubled, crop=448))
    assert prepare == expected


def test_other_transforms_are_not_replaced():
    """A transform with unknown steps is used unchanged."""
    steps = composed().transforms
    for changed in (
        [*steps, transforms.Grayscale(3)],
        [transforms.Resize(224), *steps[2:]],  # the sizes of the images would differ
        steps[1:],
        [transforms.Resize(256, InterpolationMode.LANCZOS), *steps[1:]],
        [transforms.Resize(200), *steps[1:]],  # CenterCrop would pad with black
        [transforms.Resize(256, max_size=400), *steps[1:]],
        [transforms.Resize(256, antialias=False), *steps[1:]],
    ):
        assert Preprocessing.from_transform(transforms.Compose(changed)) is None
    assert Preprocessing.from_transform(lambda image: image) is None
    assert Preprocessing.from_transform(composed()) is not None


def test_usual_timm_transform_is_replaced():
    """The usual transform of timm is replaced; other crop modes are not."""
    usual = timm.data.create_transform(224, is_training=False, crop_mode="center")
    assert Preprocessing.from_transform(usual).crop == (224, 224)
    border = timm.data.create_transform(224, is_training=False, crop_mode="border")
    assert Preprocessing.from_transform(border) is None


def as_jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=92, **options)
    return buffer.getvalue()


class TestLargeImages:
    """Reduction of large images before resizing."""

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("crop", ["center", "pad"])
    def test_reduced_image_has_nearly_equal_features(self, crop):
        """The cosine distance is below 3e-4 for drawings and noise."""
        encoder = TimmImageEncoder(crop=crop, cache=None, engine="torch")
        network = encoder._get_network()
        reference = timm.data.create_transform(
            224,
            is_training=False,
            interpolation="bicubic",
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            crop_pct=1.0 if crop == "pad" else 0.875,
        )
        emoji = [Image.open(path).convert("RGB") for path in load_openmoji().images[:48:6]]
        sheet = Image.new("RGB", (224 * 4, 224 * 2), "white")
        for i, image in enumerate(emoji):
            sheet.paste(image, (i % 4 * 224, i // 4 * 224))
        large = sheet.resize((4 * sheet.width, 4 * sheet.height), Image.Resampling.BICUBIC)
        odd = sheet.resize((4897, 2449), Image.Resampling.BICUBIC)  # not a multiple of the factor
        photo = as_jpeg(random_image(2600, 4000))
        for file in (as_jpeg(large), photo, large, odd, as_jpeg(odd)):
            image = read_image(file)
            if crop == "pad":
                from sklearn_ape.encoders.image_encoder import _pad_to_square

                image = _pad_to_square(image)
            with torch.inference_mode():
                expected = encoder._make_pixel_network(network)(reference(image)[None]).numpy()[0]
            features = encoder.transform([file])[0]
            cosine = features @ expected / np.linalg.norm(features) / np.linalg.norm(expected)
            assert 1 - cosine < 3e-4

    @pytest.mark.parametrize(("name", "side"), [("ViT", 896), ("CLIP", 896), ("ConvNext", 1024)])
    def test_processors_of_transformers_get_reduced_images(self, name, side):
        """Resizing 12 megapixels takes longer than the network, and hardly changes the pixels."""
        size = {"height": 224, "width": 224} if name == "ViT" else {"shortest_edge": 224}
        processor = getattr(transformers, f"{name}ImageProcessor")(size=size)
        encoder = TransformersImageEncoder(cache=None)
        assert encoder._compute_min_side(processor) == side
        image = random_image(400, 300).resize((4000, 3000))
        expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
        for item in (image, as_jpeg(image)):
            pixels = encoder._prepare_item(processor, item)
            assert (pixels - expected).abs().mean() < 0.02 * expected.std()

    @pytest.mark.parametrize(
        ("size", "expected"), [((3798, 1198), (1899, 599)), ((3600, 2401), (1800, 1200))]
    )
    def test_reduced_size_is_rounded_up(self, size, expected):
        """Only if it is not an integer: 599 * (3798 / 1198) is 1899 plus a rounding error."""
        assert _reduce(Image.new("L", size), 2).size == expected

    def test_jpeg_is_decoded_at_reduced_scale(self):
        """The given side has at least the given length, also with rotation."""
        exif = Image.Exif()
        exif[0x0112] = 6
        file = as_jpeg(random_image(3200, 1600), exif=exif)
        assert read_image(file).size == (1600, 3200)
        assert read_image(file, 700).size == (800, 1600)
        assert read_image(file, 900).size == (1600, 3200)
        assert read_image(file, 700, use_longer_side=True).size == (400, 800)

    def test_cmyk_and_grey_keep_colors(self):
        for mode in ("CMYK", "L"):
            file = as_jpeg(random_image(1600, 1600).convert(mode))
            small, full = read_image(file, 400), read_image(file)
            assert small.mode == "RGB"
            assert small.size == (400, 400)
            difference = np.asarray(full.reduce(4), dtype=int) - np.asarray(small)
            assert np.abs(difference).mean() < 2


def test_views_are_averaged():
    prepare = Preprocessing.from_transform(composed())
    views = torch.stack([prepare(random_image(300, 200, seed)) for seed in (1, 2)])
    one = OnPixels(torch.nn.Flatten(), prepare)
    two = OnPixels(torch.nn.Flatten(), prepare, n_views=2)
    torch.testing.assert_close(two(views[None])[0], one(views).mean(dim=0))
