"""Speed of classification, of retrieval ranks and of embedding labels."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer

from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.encoders.weights import load_from_source
from sklearn_ape.features.matrix import TILE_BYTES
from sklearn_ape.metrics import retrieval_report

from .._results import Comparison

_WIDTH, _N_COMPONENTS, _N_LABELS = 1280, 512, 1000
_RETRIEVAL_WIDTH = 256
_KINDS = (
    "a photo",
    "a picture",
    "an icon",
    "a drawing",
    "a sketch",
    "a painting",
    "a scan",
    "art",
)
_TEMPLATES = [f"{kind} of a {{}}" for kind in _KINDS]


def measure(quick: bool) -> list[Comparison]:
    """Measure the seconds of classification, retrieval metrics and label embeddings."""
    return [*_measure_classification(quick), *_measure_retrieval(quick), *_measure_labels(quick)]


def make_classifier(n_labels: int = _N_LABELS) -> ZeroShotClassifier:
    """Return a classifier of features as wide as those of EfficientNet-Lite0."""
    rng = np.random.default_rng(0)
    names = [f"thing {number}" for number in range(3000)]
    aligner = APEAligner(
        text_encoder=HashingVectorizer(n_features=768, analyzer="char_wb", ngram_range=(2, 4)),
        n_components=_N_COMPONENTS,
        max_epochs=1,
        random_state=0,
    ).fit(rng.standard_normal((3000, _WIDTH), dtype=np.float32), names)
    return ZeroShotClassifier(names[:n_labels], aligner=aligner, templates="none")


def write_features(path: Path, n_rows: int) -> None:
    """Write random float16 features; blocks repeat, since drawing a million rows is slow."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((min(n_rows, 20_000), _WIDTH), dtype=np.float32)
    block = block.astype(np.float16)
    features = np.lib.format.open_memmap(path, "w+", np.float16, (n_rows, _WIDTH))
    for start in range(0, n_rows, len(block)):
        features[start : start + len(block)] = block[: n_rows - start]
    features.flush()


def _measure_classification(quick: bool) -> list[Comparison]:
    n_rows, n_parts = (100_000, 4) if quick else (1_000_000, 10)
    classifier = make_classifier()
    aligner = classifier.aligner
    labels = np.ascontiguousarray(aligner.transform_text(classifier.classes_.tolist()))
    tile = TILE_BYTES // (4 * _WIDTH)

    def predict_by_hand(X: np.ndarray) -> np.ndarray:
        indices = []
        for start in range(0, len(X), tile):
            features = torch.from_numpy(X[start : start + tile].astype(np.float32))
            with torch.inference_mode():
                embeddings = aligner.module_.embed_image(features).numpy()
            indices.append((embeddings @ labels.T).argmax(axis=1))
        return np.concatenate(indices)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        write_features(path, n_rows)
        X = np.load(path, mmap_mode="r")
        parts = np.array_split(X, n_parts)
        by_hand = classifier.classes_[predict_by_hand(parts[0])]
        agreement = np.mean(by_hand == classifier.predict(parts[0]))
        assert agreement > 0.999, agreement
        # Alternating, so that other work on the machine slows both.
        seconds, peer_seconds = _time_alternating([classifier.predict, predict_by_hand], parts)
        methods = [classifier.predict_top_k, classifier.predict_proba]
        top, proba = (n_parts * s for s in _time_alternating(methods, parts[:1]))
    shape = f"{n_rows:,} × {_WIDTH} features, {_N_LABELS:,} labels"
    peer = "head, product and argmax by hand"
    return [
        Comparison(f"classify {shape}", seconds, "s", peer, peer_seconds, "at most 1.3"),
        Comparison(f"top 5 of {shape}", top, "s", peer, peer_seconds),
        Comparison(f"probabilities of {shape}", proba, "s", peer, peer_seconds),
    ]


def _measure_retrieval(quick: bool) -> list[Comparison]:
    n_rows = 20_000 if quick else 100_000
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, n_rows, _RETRIEVAL_WIDTH), dtype=np.float32)
    pairs = np.column_stack([np.arange(n_rows), rng.permutation(n_rows)])

    def multiply_in_tiles(queries: np.ndarray) -> None:
        out = np.empty((1024, 4096), dtype=np.float32)
        for left in range(0, n_rows, 4096):
            columns = text[left : left + 4096].T
            for top in range(0, len(queries), 1024):
                rows = queries[top : top + 1024]
                np.matmul(rows, columns, out=out[: len(rows), : columns.shape[1]])

    # Half of the peer's work before and half after, so that other work slows both.
    first_half = _time(multiply_in_tiles, image[: n_rows // 2])
    seconds = _time(lambda _: retrieval_report(image, text, pairs), None)
    peer_seconds = first_half + _time(multiply_in_tiles, image[n_rows // 2 :])
    name = f"recall in both directions of {n_rows:,} × {n_rows:,}, {_RETRIEVAL_WIDTH} components"
    return [Comparison(name, seconds, "s", "matrix product in tiles", peer_seconds, "at most 1.3")]


def _measure_labels(quick: bool) -> list[Comparison]:
    """Compare the embedding of labels with a loop that calls the network once per label."""
    names = sorted(set(load_openmoji().captions))[: 60 if quick else 400]
    rng = np.random.default_rng(0)
    encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=None)
    captions = names[:50]
    aligner = APEAligner(text_encoder=encoder, max_epochs=1, random_state=0)
    aligner.fit(rng.standard_normal((50, 64), dtype=np.float32), captions)
    tokenize = load_from_source(
        _import_auto("AutoTokenizer").from_pretrained, encoder.model_name, None
    )
    network = load_from_source(
        _import_auto("AutoModel").from_pretrained, encoder.model_name, None
    ).eval()

    def embed_by_loop(labels: list[str]) -> np.ndarray:
        means = []
        for name in labels:
            prompts = [template.replace("{}", name) for template in _TEMPLATES]
            tokens = tokenize(prompts, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = network(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            features = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            features = torch.nn.functional.normalize(features, dim=-1).numpy()
            mean = aligner.transform_text(features).mean(axis=0)
            means.append(mean / np.linalg.norm(mean))
        return np.stack(means)

    def embed_labels(labels: list[str]) -> np.ndarray:
        classifier = ZeroShotClassifier(labels, aligner=aligner, templates=_TEMPLATES)
        return classifier.decision_function(np.zeros((1, 64), dtype=np.float32))

    for embed in (embed_by_loop, embed_labels):
        embed(names[:3])  # warm up
    classifier = ZeroShotClassifier(names[:20], aligner=aligner, templates=_TEMPLATES)
    X = rng.standard_normal((5, 64), dtype=np.float32)
    expected = aligner.logit_scale_ * aligner.transform(X) @ embed_by_loop(names[:20]).T
    assert np.abs(classifier.decision_function(X) - expected).max() < 1e-2 * aligner.logit_scale_
    parts = [names[start::4] for start in range(4)]
    seconds, peer_seconds = _time_alternating([embed_labels, embed_by_loop], parts)
    name = f"embed {len(names)} labels × {len(_TEMPLATES)} templates"
    return [Comparison(name, seconds, "s", "a loop over labels", peer_seconds, "at most 1.0")]


def _import_auto(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _time_alternating(calls: list[Callable[[Any], Any]], parts: list[Any]) -> list[float]:
    """Return the total seconds of each call over all parts; the calls alternate per part."""
    times = [0.0] * len(calls)
    for part in parts:
        for number, call in enumerate(calls):
            times[number] += _time(call, part)
    return times


def _time(call: Callable[[Any], Any], part: Any) -> float:
    start = time.perf_counter()
    call(part)
    return time.perf_counter() - start
