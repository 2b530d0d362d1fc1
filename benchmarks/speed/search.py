"""Grid search over encoder and head, compared with encoding once and fitting the heads."""

from __future__ import annotations

import tempfile
import time

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_ape import APEAligner
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

from .._results import Comparison

DEPTHS, N_FOLDS, N_PAIRS, N_EPOCHS = [1, 2, 4, 6], 3, 1000, 10


def measure(quick: bool) -> list[Comparison]:
    """Measure the seconds of a GridSearchCV over depths, from image files."""
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
            encoder.transform(items[:40])  # load the weights before the clock starts
        start = time.perf_counter()
        encoders_once = [clone(encoder).set_params(cache=f"{folder}/once") for encoder in encoders]
        image, text = (
            encoder.transform(items)
            for encoder, items in zip(encoders_once, (images, captions), strict=True)
        )
        folds = list(KFold(N_FOLDS, shuffle=True, random_state=0).split(image))
        for depth in DEPTHS:
            for train, test in folds:
                fitted = clone(heads).set_params(depth=depth).fit(image[train], text[train])
                fitted.score(image[test], text[test])
        peer_seconds = time.perf_counter() - start
        new_encoders = [
            clone(encoder).set_params(cache=f"{folder}/search") for encoder in encoders
        ]
        aligner = clone(heads).set_params(
            image_encoder=new_encoders[0], text_encoder=new_encoders[1]
        )
        start = time.perf_counter()
        GridSearchCV(aligner, {"depth": DEPTHS}, cv=folds, refit=False).fit(images, captions)
        seconds = time.perf_counter() - start
    name, peer = "grid search, 4 depths x 3 folds", "encode once, fit the heads"
    return [Comparison(name, seconds, "s", peer, peer_seconds, "at most 1.15")]
