"""Entrances that take features, each as a function of features to train on and to ask with."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CLIPAligner,
    CrossModalRetriever,
    KernelAligner,
    LiTAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)
from sklearn_ape.curation import find_near_duplicates, pair_quality, select_relevant
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.metrics import retrieval_ranks
from tests.encoders import test_open_clip
from tests.encoders.tiny_networks import text_folder

N_TRAIN = 60
N_ASKED = 20
WIDTH = 12  # of the tiny CLIP's embeddings

_rng = np.random.default_rng(0)
_concepts = _rng.standard_normal((N_TRAIN + N_ASKED, 6))
IMAGE = (_concepts @ _rng.standard_normal((6, WIDTH))).astype(np.float32)
TEXT = (_concepts @ _rng.standard_normal((6, WIDTH))).astype(np.float32)
NAMES = [f"concept {row}" for row in range(N_TRAIN + N_ASKED)]

_ARTICLES, _NOUNS = ("a", "the"), ("cat", "dog", "mat")
SENTENCES = [
    " ".join(words)
    for words in itertools.product(_ARTICLES, _NOUNS, ("runs", "on"), _ARTICLES, _NOUNS)
][:N_TRAIN]
SENTENCES += [f"{text} runs" for text in SENTENCES[: N_TRAIN - len(SENTENCES)]]


class Lookup(TransformerMixin, BaseEstimator):
    """An encoder that knows the features of "concept 0", "concept 1" and so on."""

    def fit(self, X: Any, y: Any = None) -> Lookup:
        return self

    def transform(self, X: Any) -> np.ndarray:
        return TEXT[[int(text.split()[-1]) for text in X]]

    def __sklearn_is_fitted__(self) -> bool:
        return True


class Subject(NamedTuple):
    """An entrance.

    `answer` takes features of both sides to train on, and of both sides to ask with, and returns
    numbers. `fits` says that it learns from features, so that it looks for what is unlike the
    rest. `skips` are names of forms that it takes in another way, `only` all those
    that it is tried with, and `closeness` a tolerance that its answers have at least where the
    numbers given were rounded.
    """

    name: str
    answer: Callable[..., np.ndarray]
    fits: bool = True
    skips: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    closeness: float = 0.0

    def takes(self, form: str) -> bool:
        """Say whether it is tried with a form."""
        return form not in self.skips and (self.only is None or form in self.only)


def _aligned(aligner: Any, image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    fitted = clone(aligner).fit(image, text)
    embeddings = fitted.transform(asked_image), fitted.transform_text(asked_text)
    for rows in embeddings:
        lengths = np.linalg.norm(rows, axis=1)
        assert ((np.abs(lengths - 1) < 1e-4) | (lengths == 0)).all(), "not of length 1"
    return fitted.similarity(asked_image, asked_text)


def _tuned(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    encoder = TransformersTextEncoder(_tiny_text_folder(), cache=None, engine="torch")
    aligner = LiTAligner(text_encoder=encoder, max_epochs=1, batch_size=60, random_state=0)
    return aligner.fit(image, SENTENCES).similarity(asked_image, SENTENCES[:8])


def _clip(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    return CLIPAligner(_tiny_clip_folder(), cache=None).similarity(asked_image, asked_text)


@lru_cache(maxsize=1)
def known() -> KernelAligner:
    """Return an aligner that knows the concepts by name."""
    aligner = KernelAligner(text_encoder=Lookup())
    return aligner.fit(IMAGE[:N_TRAIN], NAMES[:N_TRAIN])


def _classified(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    classifier = ZeroShotClassifier(NAMES[:9], aligner=known(), templates="none")
    return classifier.predict_proba(asked_image)


def _labelled(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    classifier = MultiLabelZeroShotClassifier(NAMES[:9], aligner=known(), templates="none")
    return classifier.decision_function(asked_image)


def _found(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    retriever = CrossModalRetriever(known()).fit(asked_image)
    by_text = retriever.search(NAMES[:5], k=4)
    by_image = retriever.search(asked_image, k=2, modality="image")
    return np.hstack([by_text.scores.ravel(), by_image.scores.ravel()])


def _quality(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    return pair_quality(image, text, random_state=0).score


def _duplicates(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    return find_near_duplicates(image, threshold=0.8)


def _relevant(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    chosen = select_relevant(text, NAMES[:4], label_features=TEXT[:4], n_pairs=9, random_state=0)
    order = np.argsort(chosen.indices)
    return np.column_stack([chosen.indices, chosen.similarity])[order]


def _ranks(image: Any, text: Any, asked_image: Any, asked_text: Any) -> np.ndarray:
    rows = np.arange(N_ASKED)
    return retrieval_ranks(asked_image, asked_text, np.column_stack([rows, rows]))


@lru_cache(maxsize=1)
def _tiny_text_folder() -> str:
    return text_folder(Path(tempfile.mkdtemp(prefix="numerics-")))


@lru_cache(maxsize=1)
def _tiny_clip_folder() -> str:
    folder = Path(tempfile.mkdtemp(prefix="numerics-"))
    test_open_clip.saved(folder)
    return str(folder)


_HEADS = {"width": 16, "random_state": 0, "early_stopping": False}
_FEW = (
    "float64",
    "float16",
    "polars DataFrame",
    "sparse CSR array",
    "multiplied by 2**-66",
    "multiplied by 2**66",
)
_FEW += ("one NaN", "one infinite value", "one value of 1e25", "float64 values around 1e8")
# Images that are near-duplicates of each other cannot be judged by one another.
_ALL_ALIKE = ("a constant column of 1e6", "a constant column of 1e30")
_UNREADABLE = ("one NaN", "pandas DataFrame with NA", "polars DataFrame with null")
ALIGNERS = {
    "CCAAligner": CCAAligner(),
    "ASIFAligner": ASIFAligner(k=20),
    "KernelAligner": KernelAligner(),
    "APEAligner": APEAligner(width=16, max_epochs=2, random_state=0),
    "APEAligner(init='linear')": APEAligner(init="linear", max_epochs=2, **_HEADS),
    "APEAligner(init=None)": APEAligner(init=None, max_epochs=3, **_HEADS),
    "APEAligner(init=None, head='residual', side='both', loss='sigmoid')": APEAligner(
        init=None, head="residual", side="both", loss="sigmoid", max_epochs=3, **_HEADS
    ),
}
# Their answers turn on the last bits of what they are given more than others'.
_CLOSENESS = {"APEAligner(init=None, head='residual', side='both', loss='sigmoid')": 2e-2}
SUBJECTS = [
    *(
        Subject(name, partial(_aligned, aligner), closeness=_CLOSENESS.get(name, 0.0))
        for name, aligner in ALIGNERS.items()
    ),
    # The first takes features as the others do; the second takes other shapes for images.
    Subject("LiTAligner", _tuned, only=_FEW, closeness=2e-2),
    Subject("CLIPAligner", _clip, fits=False, skips=("3-D array", "a single row as a 1-D array")),
    Subject("ZeroShotClassifier", _classified, fits=False),
    Subject("MultiLabelZeroShotClassifier", _labelled, fits=False),
    Subject("CrossModalRetriever", _found, fits=False),
    Subject("pair_quality", _quality, skips=(*_UNREADABLE, *_ALL_ALIKE)),
    Subject("find_near_duplicates", _duplicates, fits=False, skips=_UNREADABLE),
    Subject("select_relevant", _relevant, fits=False, skips=_UNREADABLE),
    # It computes in float64 where that is given.
    Subject(
        "retrieval_ranks",
        _ranks,
        fits=False,
        skips=("multiplied by 1e-300, in float64", "multiplied by 1e300, in float64"),
    ),
]
