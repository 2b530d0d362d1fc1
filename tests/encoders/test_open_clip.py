"""OpenCLIP encoders compared with open_clip on a tiny model in a folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sklearn_ape.encoders import OpenCLIPImageEncoder, OpenCLIPTextEncoder, _engine
from sklearn_ape.encoders.image_encoder import Preprocessing

open_clip = pytest.importorskip("open_clip")

IMAGES = list(np.random.default_rng(0).integers(0, 256, size=(3, 40, 50, 3), dtype=np.uint8))
TEXTS = ["a cat", "two dogs on a walk", "a rocket"]
MODEL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64},
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
    },
}  # fmt: skip


def save_model(folder, seed=0):
    """Save a network with random weights as open_clip does, and return it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            MODEL["embed_dim"],
            open_clip.CLIPVisionCfg(**MODEL["vision_cfg"]),
            open_clip.CLIPTextCfg(**MODEL["text_cfg"]),
        ).eval()
        model.logit_scale.data.fill_(3.0)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model


def test_towers_share_one_network(tmp_path):
    """Features equal encode_image and encode_text of one loaded model."""
    model = save_model(tmp_path)
    images, texts = OpenCLIPImageEncoder(str(tmp_path)), OpenCLIPTextEncoder(str(tmp_path))
    features = images.transform(IMAGES), texts.transform(TEXTS)
    network = images._get_network()
    assert network.model is texts._get_network().model
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    assert tokens.shape == (3, 16)
    batch = [images._prepare_item(network.prepare, image) for image in IMAGES]
    pixels = images._make_module(network).normalize(*images._make_tensors(network, batch))
    with torch.inference_mode():
        np.testing.assert_allclose(features[0], model.encode_image(pixels), atol=1e-5)
        np.testing.assert_allclose(features[1], model.encode_text(tokens), atol=1e-5)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_preprocessing_equals_library(mode, tmp_path):
    """Images are cropped as by open_clip, and faster, since its steps are recognized."""
    model = save_model(tmp_path)
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["resize_mode"] = mode
    path.write_text(json.dumps(config))
    encoder = OpenCLIPImageEncoder(str(tmp_path), engine="torch", cache=None)
    is_fast = isinstance(encoder._get_network().prepare["image"], Preprocessing)
    assert is_fast == (mode != "longest")
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    pixels = torch.stack([transform(Image.fromarray(image)) for image in IMAGES])
    with torch.inference_mode():
        expected = model.encode_image(pixels).numpy()
    np.testing.assert_allclose(
        encoder.transform(IMAGES), expected, atol=0.01 * np.abs(expected).max()
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_text_tower_is_exported(engine, tmp_path):
    """All texts have the same number of tokens, which is fixed in the network."""
    pytest.importorskip(_engine.PACKAGES[engine][-1])
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder)
    expected = OpenCLIPTextEncoder(str(folder), engine="torch", cache=None).transform(TEXTS)
    encoder = OpenCLIPTextEncoder(str(folder), engine=engine, cache=tmp_path, batch_size=2)
    np.testing.assert_allclose(encoder.transform(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert encoder._get_engine(len(TEXTS)).name == engine


def test_hub_name_may_have_the_prefix_of_open_clip(tmp_path, monkeypatch):
    """The revision of the name without the prefix is downloaded."""
    save_model(tmp_path)
    downloads = []

    def download(repo_id, revision, **_):
        downloads.append((repo_id, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    OpenCLIPTextEncoder("hf-hub:owner/model", revision="v2", cache=None).transform(TEXTS)
    assert set(downloads) == {("owner/model", "v2")}


def test_revision_of_weights_that_open_clip_names_raises():
    """It was ignored, so that features were those of other weights."""
    message = r"revision='v2' applies to models on the hub.*Set revision to None, or pass the name"
    for encoder in (OpenCLIPImageEncoder, OpenCLIPTextEncoder):
        with pytest.raises(ValueError, match=message):
            encoder("ViT-B-32/openai", revision="v2").fit(TEXTS)


def test_replaced_model_folder_is_reloaded(tmp_path):
    """Another model in the same folder is loaded and encoded again."""
    save_model(tmp_path)
    first = OpenCLIPImageEncoder(str(tmp_path)).transform(IMAGES)
    save_model(tmp_path, seed=1)
    second = OpenCLIPImageEncoder(str(tmp_path)).transform(IMAGES)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("damage", ["no weights", "garbage weights", "garbage config"])
def test_damaged_model_folder_raises(tmp_path, damage):
    """Missing weights raise an error instead of giving random features."""
    save_model(tmp_path)
    name = "open_clip_config.json" if "config" in damage else "open_clip_pytorch_model.bin"
    (tmp_path / name).unlink()
    if damage.startswith("garbage"):
        (tmp_path / name).write_bytes(b"garbage" * 9)
    with pytest.raises(ValueError, match="is a folder that could not be loaded"):
        OpenCLIPTextEncoder(str(tmp_path)).transform(TEXTS)


def test_file_of_weights_raises_with_remedy(tmp_path):
    """Unlike in open_clip, a file cannot be passed with its architecture; a folder can."""
    save_model(tmp_path)
    path = tmp_path / "open_clip_pytorch_model.bin"
    with pytest.raises(ValueError, match=r"file of weights, .* pass the folder"):
        OpenCLIPTextEncoder(f"ViT-B-32/{path}").transform(TEXTS)
