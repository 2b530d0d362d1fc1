"""Write a small model of every kind and its results as fixtures of the current format.

Run ``python tests/persistence/write_fixtures.py`` when the format number is increased.
Existing fixtures of older formats are not changed.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CrossModalRetriever,
    FewShotClassifier,
    KernelAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)
from sklearn_ape.encoders import HeadPairs, TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile
from sklearn_ape.persistence.files import FORMAT

FIXTURES = Path(__file__).parents[1] / "fixtures"
CAPTIONS = [
    *("a red apple", "a slice of pizza", "a bowl of rice", "bread and butter"),
    *("a cat asleep", "two dogs run", "a small bird", "a horse in a field"),
    *("a fast car", "a blue bus", "an old train", "a sailing boat"),
]
KINDS = np.repeat(["food", "animal", "travel"], 4)
ENTRIES = {n.to_bytes(32, "little"): np.float32(np.arange(4) * 0.3 + n) for n in range(5)}


def example_images():
    """Return one image per caption, with reproducible pixels."""
    rows, columns = np.indices((24, 32))
    return [
        np.stack([rows * 9 + 17 * i, columns * (i + 1), rows * columns + 60 * i], -1).astype("u1")
        for i in range(len(CAPTIONS))
    ]


def answers_to_pairs(model, X, y):
    return {
        "logit_scale": model.logit_scale_,
        "image": model.transform(X).tolist(),
        "text": model.transform_text(y).tolist(),
        "standardized": model.similarity(X, y, standardize=True).tolist(),
    }


def answers_to_features(model, X):
    """Return the results of a model with a text encoder."""
    if isinstance(model, CrossModalRetriever):
        found = model.search(["a cat", "a train"], k=3)
        return {"scores": found.scores.tolist(), "items": found.items}
    labels = getattr(model, "labels_" if hasattr(model, "predict_sets") else "classes_")
    return {
        "labels": labels.tolist(),
        "proba": model.predict_proba(X).tolist(),
        "predict": model.predict(X).tolist(),
    }


def _of_pairs(X, y):
    """Return fitted aligners of features on both sides."""
    ape = APEAligner(width=4, max_epochs=2, early_stopping=False, random_state=0, device="cpu")
    rng = np.random.default_rng(1)
    pairs = HeadPairs(
        rng.standard_normal((5, X.shape[1])).astype(np.float32),
        rng.standard_normal((5, y.shape[1])).astype(np.float32),
    )
    return {
        "kernel": KernelAligner(),
        "head_pairs": KernelAligner(head_pairs=pairs),
        "cca": CCAAligner(),
        "asif": ASIFAligner(k=4),
        "ape": clone(ape).set_params(init="kernel"),
        "ape_blend": clone(ape),
        "ape_plain": clone(ape).set_params(init=None, head="glu", side="both", n_components=3),
    }


def _with_words(X):
    """Return fitted models with a text encoder."""
    texts = TransformersTextEncoder(cache=None)
    aligner = CCAAligner(n_components=3, text_encoder=texts).fit(X, CAPTIONS)
    images = TimmImageEncoder(cache=None)
    pipeline = make_pipeline(images, clone(aligner)).fit(example_images(), CAPTIONS)
    labels = {"food": ["bread", "an apple"], "animal": None, "travel": "a {} in the street: a bus"}
    several = MultiLabelZeroShotClassifier(["food", "animal", "travel"], aligner=aligner)
    few = FewShotClassifier(labels, aligner=aligner).fit(X[:7], KINDS[:7])
    return {
        "classifier": ZeroShotClassifier(labels, aligner=aligner, threshold=0.4),
        "few_shot": few,
        "multilabel": several.fit_thresholds(X, [(kind,) for kind in KINDS.tolist()]),
        "retriever": CrossModalRetriever(aligner).fit(X, [f"{i}.png" for i in range(12)]),
        "pipeline": ZeroShotClassifier(labels, aligner=pipeline),
    }


def _write_pairs(folder):
    file = folder / "answers.json"
    if file.exists():
        answers = json.loads(file.read_text())
    else:
        rng = np.random.default_rng(0)
        image, text = rng.standard_normal((12, 4)), rng.standard_normal((12, 3))
        answers = {"image": image.round(4).tolist(), "text": text.round(4).tolist(), "models": {}}
    X, y = (np.array(answers[side], dtype=np.float32) for side in ("image", "text"))
    for name, model in _of_pairs(X, y).items():
        if not (folder / name).exists():
            model.fit(X, y).save_pretrained(folder / name)
            answers["models"][name] = {"class": type(model).__name__}
            answers["models"][name] |= answers_to_pairs(model, X, y)
    file.write_text(json.dumps(answers))
    return X


def _write_with_words(folder, X):
    file = folder / "answers_with_words.json"
    models = json.loads(file.read_text())["models"] if file.exists() else {}
    for name, model in _with_words(X).items():
        if not (folder / name).exists():
            model.save_pretrained(folder / name)
            models[name] = {"class": type(model).__name__}
            models[name] |= answers_to_features(
                model, example_images() if name == "pipeline" else X
            )
    file.write_text(json.dumps({"models": models}))


def _write_features(folder):
    numbers = np.array(list(ENTRIES.values()))
    for dtype in ("float32", "float16"):
        if (folder / dtype).exists():
            continue
        with DiskFeatureCache(folder, dtype=dtype) as cache:  # both types are in one file
            cache.put_many(dict(zip(ENTRIES, numbers, strict=True)))
        for name, n_chunks in (("whole.npy", 3), ("begun.npy", 2)):
            with FeatureFile(folder / dtype / name, "of an encoder", 5, 2, dtype) as file:
                for chunk in range(n_chunks):
                    file.write(chunk, numbers[2 * chunk : 2 * chunk + 2], str(chunk), {})
                if n_chunks == file.n_chunks:
                    file.finish()


def main():
    folder = FIXTURES / f"format_{FORMAT}"
    _write_with_words(folder, _write_pairs(folder))
    _write_features(folder / "features")


if __name__ == "__main__":
    main()
