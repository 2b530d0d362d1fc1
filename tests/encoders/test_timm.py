"""TimmImageEncoder compared with a reference implementation and with timm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.preprocessing import normalize

from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, _engine, _timm
from sklearn_ape.encoders._engine import FusedConv, TorchEngine

timm = pytest.importorskip("timm")
STAMPS = Path("/usr/share/tuxpaint/stamps")


@pytest.fixture(scope="module")
def paths():
    return load_openmoji().images[100:110]


def prepared(encoder, paths):
    """Return the input of the network."""
    network = encoder._get_network()
    batch = [encoder._prepare_item(network.prepare, path) for path in paths]
    return encoder._make_module(network).normalize(*encoder._make_tensors(network, batch))


def test_logits_equal_reference_implementation(paths):
    """Logits equal the reference EfficientNet-Lite0 for the same tensors."""
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    from sklearn_ape.encoders.weights import find_packaged_file

    model = reference.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(find_packaged_file("efficientnet_lite0"))
    ).eval()
    encoder = TimmImageEncoder(output="logits", cache=None)
    with torch.inference_mode():
        expected = model(prepared(encoder, paths)).numpy()
    np.testing.assert_allclose(encoder.transform(paths), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "n_kept"), [("test_efficientnet", 0), ("test_resnet", 0), ("densenet121", 62)]
)
def test_batch_norms_are_folded_into_convolutions(name, n_kept):
    """Features are the same; a normalization that does not follow a convolution is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        norms = [norm for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
        for norm in norms:
            for parameter in (norm.running_mean, norm.bias):
                torch.nn.init.normal_(parameter, std=0.1)
            for parameter in (norm.running_var, norm.weight):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        pixels = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        expected = model(pixels)
        folded = _timm._fold_batch_norms(model, (3, 96, 96))
        torch.testing.assert_close(folded(pixels), expected, rtol=1e-4, atol=1e-5)
        assert sum(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules()) == n_kept
        assert norms[0] in set(model.modules())  # the model is not changed


@pytest.mark.parametrize(("size", "n_zeros"), [(64, 1), (65, 0)])
def test_padding_is_part_of_convolutions(size, n_zeros):
    """Features are the same for images of any size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("tf_mobilenetv3_small_100").eval()
        images = [torch.rand(1, 3, *shape) for shape in ((64, 64), (65, 65), (95, 64))]
    folded = _timm._fold_batch_norms(model, (3, size, size))
    padded = [
        part for part in folded.modules() if isinstance(part, FusedConv) and part.size is not None
    ]
    assert {part.conv.kernel_size[0] for part in padded} == {3, 5}
    assert {part.kernel.shape[2] - part.conv.kernel_size[0] for part in padded} == {n_zeros}
    with torch.inference_mode():
        for pixels in images:
            expected = model.forward_features(pixels)
            features = folded.forward_features(pixels)
            torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", _engine.JOINT_ACTIVATIONS)
@pytest.mark.parametrize("has_joint_operator", [True, False])
def test_activation_is_part_of_convolutions(monkeypatch, activation, dtype, has_joint_operator):
    """Outputs equal those of both modules, with and without the operator of oneDNN."""
    if not has_joint_operator:
        monkeypatch.setattr(_engine, "_has_joint_operator", lambda dtype: False)
    elif not _engine._has_joint_operator(dtype):
        pytest.skip("this processor has no such operator")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        x = 4 * torch.randn(2, 8, 9, 7)
    fused = FusedConv(conv, activation(), x.shape[2:])
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = activation()(conv(x))
        y = fused(x)
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    x.requires_grad_()
    fused(x).sum().backward()  # the joint operator does not support gradients
    assert x.grad is not None
    converted = FusedConv(conv, activation(), x.shape[2:]).to(dtype)  # instead of autocast
    with torch.inference_mode():
        y = converted(x.to(dtype))
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


def test_bfloat16_keeps_features_of_real_images(paths):
    """With kernels whose sums change by rounding, the largest error would be 0.0026."""
    if not _engine._has_joint_operator(torch.bfloat16):
        pytest.skip("this processor has no operator for convolutions in bfloat16")
    exact, rounded = (
        normalize(TimmImageEncoder(engine="torch", dtype=dtype, cache=None).transform(paths))
        for dtype in ("float32", "bfloat16")
    )
    assert (1 - (exact * rounded).sum(axis=1)).max() < 1e-3


def test_padding_of_dilated_convolutions_is_kept():
    """Zeros in a dilated kernel are several rows apart. The normalization is folded."""

    class Dilated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = timm.layers.Conv2dSame(3, 4, 3, stride=2, dilation=2)
            self.norm = torch.nn.BatchNorm2d(4)

        def forward_features(self, x):
            return self.norm(self.conv(x))

    model = Dilated().eval()
    folded = _timm._fold_batch_norms(model, (3, 16, 16))
    assert type(folded.conv) is timm.layers.Conv2dSame
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())


def test_batch_norm_of_a_reused_convolution_is_kept():
    """Both normalizations of the same output cannot be part of one convolution."""

    class Reused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.first, self.second = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
            torch.nn.init.uniform_(self.second.weight, 2, 3)

        def forward_features(self, x):
            x = self.conv(x)
            return self.first(x) - self.second(x)

        def forward(self, x):
            """Return the logits of a new classification head, which do not show the error."""
            return 0 * self.forward_features(x).mean(dim=(2, 3))

    model = Reused().eval()
    assert _timm._fold_batch_norms(model, (3, 8, 8)) is model


@pytest.mark.parametrize("output", ["tuple", "error", "weight"])
def test_network_that_cannot_be_folded_is_kept(output):
    class Unusual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

        def forward_features(self, x):
            x = self.norm(self.conv(x))
            if output == "error":
                raise NotImplementedError
            return (x, x) if output == "tuple" else x / self.norm.weight[:, None, None]

    model = Unusual().eval()
    assert _timm._fold_batch_norms(model, (3, 8, 8)) is model


def test_normalization_maps_to_minus_one_and_one():
    """White is 1 and black is -1; ImageNet's mean and std would reduce accuracy by 8 points."""
    encoder = TimmImageEncoder()
    white, black = np.full((9, 9, 3), 255, np.uint8), np.zeros((9, 9, 3), np.uint8)
    tensors = prepared(encoder, [white, black])
    assert tensors.shape == (2, 3, 224, 224)
    torch.testing.assert_close(tensors[0], torch.ones(3, 224, 224))
    torch.testing.assert_close(tensors[1], -torch.ones(3, 224, 224))


def test_pad_keeps_the_border():
    """crop="pad" keeps the border of an oblong image, and "center" crops it."""
    image = np.full((50, 200, 3), 255, dtype=np.uint8)
    image[:, :10] = 0
    tensors = [prepared(TimmImageEncoder(crop=crop), [image])[0] for crop in ("pad", "center")]
    assert tensors[0].min() < -0.9
    assert tensors[1].min() > 0.9


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("food/fruit/pineapple.png", "pineapple"),
        ("food/fruit/strawberry.png", "strawberry"),
        ("food/vegetables/broccoli.png", "broccoli"),
        ("household/umbrella.png", "umbrella"),
        ("household/padlock_closed.png", "padlock"),
        ("animals/mammals/hippopotamus.png", "hippopotamus"),
        ("animals/mammals/equines/zebra.png", "zebra"),
        ("animals/mammals/bovines/bison.png", "bison"),
        ("animals/birds/peacock.png", "peacock"),
        ("animals/birds/ostrich.png", "ostrich"),
        ("vehicles/auto/sportscar3.png", "sports car"),
    ],
)
def test_top_5_of_known_photographs(file, name):
    """Preprocessing, weights and class order agree."""
    if not (STAMPS / file).is_file():
        pytest.skip("needs Debian's tuxpaint-stamps-default")
    encoder = TimmImageEncoder(output="logits")
    best = np.argsort(-encoder.transform([STAMPS / file])[0])[:5]
    assert any(name in encoder.class_names[place] for place in best)


def test_class_names_are_those_of_imagenet():
    """1,000 names in the order of ImageNet."""
    names = TimmImageEncoder().class_names
    assert len(names) == 1000
    assert names[0].startswith("tench")
    assert names[-1].startswith("toilet tissue")


def save_model(folder, name, **options):
    torch.manual_seed(options.pop("seed", 0))
    model = timm.create_model(name, pretrained=False, **options).eval()
    for parameter in model.parameters():  # initial zeros would hide errors
        torch.nn.init.normal_(parameter, std=0.05)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return model


MODELS = {
    "resnet": ("resnet10t", {}),
    "vit": ("test_vit", {}),
    "vit-registers": ("test_vit3", {}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def folder_and_model(request, tmp_path_factory):
    name, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp("timm")
    with torch.random.fork_rng():
        return str(folder), save_model(folder, name, num_classes=7, **options)


def test_folder_features_equal_timm(folder_and_model, paths):
    """Features, logits and poolings equal timm's."""
    folder, model = folder_and_model
    paths = paths[:3]
    encoder = TimmImageEncoder(folder, cache=None)
    tensors = prepared(encoder, paths)
    with torch.inference_mode():
        last = model.forward_features(tensors)
        auto, logits = model.forward_head(last, pre_logits=True), model(tensors)
        n_prefix = getattr(model, "num_prefix_tokens", 0)
        has_cls = getattr(model, "cls_token", None) is not None  # not only registers
        if last.ndim == 3:
            mean = last[:, n_prefix:].mean(dim=1)
        else:
            mean = last.mean(dim=(1, 2) if last.shape[-1] == model.num_features else (2, 3))
    expected = {"auto": auto, "mean": mean}
    if last.ndim == 4:
        maps = last if last.shape[-1] == model.num_features else last.permute(0, 2, 3, 1)
        cubes = maps.flatten(1, 2).clamp(min=1e-6) ** 3
        expected["gem"] = (cubes.sum(dim=1) / cubes.shape[1]) ** (1 / 3)
    if has_cls:
        expected |= {"cls": last[:, 0], "cls+mean": torch.cat([last[:, 0], mean], dim=1)}
    for pooling, features in expected.items():
        actual = encoder.set_params(pooling=pooling).transform(paths)
        np.testing.assert_allclose(actual, features, atol=1e-4, rtol=1e-4)
    encoder.set_params(pooling="auto", output="logits")
    np.testing.assert_allclose(encoder.transform(paths), logits, atol=1e-4, rtol=1e-4)
    if last.ndim == 3:
        with pytest.raises(
            ValueError, match=r"pooling='gem' needs .* this network returns tokens"
        ):
            encoder.set_params(pooling="gem", output="features").transform(paths)
    for pooling in () if has_cls else ("cls", "cls+mean"):
        with pytest.raises(ValueError, match=r"pooling='cls.*' needs .* a class token"):
            encoder.set_params(pooling=pooling, output="features").transform(paths)
    with pytest.raises(ValueError, match="class names are unknown"):
        _ = encoder.class_names


def test_gem_is_between_mean_and_maximum(paths):
    """For the starter encoder, whose feature maps are not negative."""
    mean, gem = (
        TimmImageEncoder(pooling=pooling, cache=None).transform(paths[:3])
        for pooling in ("mean", "gem")
    )
    encoder = TimmImageEncoder()
    with torch.inference_mode():
        maps = encoder._get_network().model.forward_features(prepared(encoder, paths[:3]))
    highest = maps.amax(dim=(2, 3)).numpy()
    assert np.all(gem >= mean - 1e-5)
    assert np.all(gem <= np.maximum(highest, 1e-6) + 1e-5)
    assert np.mean((gem > 1.1 * mean)[mean > 1e-3]) > 0.9


@pytest.fixture(scope="module")
def asymmetric():
    """Return images that differ from their mirror images."""
    data = load_openmoji()
    return [data.images[data.captions.index(name)] for name in ("whale", "snail", "bicycle")]


class TestViews:
    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("pooling", ["auto", "gem"])
    def test_views_equal_mean_of_edited_images(self, asymmetric, pooling):
        """Mirrored image, smaller copy on white, and enlarged center."""
        encoder = TimmImageEncoder(pooling=pooling, cache=None)
        with Image.open(asymmetric[0]) as file:
            image = encoder._prepare_item(lambda image: image, file)
        side = image.width  # the images are square
        small = Image.new("RGB", (side + 2 * (side // 4),) * 2, "white")
        small.paste(image, (side // 4, side // 4))
        large = image.crop((side // 8, side // 8, side - side // 8, side - side // 8))
        expected = encoder.transform([image, ImageOps.mirror(image), small, large])
        for n_views in (2, 4):
            features = encoder.set_params(views=n_views).transform([image])[0]
            np.testing.assert_allclose(features, expected[:n_views].mean(axis=0), atol=1e-5)
        assert np.abs(expected - expected[0]).max(axis=1)[1:].min() > 0.1

    def test_views_do_not_depend_on_order_or_batches(self, asymmetric):
        features = TimmImageEncoder(views=4, batch_size=7, cache=None).transform(asymmetric)
        for batch_size in (1, 3):
            encoder = TimmImageEncoder(views=4, batch_size=batch_size, cache=None)
            np.testing.assert_allclose(
                encoder.transform(asymmetric[::-1])[::-1], features, atol=1e-4
            )

    def test_batch_size_counts_views(self, asymmetric, monkeypatch):
        """The memory does not depend on the number of views."""
        shapes = []
        call = TorchEngine.__call__
        monkeypatch.setattr(
            TorchEngine,
            "__call__",
            lambda self, inputs: shapes.append(inputs[0].shape) or call(self, inputs),
        )
        TimmImageEncoder(views=4, batch_size=9, engine="torch", cache=None).transform(asymmetric)
        assert sorted(shapes) == [(1, 4, 224, 224, 3), (2, 4, 224, 224, 3)]

    def test_views_have_their_own_cache_keys(self, asymmetric, tmp_path):
        features = {
            views: TimmImageEncoder(views=views, cache=tmp_path).transform(asymmetric[:1])
            for views in (1, 2)
        }
        assert np.abs(features[1] - features[2]).max() > 0.01

    @pytest.mark.parametrize("size", [(1, 1), (3, 2), (90, 1), (64, 21)])
    def test_views_of_small_and_narrow_images(self, size):
        image = Image.new("RGB", size, "red")
        features = TimmImageEncoder(views=4, cache=None).transform([image])
        assert np.isfinite(features).all()

    @pytest.mark.parametrize("views", [0, 3, 2.0, "2", None])
    def test_invalid_number_of_views_raises(self, views):
        with pytest.raises(ValueError, match=f"views must be 1, 2 or 4, not {views!r}"):
            TimmImageEncoder(views=views).transform([np.zeros((9, 9, 3), np.uint8)])


def test_replaced_model_folder_is_reloaded(tmp_path, paths):
    """Another model in the same folder is loaded and encoded again."""
    with torch.random.fork_rng():
        model = save_model(tmp_path, "test_vit", num_classes=5)
        encoder = TimmImageEncoder(str(tmp_path), cache="memory")
        first = encoder.transform(paths[:2])
        model = save_model(tmp_path, "test_vit", num_classes=5, seed=1)
    second = encoder.transform(paths[:2])
    with torch.inference_mode():
        expected = model.forward_head(
            model.forward_features(prepared(encoder, paths[:2])), pre_logits=True
        )
    np.testing.assert_allclose(second, expected, atol=1e-4, rtol=1e-4)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.exhaustive
def test_features_of_several_scales_are_pooled_by_the_network(tmp_path, paths):
    with torch.random.fork_rng():
        model = save_model(tmp_path, "crossvit_tiny_240", num_classes=5)
    encoder = TimmImageEncoder(str(tmp_path), cache=None)
    with torch.inference_mode():
        last = model.forward_features(prepared(encoder, paths[:2]))
        expected = model.forward_head(last, pre_logits=True)
    np.testing.assert_allclose(encoder.transform(paths[:2]), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="CrossVit, which returns features of several scales"):
        encoder.set_params(pooling="mean").transform(paths[:2])


@pytest.mark.parametrize(
    "damage", ["no config", "garbage config", "garbage weights", "no weights"]
)
def test_damaged_model_folder_raises(tmp_path, paths, damage):
    """Errors of the library become a ValueError with the folder."""
    with torch.random.fork_rng():
        save_model(tmp_path, "test_vit", num_classes=5)
    for file in tmp_path.iterdir():
        if (file.suffix == ".json") == ("config" in damage):
            if damage.startswith("no"):
                file.unlink()
            else:
                file.write_bytes(b"garbage" * 9)
    with pytest.raises(ValueError, match="is a folder that could not be loaded"):
        TimmImageEncoder(str(tmp_path)).transform(paths[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 1}, "takes images of 1 channels, but images are converted to 3"),
        ({"global_pool": ""}, r"features of shape \(\d+, 64\) per item, not one vector"),
    ],
)
def test_unsuitable_network_raises(options, message, tmp_path, paths):
    with torch.random.fork_rng():
        save_model(tmp_path, "test_vit", num_classes=5, **options)
    with pytest.raises(ValueError, match=message):
        TimmImageEncoder(str(tmp_path)).transform(paths[:1])


def test_logits_without_head_raise(tmp_path, paths):
    with torch.random.fork_rng():
        save_model(tmp_path, "test_vit", num_classes=0)
    with pytest.raises(ValueError, match="output='logits' needs a classification head"):
        TimmImageEncoder(str(tmp_path), output="logits").transform(paths[:1])


@pytest.mark.parametrize("name", ["volo_d1_224", "coat_lite_tiny"])
def test_class_token_without_attribute_is_not_a_patch(name):
    """These networks of timm have no `num_prefix_tokens`, but a class token."""
    model = timm.create_model(name, img_size=64).eval()
    with torch.inference_mode():
        last = model.forward_features(torch.rand(2, 3, 64, 64))
    for pooling, expected in (("cls", last[:, 0]), ("mean", last[:, 1:].mean(dim=1))):
        assert torch.equal(_timm._Features(model, pooling, "features").pool(last), expected)


def test_mean_without_patches_raises():
    """PiT returns the class token only."""
    model = timm.create_model("pit_ti_224").eval()
    with torch.inference_mode(), pytest.raises(ValueError, match="returns class tokens only"):
        _timm._Features(model, "mean", "features")(torch.rand(1, 3, 224, 224))
