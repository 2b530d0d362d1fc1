"""Tiny networks in folders, one for every class of encoders, built offline."""

import torch

from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
)
from tests.encoders import test_open_clip, test_timm, test_transformers

TEXTS = ["a cat", "the dog runs on the mat", "cat", "dog on a mat", "the mat"]


def text_folder(folder):
    of = test_transformers
    of.saved(folder, of.transformers.BertConfig(**of.TEXT), prepare=of.tokenizer())
    return str(folder)


def encoders(folder):
    """Return an encoder of every class, by its name; all without a cache."""
    paths = {kind: folder / kind for kind in ("timm", "image", "text", "clip")}
    for path in paths.values():
        path.mkdir()
    of = test_transformers
    with torch.random.fork_rng():
        test_timm.saved(paths["timm"], "test_vit", num_classes=7)
    of.saved(paths["image"], of.image_config("vit"), prepare=of.processor())
    text_folder(paths["text"])
    test_open_clip.saved(paths["clip"])
    made = {
        TimmImageEncoder: "timm",
        TransformersImageEncoder: "image",
        TransformersTextEncoder: "text",
        OpenCLIPImageEncoder: "clip",
        OpenCLIPTextEncoder: "clip",
    }
    return {cls.__name__: cls(str(paths[kind]), cache=None) for cls, kind in made.items()}
