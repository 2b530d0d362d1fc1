"""Tiny networks in folders, one for each encoder class."""

import torch

from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    SentenceTransformerEncoder,
    SentenceTransformerImageEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
)
from tests.encoders import test_open_clip, test_timm
from tests.encoders import test_transformers as hf

TEXTS = ["a cat", "the dog runs on the mat", "cat", "dog on a mat", "the mat"]


def text_folder(folder):
    hf.save_model(folder, hf.transformers.BertConfig(**hf.TEXT), prepare=hf.tokenizer())
    return str(folder)


def multimodal_folder(folder):
    """Save a CLIP model as the sentence-transformers library does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Transformer

    size = {"height": 32, "width": 32}
    images = hf.transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    prepare = hf.transformers.CLIPProcessor(images, hf.tokenizer(model_max_length=16))
    tower = folder / "clip"
    tower.mkdir()
    config = hf.image_config("clip")
    config.text_config.eos_token_id = 3  # that of the tokenizer: its state is the embedding
    hf.save_model(tower, config, prepare=prepare)
    SentenceTransformer(modules=[Transformer(str(tower))], device="cpu").save(str(folder))
    return str(folder)


def encoders(folder):
    """Return a dict of encoders by class name, all without a cache."""
    paths = {kind: folder / kind for kind in ("timm", "image", "text", "clip", "multimodal")}
    for path in paths.values():
        path.mkdir()
    with torch.random.fork_rng():
        test_timm.save_model(paths["timm"], "test_vit", num_classes=7)
    hf.save_model(paths["image"], hf.image_config("vit"), prepare=hf.processor())
    text_folder(paths["text"])
    test_open_clip.save_model(paths["clip"])
    multimodal_folder(paths["multimodal"])
    kinds = {
        TimmImageEncoder: "timm",
        TransformersImageEncoder: "image",
        TransformersTextEncoder: "text",
        OpenCLIPImageEncoder: "clip",
        OpenCLIPTextEncoder: "clip",
        SentenceTransformerEncoder: "text",
        SentenceTransformerImageEncoder: "multimodal",
    }
    return {cls.__name__: cls(str(paths[kind]), cache=None) for cls, kind in kinds.items()}
