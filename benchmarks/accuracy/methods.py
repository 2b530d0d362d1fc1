"""The methods that are compared, and one fit of one of them."""

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

from .data import Head, Train, Trial

# The one place that bounds what a fit may cost, in seconds of one processor, which other work on
# the machine does not take away; --effort multiplies all of it.
SECONDS_OF_A_FIT = 180.0
SECONDS_OF_LIT = 480.0
# SAIL's heads of 42 million parameters and small batches begin to learn after two epochs.
SECONDS_OF = {"SAIL (recipe)": 600.0}
# Epochs at most, so that 4,000 pairs take about 50 s on two cores that do nothing else.
EPOCHS = {"ape": 24, "fusemix": 5, "sail": 4, "sharelock": 5, "freeze_align": 24}
# LiT takes 65 s or more an epoch with 4,000 pairs; fewer pairs need more epochs, to learn at all.
EPOCHS_OF_LIT, MOST_EPOCHS_OF_LIT = 3, 6
PATIENCE = 8
# How images and captions are compared: by cosine, or relative to a bank of training pairs.
COSINE, STANDARDISED = "cosine", "standardised"
_CONSE_NAMES = 10


class StopAfter(Callback):
    """Ends a training at the end of the last epoch that fits into so many processor seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stopped = False

    def __deepcopy__(self, memo: Any) -> Self:
        # Aligners copy their callbacks; this one is asked afterwards whether it stopped them.
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start = time.process_time()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Stop as skorch's callbacks do."""
        elapsed, done = time.process_time() - self.start, len(net.history)
        if done < net.max_epochs and elapsed * (1 + 1 / done) > self.seconds:
            self.stopped = True
            raise KeyboardInterrupt


class ConSE:
    """The mean of the names of the ten likeliest ImageNet classes is what is on an image.

    M. Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", 2014. It
    needs no pairs.
    """

    n_parameters_ = 0

    def __init__(self, head: Head) -> None:
        self.head = head

    def fit(self, X: Any, y: Any) -> Self:
        """Do nothing."""
        return self

    def similarity(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Cosine of the expected name of each image with each caption."""
        share = softmax(X @ self.head.weights.T + self.head.bias, axis=1)
        least = np.partition(share, -_CONSE_NAMES, axis=1)[:, -_CONSE_NAMES, None]
        return (
            _unit(np.where(share >= least, share, 0) @ _unit(self.head.class_texts)) @ _unit(y).T
        )


class Method(NamedTuple):
    """A row of the tables.

    `make(n_pairs, seed, callbacks, effort)` returns the unfitted aligner. `head` says which pairs
    of the classification head it has besides ("names" or "everything"), `titles` that it learns
    the titles as further captions, `words` that it takes captions and not their features.
    """

    make: Callable[[int, int, list[Any], float], Any]
    note: str = ""
    head: str | None = None
    titles: bool = False
    words: bool = False
    heavy: bool = False


def _epochs(name: str, effort: float) -> int:
    return max(1, round(EPOCHS[name] * effort))


def _recipe(name: str, note: str = "", **overrides: Any) -> Callable[..., Any]:
    def make(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
        return make_aligner(name, n_pairs=n, **overrides)

    return make


def _trained_recipe(name: str, **overrides: Any) -> Callable[..., Any]:
    def make(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
        return make_aligner(
            name,
            n_pairs=n,
            random_state=seed,
            callbacks=callbacks,
            refit=False,
            max_epochs=_epochs(name, effort),
            n_iter_no_change=PATIENCE,
            **overrides,
        )

    return make


def _linear(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
    return make_aligner("linear", n_pairs=n, random_state=seed, callbacks=callbacks)


def _lit(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
    n_epochs = min(MOST_EPOCHS_OF_LIT, round(EPOCHS_OF_LIT * (4000 / n) ** 0.5))
    return aligners.LiTAligner(
        text_encoder=TransformersTextEncoder("all-MiniLM-L6-v2"),
        max_epochs=max(1, round(n_epochs * effort)),
        random_state=seed,
        callbacks=callbacks,
    )


def _ape(**parameters: Any) -> Callable[..., Any]:
    def make(n: int, seed: int, callbacks: list[Any], effort: float) -> Any:
        return aligners.APEAligner(random_state=seed, callbacks=callbacks, **parameters)

    return make


def _plain(name: str) -> Callable[..., Any]:
    return lambda n, seed, callbacks, effort: getattr(aligners, name)()


_CAPPED = "epochs capped, no refit"
_KERNEL, _ASIF, _CCA = _plain("KernelAligner"), _plain("ASIFAligner"), _plain("CCAAligner")
APE, PLAIN, LIT, KERNEL = "APE (default)", "APE (init=None)", "LiT", "kernel ridge"
METHODS: dict[str, Method] = {
    "chance": Method(lambda *_: None, "exact"),
    "ConSE": Method(lambda *_: None, "no pairs; ten likeliest class names"),
    "linear (recipe)": Method(_linear),
    "CCA (recipe csa)": Method(_recipe("csa")),
    "CCA": Method(_CCA),
    "CCA + head pairs": Method(_CCA, "class names", head="names"),
    "ASIF (recipe)": Method(_recipe("asif")),
    "ASIF": Method(_ASIF),
    "ASIF + head pairs": Method(_ASIF, "class names", head="names"),
    "APE paper (recipe, depth 4)": Method(_trained_recipe("ape"), _CAPPED, heavy=True),
    "FuseMix (recipe)": Method(
        _trained_recipe("fusemix", batch_size=256), _CAPPED + "; batch 256", heavy=True
    ),
    "SAIL (recipe)": Method(
        _trained_recipe("sail", batch_size=64), _CAPPED + "; batch 64", heavy=True
    ),
    "ShareLock (recipe)": Method(
        _trained_recipe("sharelock", batch_size=256), _CAPPED + "; batch 256", heavy=True
    ),
    "Freeze-Align (recipe)": Method(
        _trained_recipe("freeze_align", batch_size=256), _CAPPED + "; batch 256", heavy=True
    ),
    LIT: Method(_lit, "epochs capped", words=True),
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
    PLAIN: Method(_ape(init=None)),
    APE: Method(_ape()),
    "APE (default) + head pairs": Method(
        _ape(), "class names, synonyms, definitions", head="everything"
    ),
    "APE (default) + head pairs + titles": Method(
        _ape(), "class names, synonyms, definitions; titles", head="everything", titles=True
    ),
}


def fit_and_test(
    name: str,
    train: Train,
    tests: list[Trial],
    head: Head,
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
    train, tests, head : Train, list of Trial, Head
        What to fit on and to test with.
    seed : int
        The aligner's `random_state`.
    effort : float, default=1.0
        Factor of epochs and seconds.
    callbacks : tuple of skorch callbacks, default=()
        Told of epochs.
    **parameters : object
        Parameters of the aligner to set otherwise.
    """
    method = METHODS[name]
    if name == "chance":
        chance = [_row(name, test, COSINE, _by_chance(test)) for test in tests]
        return [row | {"note": method.note} for row in chance]
    most = SECONDS_OF_LIT if method.words else SECONDS_OF.get(name, SECONDS_OF_A_FIT)
    cap = StopAfter(effort * most)
    if name == "ConSE":
        aligner: Any = ConSE(head)
    else:
        aligner = method.make(len(train.captions), seed, [cap, *callbacks], effort)
        aligner.set_params(**parameters)
    X, y = _pairs(method, train)
    if hasattr(aligner, "early_stopping") and not method.words:
        # Its recall on held-out pairs is to count captions by their text, not every row.
        texts = dict(zip(train.captions, train.text, strict=True))
        texts |= dict(zip(train.titles, train.title_features, strict=True))
        y = [*train.captions, *filter(None, train.titles)][: len(X)]
        aligner.set_params(text_encoder=FrozenEstimator(KnownTexts(texts)))
    if method.head:
        aligner.set_params(head_pairs=getattr(head, method.head))
    with warnings.catch_warnings():
        # That a training was stopped stands in the note.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        aligner.fit(X, y)
        seconds = time.perf_counter() - start
    common = {
        "n_pairs": len(train.captions),
        "seconds": round(seconds, 2),
        "parameters": aligner.n_parameters_,
        "epochs": getattr(aligner, "n_epochs_", ""),
        "note": _note(method, aligner, cap),
    }
    rows = []
    for test in tests:
        captions: Any = test.captions if method.words else test.text
        similarity = aligner.similarity(test.image, captions)
        rows.append(_row(name, test, COSINE, recalls(similarity, test.pairs)) | common)
        if hasattr(aligner, "bank_"):
            similarity = aligner.similarity(test.image, captions, standardize=True)
            rows.append(_row(name, test, STANDARDISED, recalls(similarity, test.pairs)) | common)
    return rows


class KnownTexts(TransformerMixin, BaseEstimator):
    """Text encoder that looks up features that were computed before.

    Parameters
    ----------
    features : dict of str to ndarray
        Features of every text.
    """

    def __init__(self, features: dict[str, np.ndarray]) -> None:
        self.features = features

    def fit(self, X: Any, y: Any = None) -> Self:
        """Return the encoder: there is nothing to learn."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, X: list[str]) -> np.ndarray:
        """Return the features of texts."""
        return np.stack([self.features[text] for text in X])


def _pairs(method: Method, train: Train) -> tuple[np.ndarray, Any]:
    if method.words:
        return train.image, train.captions
    if not method.titles:
        return train.image, train.text
    has = np.array([bool(title) for title in train.titles])
    return (
        np.concatenate([train.image, train.image[has]]),
        np.concatenate([train.text, train.title_features[has]]),
    )


def _note(method: Method, aligner: Any, cap: StopAfter) -> str:
    parts = [method.note] if method.note else []
    if hasattr(aligner, "best_epoch_"):
        of = f"of {aligner.n_epochs_}"
        parts.append(f"best epoch {aligner.best_epoch_} {of}")
    if cap.stopped:
        parts.append(
            f"stopped at {cap.seconds:.0f} s of a core, {aligner.max_epochs} epochs wanted"
        )
    return "; ".join(parts)


def _row(name: str, test: Trial, scores: str, found: dict[str, float]) -> dict[str, Any]:
    return {"method": name, "test": test.name, "scores": scores, **found}


def recalls(similarity: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """Return recall@1 and @5 in both directions, in %."""
    found = {}
    for way, matrix, positives in (
        ("i2t", similarity, pairs),
        ("t2i", similarity.T, pairs[:, ::-1]),
    ):
        # Rows of similarities times columns of the identity are the similarities.
        ranks = retrieval_ranks(matrix, np.eye(matrix.shape[1], dtype=matrix.dtype), positives)
        found |= {f"{way}@{k}": round(100 * recall_at_k(ranks, k), 3) for k in (1, 5)}
    return found


def _by_chance(test: Trial) -> dict[str, float]:
    """Return the recall that a random order is expected to have."""
    found = {}
    for way, side, n in (("i2t", 0, len(test.captions)), ("t2i", 1, len(test.image))):
        positives = np.bincount(test.pairs[:, side])
        for k in (1, 5):
            misses = comb(n - positives, k) / comb(n, k)
            found[f"{way}@{k}"] = round(100 * float(np.mean(1 - misses)), 3)
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
