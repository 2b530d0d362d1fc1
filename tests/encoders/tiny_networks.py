"""Tiny networks in folders, one for each encoder class."""

import torch

from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    SentenceTransformerEncoder,
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


def encoders(folder):
    """Return a dict of encoders by class name, all without a cache."""
    paths = {kind: folder / kind for kind in ("timm", "image", "text", "clip")}
    for path in paths.values():
        path.mkdir()
    with torch.random.fork_rng():
        test_timm.save_model(paths["timm"], "test_vit", num_classes=7)
    hf.save_model(paths["image"], hf.image_config("vit"), prepare=hf.processor())
    text_folder(paths["text"])
    test_open_clip.save_model(paths["clip"])
    kinds = {
        TimmImageEncoder: "timm",
        TransformersImageEncoder: "image",
        TransformersTextEncoder: "text",
        OpenCLIPImageEncoder: "clip",
        OpenCLIPTextEncoder: "clip",
        SentenceTransformerEncoder: "text",
    }
    return {cls.__name__: cls(str(paths[kind]), cache=None) for cls, kind in kinds.items()}
