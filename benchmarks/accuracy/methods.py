"""The methods that are compared, and the fit and test of a method."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.special import comb, softmax
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback

from sklearn_ape import aligners
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.metrics import recall_at_k, retrieval_ranks
from sklearn_ape.recipes import make_aligner

from .data import ClassifierHead, EvaluationSet, TrainingPairs

# Limits of a fit in CPU seconds, which do not depend on other work on the machine; --effort
# multiplies them.
MAX_SECONDS = 180.0
MAX_SECONDS_OF_LIT = 480.0
# With 42 million parameters and small batches, SAIL improves only after two epochs.
MAX_SECONDS_OF = {"SAIL (recipe)": 600.0}
# Maximum number of epochs: 4,000 pairs take about 50 s on two idle cores.
EPOCHS = {"ape": 24, "fusemix": 5, "sail": 4, "sharelock": 5, "freeze_align": 24}
# LiT takes at least 65 s per epoch with 4,000 pairs; with fewer pairs it needs more epochs.
EPOCHS_OF_LIT, MAX_EPOCHS_OF_LIT = 3, 6
PATIENCE = 8
# Scores of images and captions: cosine, or standardised by a bank of training pairs.
COSINE, STANDARDISED = "cosine", "standardised"
_CONSE_NAMES = 10


class StopAfter(Callback):
    """Stop training after the last epoch that fits into a number of CPU seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stopped = False

    def __deepcopy__(self, memo: Any) -> Self:
        # Aligners copy their callbacks, but `stopped` is read from this object afterwards.
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start = time.process_time()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Stop the training in the way of skorch: by KeyboardInterrupt."""
        elapsed, n_epochs = time.process_time() - self.start, len(net.history)
        if n_epochs < net.max_epochs and elapsed * (1 + 1 / n_epochs) > self.seconds:
            self.stopped = True
            raise KeyboardInterrupt


class ConSE:
    """Embed an image as the mean name of its ten most probable ImageNet classes.

    M. Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", 2014. It
    needs no training pairs.
    """

    n_parameters_ = 0

    def __init__(self, head: ClassifierHead) -> None:
        self.head = head

    def fit(self, X: Any, y: Any) -> Self:
        """Return the object; there is nothing to fit."""
        return self

    def similarity(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the cosine similarity of the expected name of each image and each caption."""
        probability = softmax(X @ self.head.weights.T + self.head.bias, axis=1)
        threshold = np.partition(probability, -_CONSE_NAMES, axis=1)[:, -_CONSE_NAMES, None]
        return (
            _normalize(
                np.where(probability >= threshold, probability, 0)
                @ _normalize(self.head.class_texts)
            )
            @ _normalize(y).T
        )


class Method(NamedTuple):
    """A row of the tables.

    Attributes
    ----------
    make : callable
        ``make(n_pairs, seed, callbacks, effort)`` returns the unfitted aligner.
    note : str
        Note in the table.
    head : {"names", "everything"} or None
        Pairs of the classification head that are added to the training pairs.
    titles : bool
        Whether titles are additional captions.
    takes_captions : bool
        Whether the method takes captions instead of their features.
    expensive : bool
        Whether a fit takes minutes.
    """

    make: Callable[[int, int, list[Any], float], Any]
    note: str = ""
    head: str | None = None
    titles: bool = False
    takes_captions: bool = False
    expensive: bool = False


def _limit_epochs(name: str, effort: float) -> int:
    return max(1, round(EPOCHS[name] * effort))


def _use_recipe(name: str, **overrides: Any) -> Callable[..., Any]:
    def make(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
        return make_aligner(name, n_pairs=n, **overrides)

    return make


def _use_trained_recipe(name: str, **overrides: Any) -> Callable[..., Any]:
    def make(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
        return make_aligner(
            name,
            n_pairs=n,
            random_state=seed,
            callbacks=callbacks,
            refit=False,
            max_epochs=_limit_epochs(name, effort),
            n_iter_no_change=PATIENCE,
            **overrides,
        )

    return make


def _make_linear(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
    return make_aligner("linear", n_pairs=n, random_state=seed, callbacks=callbacks)


def _make_lit(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
    n_epochs = min(MAX_EPOCHS_OF_LIT, round(EPOCHS_OF_LIT * (4000 / n) ** 0.5))
    return aligners.LiTAligner(
        text_encoder=TransformersTextEncoder("all-MiniLM-L6-v2"),
        max_epochs=max(1, round(n_epochs * effort)),
        random_state=seed,
        callbacks=callbacks,
    )


def _use_ape(**parameters: Any) -> Callable[..., Any]:
    def make(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
        return aligners.APEAligner(random_state=seed, callbacks=callbacks, **parameters)

    return make


def _use_defaults(name: str) -> Callable[..., Any]:
    return lambda n, seed, callbacks, effort: getattr(aligners, name)()


_CAPPED = "epochs capped, no refit"
_KERNEL, _ASIF, _CCA = (
    _use_defaults("KernelAligner"),
    _use_defaults("ASIFAligner"),
    _use_defaults("CCAAligner"),
)
# The defaults of init=None when the published rows were measured.
PLAIN_PARAMETERS = {
    "init": None,
    "depth": 2,
    "dropout": 0.3,
    "learning_rate": 1e-3,
    "batch_size": 1024,
    "max_epochs": 100,
}
APE, PLAIN, LIT, KERNEL = "APE (default)", "APE (init=None)", "LiT", "kernel ridge"
METHODS: dict[str, Method] = {
    "chance": Method(lambda *_: None, "exact"),
    "ConSE": Method(lambda *_: None, "no pairs; ten most probable class names"),
    "linear (recipe)": Method(_make_linear),
    "CCA (recipe csa)": Method(_use_recipe("csa")),
    "CCA": Method(_CCA),
    "CCA + head pairs": Method(_CCA, "class names", head="names"),
    "ASIF (recipe)": Method(_use_recipe("asif")),
    "ASIF": Method(_ASIF),
    "ASIF + head pairs": Method(_ASIF, "class names", head="names"),
    "APE paper (recipe, depth 4)": Method(_use_trained_recipe("ape"), _CAPPED, expensive=True),
    "FuseMix (recipe)": Method(
        _use_trained_recipe("fusemix", batch_size=256), _CAPPED + "; batch 256", expensive=True
    ),
    "SAIL (recipe)": Method(
        _use_trained_recipe("sail", batch_size=64), _CAPPED + "; batch 64", expensive=True
    ),
    "ShareLock (recipe)": Method(
        _use_trained_recipe("sharelock", batch_size=256), _CAPPED + "; batch 256", expensive=True
    ),
    "Freeze-Align (recipe)": Method(
        _use_trained_recipe("freeze_align", batch_size=256),
        _CAPPED + "; batch 256",
        expensive=True,
    ),
    LIT: Method(_make_lit, "epochs capped", takes_captions=True),
    KERNEL: Method(_KERNEL),
    "kernel ridge + class names": Method(_KERNEL, "class names", head="names"),
    "kernel ridge + head pairs": Method(
        _KERNEL, "class names, synonyms, definitions", head="everything"
    ),
    "kernel ridge + head pairs + titles": Method(
        _KERNEL,
        "class names, synonyms, definitions; titles",
        head="everything",
        titles=True,
    ),
    PLAIN: Method(_use_ape(**PLAIN_PARAMETERS)),
    APE: Method(_use_ape()),
    "APE (default) + head pairs": Method(
        _use_ape(), "class names, synonyms, definitions", head="everything"
    ),
    "APE (default) + head pairs + titles": Method(
        _use_ape(), "class names, synonyms, definitions; titles", head="everything", titles=True
    ),
}


def fit_and_test(
    name: str,
    train: TrainingPairs,
    tests: list[EvaluationSet],
    head: ClassifierHead,
    seed: int,
    effort: float = 1.0,
    callbacks: tuple[Any, ...] = (),
    **parameters: Any,
) -> list[dict[str, Any]]:
    """Fit a method and return a dict of measurements for every test.

    Parameters
    ----------
    name : str
        One of `METHODS`.
    train, tests, head : TrainingPairs, list of EvaluationSet, ClassifierHead
        Training pairs, test sets and the head pairs.
    seed : int
        The aligner's `random_state`.
    effort : float, default=1.0
        Factor of the limits of epochs and seconds.
    callbacks : tuple of skorch callbacks, default=()
        Additional callbacks.
    **parameters : object
        Parameters of the aligner to override.
    """
    method = METHODS[name]
    if name == "chance":
        chance = [_make_row(name, test, COSINE, _compute_chance(test)) for test in tests]
        return [row | {"note": method.note} for row in chance]
    limit = MAX_SECONDS_OF_LIT if method.takes_captions else MAX_SECONDS_OF.get(name, MAX_SECONDS)
    cap = StopAfter(effort * limit)
    if name == "ConSE":
        aligner: Any = ConSE(head)
    else:
        aligner = method.make(len(train.captions), seed, [cap, *callbacks], effort)
        aligner.set_params(**parameters)
    X, y = _select_pairs(method, train)
    if hasattr(aligner, "early_stopping") and not method.takes_captions:
        # With texts, early stopping counts equal captions as one when it computes recall.
        texts = dict(zip(train.captions, train.text, strict=True))
        texts |= dict(zip(train.titles, train.title_features, strict=True))
        y = [*train.captions, *filter(None, train.titles)][: len(X)]
        aligner.set_params(text_encoder=FrozenEstimator(LookupTextEncoder(texts)))
    if method.head:
        aligner.set_params(head_pairs=getattr(head, method.head))
    with warnings.catch_warnings():
        # The note says whether training was stopped.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        aligner.fit(X, y)
        seconds = time.perf_counter() - start
    common = {
        "n_pairs": len(train.captions),
        "seconds": round(seconds, 2),
        "parameters": aligner.n_parameters_,
        "epochs": getattr(aligner, "n_epochs_", ""),
        "note": _describe_fit(method, aligner, cap),
    }
    rows = []
    for test in tests:
        captions: Any = test.captions if method.takes_captions else test.text
        similarity = aligner.similarity(test.image, captions)
        rows.append(_make_row(name, test, COSINE, compute_recall(similarity, test.pairs)) | common)
        if hasattr(aligner, "bank_"):
            similarity = aligner.similarity(test.image, captions, standardize=True)
            rows.append(
                _make_row(name, test, STANDARDISED, compute_recall(similarity, test.pairs))
                | common
            )
    return rows


class LookupTextEncoder(TransformerMixin, BaseEstimator):
    """Text encoder that looks up precomputed features.

    Parameters
    ----------
    features : dict of str to ndarray
        Features of every text.
    """

    def __init__(self, features: dict[str, np.ndarray]) -> None:
        self.features = features

    def fit(self, X: Any, y: Any = None) -> Self:
        """Return the encoder; there is nothing to fit."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, X: list[str]) -> np.ndarray:
        """Return the features of texts."""
        return np.stack([self.features[text] for text in X])


def _select_pairs(method: Method, train: TrainingPairs) -> tuple[np.ndarray, Any]:
    if method.takes_captions:
        return train.image, train.captions
    if not method.titles:
        return train.image, train.text
    has_title = np.array([bool(title) for title in train.titles])
    return (
        np.concatenate([train.image, train.image[has_title]]),
        np.concatenate([train.text, train.title_features[has_title]]),
    )


def _describe_fit(method: Method, aligner: Any, cap: StopAfter) -> str:
    parts = [method.note] if method.note else []
    if hasattr(aligner, "best_epoch_"):
        parts.append(f"best epoch {aligner.best_epoch_} of {aligner.n_epochs_}")
    if cap.stopped:
        parts.append(
            f"stopped after {cap.seconds:.0f} CPU seconds, max_epochs={aligner.max_epochs}"
        )
    return "; ".join(parts)


def _make_row(
    name: str, test: EvaluationSet, scores: str, recall: dict[str, float]
) -> dict[str, Any]:
    return {"method": name, "test": test.name, "scores": scores, **recall}


def compute_recall(similarity: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """Return recall@1 and @5 in both directions, in %."""
    recall = {}
    for direction, matrix, positives in (
        ("i2t", similarity, pairs),
        ("t2i", similarity.T, pairs[:, ::-1]),
    ):
        # With one-hot candidates the products are the similarities themselves.
        ranks = retrieval_ranks(matrix, np.eye(matrix.shape[1], dtype=matrix.dtype), positives)
        recall |= {f"{direction}@{k}": round(100 * recall_at_k(ranks, k), 3) for k in (1, 5)}
    return recall


def _compute_chance(test: EvaluationSet) -> dict[str, float]:
    """Return the expected recall of a random order."""
    recall = {}
    for direction, side, n in (("i2t", 0, len(test.captions)), ("t2i", 1, len(test.image))):
        positives = np.bincount(test.pairs[:, side])
        for k in (1, 5):
            misses = comb(n - positives, k) / comb(n, k)
            recall[f"{direction}@{k}"] = round(100 * float(np.mean(1 - misses)), 3)
    return recall


def _normalize(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
