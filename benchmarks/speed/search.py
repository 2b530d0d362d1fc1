"""A grid search of encoders and heads, against encoding once and fitting the heads."""

from __future__ import annotations

import tempfile
import time

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from benchmarks._results import Row, show
from sklearn_ape import APEAligner
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

DEPTHS, N_FOLDS, N_PAIRS, N_EPOCHS = [1, 2, 4, 6], 3, 1000, 10


def measure(quick: bool) -> list[Row]:
    """Return the seconds of a stock GridSearchCV over depths, from image files."""
    data = load_openmoji()
    n_pairs = 200 if quick else N_PAIRS
    rows = np.random.default_rng(0).permutation(len(data.images))[:n_pairs]
    images = [data.images[row] for row in rows]
    captions = [data.captions[row] for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        n_epochs = 2 if quick else N_EPOCHS
        heads = APEAligner(init=None, width=512, max_epochs=n_epochs, early_stopping=False)
        encoders = [
            TimmImageEncoder(cache=f"{folder}/warm"),
            TransformersTextEncoder(cache=f"{folder}/warm"),
        ]
        for encoder, items in zip(encoders, (images, captions), strict=True):
            encoder.transform(items[:40])  # the weights are read before either is timed
        start = time.perf_counter()
        encode_once = [clone(encoder).set_params(cache=f"{folder}/once") for encoder in encoders]
        image, text = (
            encoder.transform(items)
            for encoder, items in zip(encode_once, (images, captions), strict=True)
        )
        folds = list(KFold(N_FOLDS, shuffle=True, random_state=0).split(image))
        for depth in DEPTHS:
            for train, test in folds:
                fitted = clone(heads).set_params(depth=depth).fit(image[train], text[train])
                fitted.score(image[test], text[test])
        theirs = time.perf_counter() - start
        fresh = [clone(encoder).set_params(cache=f"{folder}/search") for encoder in encoders]
        aligner = clone(heads).set_params(image_encoder=fresh[0], text_encoder=fresh[1])
        start = time.perf_counter()
        GridSearchCV(aligner, {"depth": DEPTHS}, cv=folds, refit=False).fit(images, captions)
        ours = time.perf_counter() - start
    peer = "encode once, fit the heads"
    return [Row("grid search, 4 depths x 3 folds", ours, "s", peer, theirs, "at most 1.15")]


if __name__ == "__main__":
    import sys

    show(measure("--quick" in sys.argv))
