"""Speed of classifying features, of ranks among many, and of embedding labels."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer

from benchmarks._results import Row, show
from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.aligners import _feature_tiles
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.encoders._hub import pretrained
from sklearn_ape.metrics import retrieval_report

_WIDTH, _N_COMPONENTS, _N_LABELS = 1280, 512, 1000
_RETRIEVED_WIDTH = 256
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


def measure(quick: bool) -> list[Row]:
    return [*_classification(quick), *_retrieval(quick), *_labels(quick)]


def classifier_of_features(n_labels: int = _N_LABELS) -> ZeroShotClassifier:
    """Return a classifier of features of the width of EfficientNet-Lite0's."""
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
    """Write made-up features of half precision; the same few again, which are drawn sooner."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal((min(n_rows, 20_000), _WIDTH), dtype=np.float32)
    some = some.astype(np.float16)
    written = np.lib.format.open_memmap(path, "w+", np.float16, (n_rows, _WIDTH))
    for start in range(0, n_rows, len(some)):
        written[start : start + len(some)] = some[: n_rows - start]
    written.flush()


def _classification(quick: bool) -> list[Row]:
    n_rows, n_parts = (100_000, 4) if quick else (1_000_000, 10)
    classifier = classifier_of_features()
    aligner = classifier.aligner
    labels = np.ascontiguousarray(aligner.transform_text(classifier.classes_.tolist()))
    tile = _feature_tiles.TILE_BYTES // (4 * _WIDTH)

    def bare(X: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(X), tile):
            features = torch.from_numpy(X[start : start + tile].astype(np.float32))
            with torch.inference_mode():
                embeddings = aligner.module_.embed_image(features).numpy()
            found.append((embeddings @ labels.T).argmax(axis=1))
        return np.concatenate(found)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        write_features(path, n_rows)
        X = np.load(path, mmap_mode="r")
        parts = np.array_split(X, n_parts)
        agreed = np.mean(classifier.classes_[bare(parts[0])] == classifier.predict(parts[0]))
        assert agreed > 0.999, agreed
        # In turns, so that what else the machine does falls on both.
        times = _in_turns([classifier.predict, bare], parts)
        others = [classifier.predict_top_k, classifier.predict_proba]
        top, proba = (n_parts * seconds for seconds in _in_turns(others, parts[:1]))
    shape = f"{n_rows:,} × {_WIDTH} features, {_N_LABELS:,} labels"
    peer = "head, product and argmax by hand"
    return [
        Row(f"classify {shape}", times[0], "s", peer, times[1], "at most 1.3"),
        Row(f"top 5 of {shape}", top, "s", peer, times[1]),
        Row(f"probabilities of {shape}", proba, "s", peer, times[1]),
    ]


def _retrieval(quick: bool) -> list[Row]:
    n_rows = 20_000 if quick else 100_000
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, n_rows, _RETRIEVED_WIDTH), dtype=np.float32)
    pairs = np.column_stack([np.arange(n_rows), rng.permutation(n_rows)])

    def bare(queries: np.ndarray) -> None:
        out = np.empty((1024, 4096), dtype=np.float32)
        for left in range(0, n_rows, 4096):
            columns = text[left : left + 4096].T
            for top in range(0, len(queries), 1024):
                rows = queries[top : top + 1024]
                np.matmul(rows, columns, out=out[: len(rows), : columns.shape[1]])

    before = _seconds(bare, image[: n_rows // 2])
    ours = _seconds(lambda _: retrieval_report(image, text, pairs), None)
    theirs = before + _seconds(bare, image[n_rows // 2 :])
    what = f"recall both ways of {n_rows:,} × {n_rows:,}, {_RETRIEVED_WIDTH} components"
    return [Row(what, ours, "s", "matrix product in tiles", theirs, "at most 1.3")]


def _labels(quick: bool) -> list[Row]:
    """Embed labels beside a loop that calls the network once a label."""
    names = sorted(set(load_openmoji().captions))[: 60 if quick else 400]
    rng = np.random.default_rng(0)
    encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=None)
    captions = names[:50]
    aligner = APEAligner(text_encoder=encoder, max_epochs=1, random_state=0)
    aligner.fit(rng.standard_normal((50, 64), dtype=np.float32), captions)
    tokenize = pretrained(_auto("AutoTokenizer"), encoder.model_name, None)
    network = pretrained(_auto("AutoModel"), encoder.model_name, None).eval()

    def by_loop(some: list[str]) -> np.ndarray:
        means = []
        for name in some:
            prompts = [template.replace("{}", name) for template in _TEMPLATES]
            tokens = tokenize(prompts, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                last = network(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            features = (last * mask).sum(dim=1) / mask.sum(dim=1)
            features = torch.nn.functional.normalize(features, dim=-1).numpy()
            mean = aligner.transform_text(features).mean(axis=0)
            means.append(mean / np.linalg.norm(mean))
        return np.stack(means)

    def ours(some: list[str]) -> np.ndarray:
        classifier = ZeroShotClassifier(some, aligner=aligner, templates=_TEMPLATES)
        return classifier.decision_function(np.zeros((1, 64), dtype=np.float32))

    for warm in (by_loop, ours):
        warm(names[:3])
    classifier = ZeroShotClassifier(names[:20], aligner=aligner, templates=_TEMPLATES)
    X = rng.standard_normal((5, 64), dtype=np.float32)
    expected = aligner.logit_scale_ * aligner.transform(X) @ by_loop(names[:20]).T
    assert np.abs(classifier.decision_function(X) - expected).max() < 1e-2 * aligner.logit_scale_
    times = _in_turns([ours, by_loop], [names[start::4] for start in range(4)])
    what = f"embed {len(names)} labels × {len(_TEMPLATES)} templates"
    return [Row(what, times[0], "s", "a loop over labels", times[1], "at most 1.0")]


def _auto(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _in_turns(calls: list[Callable[[Any], Any]], parts: list[Any]) -> list[float]:
    """Return the seconds that each call takes over all parts, part by part in turns."""
    times = [0.0] * len(calls)
    for part in parts:
        for number, call in enumerate(calls):
            times[number] += _seconds(call, part)
    return times


def _seconds(call: Callable[[Any], Any], part: Any) -> float:
    start = time.perf_counter()
    call(part)
    return time.perf_counter() - start


if __name__ == "__main__":
    show(measure("--quick" in sys.argv))
