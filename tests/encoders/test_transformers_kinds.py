"""Models of transformers whose towers, tokens, processors or precision are special."""

import json
import re

import numpy as np
import pytest
import torch

from sklearn_ape import CCAAligner, LiTAligner
from sklearn_ape.encoders import (
    OpenCLIPTextEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
)
from tests.encoders import test_transformers as hf


@pytest.mark.parametrize("kind", ["aimv2", "registers", "flava"])
def test_mean_is_that_of_the_patches(kind, tmp_path):
    """AIMv2 has a class token in its head only, and timm names registers differently."""
    towers = {"vision_config": hf.VISION, "text_config": hf.TEXT, "projection_dim": 6}
    flava = {
        "image_config": hf.VISION,
        "text_config": hf.TEXT,
        "multimodal_config": hf.SMALL,
        "image_codebook_config": {"hidden_size": 8, "num_groups": 1, "vocab_size": 8},
        "hidden_size": 16,
    }
    config, tower, n_prefix = {
        "aimv2": lambda: (hf.transformers.Aimv2Config(**towers), "vision_model", 0),
        "registers": lambda: (
            hf.transformers.TimmWrapperConfig(
                architecture="test_vit", model_args={"reg_tokens": 2}
            ),
            None,
            3,
        ),
        "flava": lambda: (hf.transformers.FlavaConfig(**flava), "image_model", 1),
    }[kind]()
    model = hf.save_model(tmp_path, config, prepare=hf.processor())
    with torch.inference_mode():
        pixels = hf.processor()(images=hf.IMAGES, return_tensors="pt")["pixel_values"]
        last = (getattr(model, tower) if tower else model)(pixel_values=pixels).last_hidden_state
    encoder = TransformersImageEncoder(str(tmp_path), pooling="mean", cache=None)
    expected = last[:, n_prefix:].mean(dim=1)
    np.testing.assert_allclose(encoder.transform(hf.IMAGES), expected, atol=1e-4, rtol=1e-4)
    if kind == "aimv2":
        with pytest.raises(ValueError, match="needs a network with a class token"):
            encoder.set_params(pooling="cls").transform(hf.IMAGES)


def test_pooled_token_is_not_a_patch(tmp_path):
    """The first token of a DINOv3 ConvNeXt is its pooled output."""
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
    processor = hf.transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    config = hf.transformers.DINOv3ConvNextConfig(**sizes)
    model = hf.save_model(tmp_path, config, prepare=processor)
    with torch.inference_mode():
        output = model(processor(images=hf.IMAGES, return_tensors="pt")["pixel_values"])
    last = output.last_hidden_state
    assert torch.equal(last[:, 0], output.pooler_output)
    for pooling, expected in (("mean", last[:, 1:].mean(dim=1)), ("cls", last[:, 0])):
        encoder = TransformersImageEncoder(str(tmp_path), pooling=pooling, cache=None)
        np.testing.assert_allclose(encoder.transform(hf.IMAGES), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Bit", "ConvNext"])
def test_padded_images_are_not_cropped(kind, tmp_path):
    """Processors such as that of DINOv2 resize to 256 pixels and crop to 224."""
    options = {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if kind == "Bit":
        options |= {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    else:
        options |= {"size": {"shortest_edge": 32}, "crop_pct": 0.8}
    prepare = getattr(hf.transformers, f"{kind}ImageProcessor")(**options)
    hf.save_model(tmp_path, hf.image_config("vit"), prepare=prepare)
    encoder = TransformersImageEncoder(str(tmp_path), crop="pad", cache=None)
    image = np.full((40, 64, 3), 255, dtype=np.uint8)
    image[:, :4] = image[:, -4:] = 0
    white = np.full((12, 64, 3), 255, dtype=np.uint8)
    square = hf.processor()(images=np.vstack([white, image, white]), return_tensors="pt")
    prepared = encoder._prepare_item(encoder._get_network().prepare, image)
    torch.testing.assert_close(prepared, square["pixel_values"][0])


def test_processor_of_patches_raises(tmp_path):
    """Images of a NaFlex model are sequences of patches, with a mask and a shape each."""
    config = hf.transformers.Siglip2VisionConfig(**hf.SMALL, num_patches=16, patch_size=8)
    processor = hf.transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    hf.save_model(tmp_path, config, prepare=processor)
    with pytest.raises(ValueError, match=r"arrays of shape \(16, 192\) .* Use a model of images"):
        TransformersImageEncoder(str(tmp_path), cache=None).transform(hf.IMAGES)


def test_processor_that_keeps_proportions(tmp_path):
    """Images of different proportions have no common batch, unless they are padded."""
    processor = hf.transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, do_center_crop=False
    )
    hf.save_model(tmp_path, hf.image_config("convnext"), prepare=processor)
    images = [hf.IMAGES[0], hf.IMAGES[1][:, :40]]
    encoder = TransformersImageEncoder(str(tmp_path), batch_size=2, cache=None)
    with pytest.raises(ValueError, match=r"\(3, 32, 32\), \(3, 32, 40\).* Pass crop='pad'"):
        encoder.transform(images)
    assert encoder.set_params(crop="pad").transform(images).shape == (2, 16)


SMALL_VIDEO = hf.VISION | {"num_frames": 2}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (hf.transformers.VideoMAEConfig(**SMALL_VIDEO), "VideoMAEModel encodes videos"),
        (hf.transformers.HGNetV2Config(), "HGNetV2Backbone returns no hidden states"),
    ],
)
def test_network_without_features_of_images_raises(config, message, tmp_path):
    hf.save_model(tmp_path, config, prepare=hf.processor())
    with pytest.raises(ValueError, match=message):
        TransformersImageEncoder(str(tmp_path), cache=None).transform(hf.IMAGES)


def test_text_network_without_hidden_states_raises(tmp_path):
    config = hf.transformers.DPRConfig(**hf.TEXT)
    hf.save_model(tmp_path, config, prepare=hf.tokenizer())
    with pytest.raises(ValueError, match="DPRQuestionEncoder returns no hidden states"):
        TransformersTextEncoder(str(tmp_path), cache=None).transform(hf.TEXTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_computed_in_float32(dtype, tmp_path):
    """Features are those of the same weights in float32."""
    bert, convnext = hf.transformers.BertConfig(**hf.TEXT), hf.image_config("convnext")
    models = {
        "texts": (TransformersTextEncoder, bert, hf.tokenizer(), hf.TEXTS),
        "images": (TransformersImageEncoder, convnext, hf.processor(), hf.IMAGES),
    }
    for name, (cls, config, prepare, items) in models.items():
        half, full = str(tmp_path / f"{name} half"), str(tmp_path / f"{name} full")
        model = hf.save_model(half, config, prepare=prepare).to(dtype)
        model.save_pretrained(half)
        model.float().save_pretrained(full)
        prepare.save_pretrained(full)
        expected = cls(full, cache=None, engine="torch").transform(items)
        features = cls(half, cache=None, engine="torch").transform(items)
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_encoder_that_was_saved_without_its_decoder(tmp_path):
    """The config of a T5EncoderModel does not say that it is a part of an encoder and decoder."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = hf.transformers.T5Config(vocab_size=len(hf.WORDS), **sizes)
    tokenizer, cls = hf.tokenizer(), hf.transformers.T5EncoderModel
    model = hf.save_model(tmp_path, config, cls=cls, prepare=tokenizer)
    inputs = [tokenizer(text, return_tensors="pt")["input_ids"] for text in hf.TEXTS]
    with torch.inference_mode():
        expected = [model(input_ids=ids).last_hidden_state[0].mean(dim=0) for ids in inputs]
    encoder = TransformersTextEncoder(str(tmp_path), cache=None, engine="torch")
    np.testing.assert_allclose(encoder.transform(hf.TEXTS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:engine='openvino' cannot compute this network")
def test_export_of_a_sliding_window_handles_long_padding(tmp_path):
    """ModernBERT's padding attends to no token of a text that is more than 64 tokens away."""
    pytest.importorskip("openvino")
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    sizes = hf.TEXT | {"max_position_embeddings": 256}
    config = hf.transformers.ModernBertConfig(**sizes, **special)
    hf.save_model(tmp_path, config, prepare=hf.tokenizer())
    texts = ["cat " * 100, "dog"]
    encoder = TransformersTextEncoder(str(tmp_path), cache=None, batch_size=2)
    expected = encoder.set_params(engine="torch").transform(texts)
    features = encoder.set_params(engine="openvino").transform(texts)
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_features_of_missing_weights_raise(tmp_path):
    """transformers initializes such weights at random, differently in every process."""
    towers = {"vision_config": hf.VISION, "text_config": hf.TEXT, "projection_dim": 6}
    config, cls = hf.transformers.CLIPConfig(**towers), hf.transformers.CLIPForImageClassification
    prepare = hf.processor()
    model = hf.save_model(tmp_path, config, cls=cls, prepare=prepare)
    hf.tokenizer().save_pretrained(tmp_path)
    encoder = TransformersImageEncoder(str(tmp_path), cache=None)
    with pytest.raises(ValueError, match=r"random: 'visual_projection\.weight'\. Pass another"):
        encoder.transform(hf.IMAGES)
    with torch.inference_mode():
        pixels = prepare(images=hf.IMAGES, return_tensors="pt")["pixel_values"]
        expected = model.vision_model(pixel_values=pixels).last_hidden_state[:, 1:].mean(dim=1)
    features = encoder.set_params(pooling="mean").transform(hf.IMAGES)
    np.testing.assert_allclose(features, expected, atol=1e-4, rtol=1e-4)

    texts = TransformersTextEncoder(str(tmp_path), cache=None, pooling="mean")
    message = r"random: 'text_model\.embeddings"
    with pytest.raises(ValueError, match=message):
        texts.transform(hf.TEXTS)
    with pytest.raises(ValueError, match=message):
        LiTAligner(text_encoder=texts).fit(np.eye(3), hf.TEXTS)


def test_folder_of_another_library_raises(tmp_path):
    """A name without a prefix is that of a timm model."""
    hf.save_model(tmp_path, hf.image_config("vit"), prepare=hf.processor())
    aligner = CCAAligner(image_encoder=str(tmp_path), text_encoder="all-MiniLM-L6-v2")
    message = (
        "The folder contains a 'vit' model of transformers with an image processor, for "
        "TransformersImageEncoder ('transformers:FOLDER')."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        aligner.fit(hf.IMAGES, hf.TEXTS)
    with pytest.raises(ValueError, match=re.escape(message)):
        TransformersTextEncoder(str(tmp_path)).transform(hf.TEXTS)
    with pytest.raises(ValueError, match=re.escape(message)):
        OpenCLIPTextEncoder(str(tmp_path)).transform(hf.TEXTS)


def test_code_of_a_model_is_not_run(tmp_path, monkeypatch):
    """transformers would ask the user, and run the code if the answer is yes."""
    hf.save_model(tmp_path, hf.transformers.BertConfig(**hf.TEXT), prepare=hf.tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.A", "AutoModel": "code.B"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    with pytest.raises(ValueError, match="contains custom code which must be executed"):
        TransformersTextEncoder(str(tmp_path), cache=None).transform(hf.TEXTS)
    assert not (tmp_path / "marker").exists()
