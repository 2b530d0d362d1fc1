"""Zero-shot classification and encoding, compared with open_clip and sentence-transformers.

Both sides of a comparison load the same folder. The networks have random weights and a fraction
of the size of CLIP ViT-B/32, so they need no download. Images are in memory and already RGB.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sklearn_ape import APEAligner, CLIPAligner, ZeroShotClassifier, load_pretrained
from sklearn_ape.datasets import load_noto_emoji, load_openmoji
from sklearn_ape.encoders import (
    SentenceTransformerEncoder,
    SentenceTransformerImageEncoder,
    TransformersTextEncoder,
)
from sklearn_ape.encoders.images import read_image

from .._process import run_for_numbers
from .._results import Comparison
from ._rounds import skip_missing, time_in_turns

_N_ROUNDS = 9
_IMAGE_SIZE, _PATCH_SIZE, _N_TOKENS, _BATCH_SIZE = 224, 32, 77, 32
_VISION = {"width": 384, "heads": 6, "layers": 6}
_TEXT = {"width": 256, "heads": 4, "layers": 4}
_EMBED_DIM = 256
_N_FEATURES = 1280
_ADJECTIVES = ("", "red ", "blue ", "small ", "large ", "old ", "new ", "wooden ")
# Longest time in which a classifier of 10,000 classes should answer.
_MAX_SECONDS = 2.0


def measure(quick: bool) -> list[Comparison]:
    """Measure seconds, and the largest differences from the peers."""
    rows: list[Comparison] = []
    for what, compare in (
        ("open_clip", _compare_with_open_clip),
        ("sentence-transformers", _compare_with_sentence_transformers),
    ):
        try:
            rows += compare(quick)
        except ImportError as error:
            skip_missing(what, error)
    return rows + _measure_first_answer(quick)


def _load_images(n_images: int) -> list[Any]:
    paths = load_openmoji().images
    return [read_image(path) for path in paths[:: max(1, len(paths) // n_images)][:n_images]]


def save_open_clip_model(folder: Path, embed_dim: int = _EMBED_DIM) -> None:
    """Save an open_clip model with random weights, in the form of a folder from the hub."""
    import open_clip

    vision = {
        "image_size": _IMAGE_SIZE,
        "patch_size": _PATCH_SIZE,
        "layers": _VISION["layers"],
        "width": _VISION["width"],
    }
    text = {"context_length": _N_TOKENS, "vocab_size": 49408, **_TEXT}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)
        )
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {
        "model_cfg": {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def _compare_with_open_clip(quick: bool) -> list[Comparison]:
    import open_clip

    n_classes, n_images, n_rounds = (10, 64, 1) if quick else (50, 96, _N_ROUNDS)
    captions = sorted(set(load_openmoji().captions))
    names = captions[:n_classes]
    # The templates of open_clip are functions of a name.
    templates = [make("{}") for make in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    images = _load_images(n_images)
    with tempfile.TemporaryDirectory() as folder:
        save_open_clip_model(Path(folder))
        model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        model.eval()
        aligner = CLIPAligner(folder, cache=None, device="cpu")
        no_image = np.zeros((1, _EMBED_DIM), np.float32)

        def embed_labels(labels: list[str]) -> np.ndarray:
            classifier = ZeroShotClassifier(labels, aligner=aligner, templates=templates)
            return classifier.decision_function(no_image)

        def build_weights(labels: list[str]) -> torch.Tensor:
            return open_clip.build_zero_shot_classifier(model, tokenizer, labels, templates)

        def embed_images() -> torch.Tensor:
            features = []
            with torch.inference_mode():
                for start in range(0, len(images), _BATCH_SIZE):
                    batch = [prepare(image) for image in images[start : start + _BATCH_SIZE]]
                    features.append(model.encode_image(torch.stack(batch), normalize=True))
            return torch.cat(features)

        classifier = ZeroShotClassifier(names, aligner=aligner, templates=templates)
        weights = build_weights(names)
        # The logits of unit vectors in the directions of the axes are the embeddings.
        axes = np.eye(_EMBED_DIM, dtype=np.float32)
        label_embeddings = classifier.decision_function(axes) / aligner.logit_scale_
        label_error = float(np.abs(label_embeddings - weights.numpy()).max())
        logits = aligner.logit_scale_ * (embed_images() @ weights).numpy()
        logit_error = float(np.abs(classifier.decision_function(images) - logits).max())

        def predict_by_hand() -> np.ndarray:
            return (embed_images() @ weights).argmax(dim=1).numpy()

        by_hand = classifier.classes_[predict_by_hand()]
        agreement = 100 * float(np.mean(classifier.predict(images) == by_hand))
        # New labels in every round, since the classifier caches the embeddings of labels.
        parts = [captions[n_classes * part :][:n_classes] for part in range(1, n_rounds + 1)]
        ours, theirs = iter(parts), iter(parts)
        labels = time_in_turns(
            {
                "ours": lambda: embed_labels(next(ours)),
                "peer": lambda: build_weights(next(theirs)),
            },
            n_rounds,
        )
        predictions = time_in_turns(
            {"ours": lambda: classifier.predict(images), "peer": predict_by_hand}, n_rounds
        )
    name = f"embed {n_classes} labels × {len(templates)} templates with a CLIP model"
    peer, target = "open_clip's build_zero_shot_classifier", "at most 1.2"
    predict = f"classify {n_images} images with a CLIP model, {n_classes} labels"
    loop = "open_clip, loop over batches of 32"
    return [
        Comparison(name, labels["ours"], "s", peer, labels["peer"], target),
        Comparison(f"{name}: largest difference", label_error, ""),
        Comparison(predict, predictions["ours"], "s", loop, predictions["peer"], target),
        Comparison(f"{predict}: largest difference of a logit", logit_error, ""),
        Comparison(f"{predict}: same predictions", agreement, "%"),
    ]


def save_sentence_transformer(folder: Path, captions: list[str]) -> None:
    """Save a CLIP model with random weights, as sentence-transformers does."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    backend.train_from_iterator(captions, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        eos_token="[SEP]",
        model_max_length=_N_TOKENS,
    )
    vision, text = (
        {
            "hidden_size": tower["width"],
            "num_hidden_layers": tower["layers"],
            "num_attention_heads": tower["heads"],
            "intermediate_size": 4 * tower["width"],
        }
        for tower in (_VISION, _TEXT)
    )
    text |= {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _N_TOKENS,
        "eos_token_id": 3,  # the state of this token is the embedding
    }
    config = transformers.CLIPConfig(
        vision_config=vision | {"image_size": _IMAGE_SIZE, "patch_size": _PATCH_SIZE},
        text_config=text,
        projection_dim=_EMBED_DIM,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
    tower = folder / "clip"
    model.save_pretrained(tower)
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": _IMAGE_SIZE},
        crop_size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE},
    )
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(tower)
    SentenceTransformer(modules=[Transformer(str(tower))], device="cpu").save(str(folder))


def _compare_with_sentence_transformers(quick: bool) -> list[Comparison]:
    from sentence_transformers import SentenceTransformer

    n_images, n_texts, n_rounds = (64, 200, 1) if quick else (96, 500, _N_ROUNDS)
    captions = [*load_openmoji().captions, *load_noto_emoji().captions]
    texts = list(dict.fromkeys(captions))[:n_texts]
    items = {"images": _load_images(n_images), "texts": texts}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_sentence_transformer(Path(folder), captions)
        model = SentenceTransformer(folder, device="cpu")
        options: dict[str, Any] = {"cache": None, "device": "cpu"}
        encoders = {
            "images": SentenceTransformerImageEncoder(folder, **options),
            "texts": SentenceTransformerEncoder(folder, **options),
        }
        for kind, batch in items.items():

            def encode(kind: str = kind, batch: list[Any] = batch) -> np.ndarray:
                return encoders[kind].transform(batch)

            def encode_by_library(batch: list[Any] = batch) -> np.ndarray:
                return model.encode(batch, show_progress_bar=False)

            error = float(np.abs(encode() - encode_by_library()).max())
            seconds = time_in_turns({"ours": encode, "peer": encode_by_library}, n_rounds)
            name = f"encode {len(batch):,} {kind} with a multimodal model"
            peer = "sentence-transformers' encode"
            rows += [
                Comparison(name, seconds["ours"], "s", peer, seconds["peer"], "at most 1.2"),
                Comparison(f"{name}: largest difference", error, ""),
            ]
    return rows


def _measure_first_answer(quick: bool) -> list[Comparison]:
    """Measure the first prediction from labels that were encoded before, and from new labels."""
    n_labels, n_rounds = (300, 1) if quick else (10_000, 3)
    names = sorted(set(load_openmoji().captions))
    phrases = [adjective + name for adjective in _ADJECTIVES for name in names]
    labels = list(dict.fromkeys(phrases))[:n_labels]
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, _N_FEATURES), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = TransformersTextEncoder(cache=folder / "cache")
        aligner = APEAligner(text_encoder=encoder, init=None, max_epochs=1, random_state=0)
        aligner.fit(features, labels[:200]).save_pretrained(folder / "aligner")
        (folder / "labels.json").write_text(json.dumps(labels))
        new, _ = predict_first(folder, "simple")
        # The features of texts without a template are stored, and the label embeddings are not.
        from_features, _ = run_for_numbers(__name__, folder, "none")
        rounds = [run_for_numbers(__name__, folder, "simple") for _ in range(n_rounds)]
    on_disk, in_memory = np.median(rounds, axis=0)
    title = f"first answer of {len(labels):,} classes"
    values = {
        f"{title}, 4 templates: label embeddings in memory": in_memory,
        f"{title}, 4 templates: new process, label embeddings on disk": on_disk,
        f"{title}, 1 template: new process, text features on disk": from_features,
    }
    limit = f"limit of {_MAX_SECONDS:g} s"
    rows = [
        Comparison(key, float(value), "s", limit, _MAX_SECONDS, "at most 1.0")
        for key, value in values.items()
    ]
    return [*rows, Comparison(f"{title}, 4 templates: texts encoded", new, "s")]


def predict_first(folder: Path, templates: str) -> tuple[float, float]:
    """Return the seconds of the first answers of two classifiers of the same labels.

    The first includes loading the aligner. The second finds the label embeddings in memory.
    """
    labels = json.loads((folder / "labels.json").read_text())
    features = np.ones((1, _N_FEATURES), np.float32)
    times = [time.perf_counter()]
    aligner = load_pretrained(folder / "aligner", cache=folder / "cache")
    for _ in range(2):
        ZeroShotClassifier(labels, aligner=aligner, templates=templates).predict(features)
        times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1]


if __name__ == "__main__":
    print(*predict_first(Path(sys.argv[1]), sys.argv[2]))
