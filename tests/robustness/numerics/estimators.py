"""Entry points that take features, as functions of training and test features."""

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
N_TEST = 20
WIDTH = 12  # size of the embeddings of the tiny CLIP model

_rng = np.random.default_rng(0)
_concepts = _rng.standard_normal((N_TRAIN + N_TEST, 6))
IMAGE = (_concepts @ _rng.standard_normal((6, WIDTH))).astype(np.float32)
TEXT = (_concepts @ _rng.standard_normal((6, WIDTH))).astype(np.float32)
NAMES = [f"concept {row}" for row in range(N_TRAIN + N_TEST)]

_ARTICLES, _NOUNS = ("a", "the"), ("cat", "dog", "mat")
SENTENCES = [
    " ".join(words)
    for words in itertools.product(_ARTICLES, _NOUNS, ("runs", "on"), _ARTICLES, _NOUNS)
][:N_TRAIN]
SENTENCES += [f"{text} runs" for text in SENTENCES[: N_TRAIN - len(SENTENCES)]]


class Lookup(TransformerMixin, BaseEstimator):
    """Text encoder that looks up the features of "concept 0", "concept 1" and so on."""

    def fit(self, X: Any, y: Any = None) -> Lookup:
        return self

    def transform(self, X: Any) -> np.ndarray:
        return TEXT[[int(text.split()[-1]) for text in X]]

    def __sklearn_is_fitted__(self) -> bool:
        return True


class EntryPoint(NamedTuple):
    """Entry point of the package that takes features.

    `compute` takes training and test features of both sides, and returns the results as an array.
    `fits` is True if it is fitted on features, and thus checks for outliers. `skips` are names of
    forms that it treats differently, and `only`, if given, are all forms that it is tested with.
    `closeness` is a minimum of the tolerance of results for rounded features.
    numbers given were rounded.
    """

    name: str
    compute: Callable[..., np.ndarray]
    fits: bool = True
    skips: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    closeness: float = 0.0

    def takes(self, form: str) -> bool:
        """Return whether it is tested with a form."""
        return form not in self.skips and (self.only is None or form in self.only)


def _align(aligner: Any, image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    fitted = clone(aligner).fit(image, text)
    embeddings = fitted.transform(test_image), fitted.transform_text(test_text)
    for rows in embeddings:
        norms = np.linalg.norm(rows, axis=1)
        assert ((np.abs(norms - 1) < 1e-4) | (norms == 0)).all(), "not of unit norm"
    return fitted.similarity(test_image, test_text)


def _tune_text_tower(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    encoder = TransformersTextEncoder(_tiny_text_folder(), cache=None, engine="torch")
    aligner = LiTAligner(text_encoder=encoder, max_epochs=1, batch_size=60, random_state=0)
    return aligner.fit(image, SENTENCES).similarity(test_image, SENTENCES[:8])


def _embed_with_clip(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    return CLIPAligner(_tiny_clip_folder(), cache=None).similarity(test_image, test_text)


@lru_cache(maxsize=1)
def fit_by_name() -> KernelAligner:
    """Return an aligner that is fitted on the names of the concepts."""
    aligner = KernelAligner(text_encoder=Lookup())
    return aligner.fit(IMAGE[:N_TRAIN], NAMES[:N_TRAIN])


def _classify(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    classifier = ZeroShotClassifier(NAMES[:9], aligner=fit_by_name(), templates="none")
    return classifier.predict_proba(test_image)


def _classify_multilabel(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    classifier = MultiLabelZeroShotClassifier(NAMES[:9], aligner=fit_by_name(), templates="none")
    return classifier.decision_function(test_image)


def _search(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    retriever = CrossModalRetriever(fit_by_name()).fit(test_image)
    by_text = retriever.search(NAMES[:5], k=4)
    by_image = retriever.search(test_image, k=2, modality="image")
    return np.hstack([by_text.scores.ravel(), by_image.scores.ravel()])


def _judge_pairs(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    return pair_quality(image, text, random_state=0).score


def _find_duplicates(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    return find_near_duplicates(image, threshold=0.8)


def _select_relevant(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    selection = select_relevant(
        text, NAMES[:4], label_features=TEXT[:4], n_pairs=9, random_state=0
    )
    order = np.argsort(selection.indices)
    return np.column_stack([selection.indices, selection.similarity])[order]


def _rank(image: Any, text: Any, test_image: Any, test_text: Any) -> np.ndarray:
    rows = np.arange(N_TEST)
    return retrieval_ranks(test_image, test_text, np.column_stack([rows, rows]))


# Removed when the process ends, because encoders load their files late.
_MODELS = tempfile.TemporaryDirectory(prefix="numerics-")


@lru_cache(maxsize=1)
def _tiny_text_folder() -> str:
    return text_folder(Path(_MODELS.name))


@lru_cache(maxsize=1)
def _tiny_clip_folder() -> str:
    folder = Path(_MODELS.name, "clip")
    folder.mkdir()
    test_open_clip.save_model(folder)
    return str(folder)


_HEADS = {"width": 16, "random_state": 0, "early_stopping": False}
_FEW_FORMS = (
    "float64",
    "float16",
    "polars DataFrame",
    "sparse CSR array",
    "multiplied by 2**-66",
    "multiplied by 2**66",
)
_FEW_FORMS += ("one NaN", "one infinite value", "one value of 1e25", "float64 values around 1e8")
# With near-duplicate images, no folds can be formed to judge the pairs.
_NEAR_DUPLICATES = (
    *("a constant column of 1e6", "a constant column of 1e30"),
    "one feature a million times as large as the others",
)
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
# The results of this aligner are more sensitive to rounding of features.
_CLOSENESS = {"APEAligner(init=None, head='residual', side='both', loss='sigmoid')": 2e-2}
ENTRY_POINTS = [
    *(
        EntryPoint(name, partial(_align, aligner), closeness=_CLOSENESS.get(name, 0.0))
        for name, aligner in ALIGNERS.items()
    ),
    # CLIPAligner interprets arrays of other shapes as images.
    EntryPoint("LiTAligner", _tune_text_tower, only=_FEW_FORMS, closeness=2e-2),
    EntryPoint(
        "CLIPAligner",
        _embed_with_clip,
        fits=False,
        skips=("3-D array", "a single row as a 1-D array"),
    ),
    EntryPoint("ZeroShotClassifier", _classify, fits=False),
    EntryPoint("MultiLabelZeroShotClassifier", _classify_multilabel, fits=False),
    EntryPoint("CrossModalRetriever", _search, fits=False),
    EntryPoint("pair_quality", _judge_pairs, skips=(*_UNREADABLE, *_NEAR_DUPLICATES)),
    EntryPoint("find_near_duplicates", _find_duplicates, fits=False, skips=_UNREADABLE),
    EntryPoint("select_relevant", _select_relevant, fits=False, skips=_UNREADABLE),
    # retrieval_ranks computes in float64 for features in float64.
    EntryPoint(
        "retrieval_ranks",
        _rank,
        fits=False,
        skips=("multiplied by 1e-300, in float64", "multiplied by 1e300, in float64"),
    ),
]
