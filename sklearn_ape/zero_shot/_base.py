"""Base class for zero-shot classifiers, and embeddings of labels."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import csc_array
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from ..aligners.fitted_images import embedding_digest
from ..aligners.similarity import LogitTiles, check_standardize, resolve_bank
from ..aligners.wrapper import AlignerWrapperMixin, resolve_aligner, unwrap, unwrap_aligner
from ..encoders.base import FrozenEncoder
from ..persistence.hub import Facts
from ..persistence.mixins import FittedState
from ..prompts import (
    class_array,
    list_of_labels,
    names_of,
    plain_label,
    prompts_of,
    resolve_templates,
)
from ..utils.concurrency import ForkSafeLock
from ..utils.sklearn_compat import CallbackSupportMixin, DocLinkMixin, FitContext
from ..utils.validation import ignores_underflow
from ..utils.warnings import warn

_PROMPTS_AT_ONCE = 16_384


_EMBEDDING_BYTES = 2**27


_MOST_BYTES = 2**28


# Classes that a model card names.
_MAX_SHOWN = 20


_DIGITS = 4


# Kept outside the classifiers: predicting leaves a classifier as it was, and clones, refits and
# copies in a worker share what was computed. Without the prompts' own features, which are many.
_kept: OrderedDict[bytes, np.ndarray] = OrderedDict()


_lock = ForkSafeLock()


_tokens: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


_next_token = itertools.count()


def embed_labels(
    unwrap_aligner: Any, names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Return the mean embedding of every class's prompts, scaled to length 1.

    Parameters
    ----------
    text_side : aligner
        Has `transform_text`, and a ``fingerprint_`` of its weights if it is one of ours.
    names : mapping of length n_classes
        The names of every class, in the order of the rows returned.
    templates : tuple of str
        What the names are put into.

    Returns
    -------
    embeddings : ndarray of shape (n_classes, n_components)
        Not to be written to.

    Raises
    ------
    ValueError
        When the text encoder gives up a prompt; the message names the class.
    """
    asked = [
        _identity(unwrap_aligner),
        templates,
        [[str(label), *some] for label, some in names.items()],
    ]
    key = hashlib.sha256(json.dumps(asked).encode()).digest()
    with _lock:
        embeddings = _kept.get(key)
        if embeddings is not None:
            _kept.move_to_end(key)
            return embeddings
    embeddings = _class_means(unwrap_aligner, names, templates)
    lost = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if lost.size:
        raise ValueError(
            f"The text encoder gives no numbers for the class {list(names)[lost[0]]!r}: describe "
            "it in other words."
        )
    _warn_of_twins(names, embeddings)
    with _lock:
        _kept[key] = embeddings
        while len(_kept) > 1 and sum(some.nbytes for some in _kept.values()) > _MOST_BYTES:
            _kept.popitem(last=False)
    return embeddings


def _identity(unwrap_aligner: Any) -> str:
    """Say what embeddings of texts depend on besides the texts."""
    digest = embedding_digest(unwrap_aligner)
    if isinstance(getattr(unwrap_aligner, "text_encoder_", None), FrozenEncoder):
        return digest
    # Other encoders may depend on more than their parameters, so each object has an identity.
    with _lock:
        token = _tokens.get(unwrap_aligner)
        if token is None:
            token = _tokens[unwrap_aligner] = next(_next_token)
    return f"{digest} {token}"


@ignores_underflow
def _class_means(
    unwrap_aligner: Any, names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Add up the embeddings of distinct prompts, some at a time, over the classes they are of."""
    numbers: dict[str, int] = {}
    class_of: list[int] = []
    number_of: list[int] = []
    for row, (label, some) in enumerate(names.items()):
        prompts = prompts_of(label, some, templates)
        number_of += [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
        class_of += [row] * len(prompts)
    belongs = csc_array(
        (np.ones(len(class_of), np.float32), (class_of, number_of)),
        shape=(len(names), len(numbers)),
    )
    sums: np.ndarray | None = None
    for start, embeddings in _embedded(unwrap_aligner, list(numbers)):
        some_of = belongs[:, start : start + len(embeddings)]
        rows = np.unique(some_of.indices)
        if sums is None:
            sums = np.zeros((len(names), embeddings.shape[1]), embeddings.dtype)
        sums[rows] += some_of[rows] @ embeddings
    assert sums is not None
    # All captions alike say nothing of any text: its embedding is zero.
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    sums /= np.where(length > 0, length, 1)
    return sums


def _embedded(unwrap_aligner: Any, prompts: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the embeddings of runs of prompts, each with the place of the first of them."""
    size = min(_PROMPTS_AT_ONCE, _EMBEDDING_BYTES // (4 * _width(unwrap_aligner)) + 1)
    if len(prompts) <= size:
        yield 0, np.asarray(unwrap_aligner.transform_text(prompts))
        return
    quiet, verbose = _for_many(unwrap_aligner)
    with tqdm(
        total=len(prompts), unit="prompt", desc="labels", disable=not verbose, delay=0.5
    ) as progress:
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            yield start, np.asarray(quiet.transform_text(some))
            progress.update(len(some))


def _width(unwrap_aligner: Any) -> int:
    return int(getattr(unwrap_aligner, "n_components_", 1))


def _for_many(unwrap_aligner: Any) -> tuple[Any, bool]:
    """Return the aligner for prompts by the thousand, and whether to show how far it is.

    Its encoder shows no bar a call, and does not drive all other features out of the memory that
    encoders share. A cache on disk is used: a run that was stopped goes on from there.
    """
    encoder = getattr(unwrap_aligner, "text_encoder_", None)
    if isinstance(encoder, FrozenEncoder):
        quiet = copy.copy(unwrap_aligner)
        quiet.text_encoder_ = _quiet(encoder)
        return quiet, bool(encoder.verbose)
    if isinstance(getattr(unwrap_aligner, "text_encoder", None), FrozenEncoder) and hasattr(
        unwrap_aligner, "cache"
    ):  # CLIP's is made of its own parameters
        return _quiet(unwrap_aligner), bool(unwrap_aligner.verbose)
    return unwrap_aligner, False


def _quiet(estimator: Any) -> Any:
    cache = None if estimator.cache == "memory" else estimator.cache
    return clone(estimator).set_params(cache=cache, verbose=0)


def _warn_of_twins(classes: Iterable[Any], embeddings: np.ndarray) -> None:
    """Tell of names that the text encoder cannot tell apart, such as characters unknown to it."""
    first: dict[bytes, Any] = {}
    for label, row in zip(classes, embeddings, strict=True):
        # Rounded: the last bits depend on what else was in the batch. Nor is -0 another number.
        rounded = row.round(_DIGITS) + 0.0
        digest = hashlib.blake2b(rounded.tobytes(), digest_size=16).digest()
        twin = first.setdefault(digest, label)
        if twin != label:
            warn(
                f"The classes {twin!r} and {label!r} have the same embedding: the text encoder "
                "cannot tell their names apart. Describe them in other words.",
            )
            return


# Between these bounds float32 logits do not overflow, even if they are standardized by a tiny
# deviation, and do not become zero or subnormal, which would create ties.
_LEAST_SCALE, _MOST_SCALE = 1e-30, 1e30


_NOT_FITTED = (
    "This %(name)s is not fitted: call fit(images, captions), or pass labels and a fitted "
    "aligner, as in %(name)s(['cat', 'dog'], aligner=model)."
)


class ZeroShotBase(AlignerWrapperMixin, DocLinkMixin, CallbackSupportMixin, BaseEstimator):
    """Base of the classifiers: subclasses say what logits mean.

    Ready as soon as there are labels and a fitted aligner.
    """

    # The first sentence of the model card, up to "names".
    _says = "which of the classes an image shows, by the cosine of the image with the classes'"

    labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None
    aligner: Any
    templates: str | Sequence[str]
    logit_scale: float | None
    standardize: Any

    @property
    def n_features_in_(self) -> int:
        """Width of the features that the aligner was fitted on."""
        return self._of_aligner("n_features_in_")

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features that the aligner was fitted on."""
        return self._of_aligner("feature_names_in_")

    def _of_aligner(self, name: str) -> Any:
        if self.aligner is None or isinstance(self.aligner, str):  # these take images
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(getattr(self, "aligner_", self.aligner), name)

    def _is_kept(self) -> bool:
        """Say whether `fit` keeps the aligner, because there is one to predict with."""
        if self.aligner is None or isinstance(self.aligner, FrozenEstimator | str):
            return True
        return _is_fitted(self.aligner)

    def _kept_aligner(self, captions: Any = None) -> Any:
        """Return the aligner that `fit` keeps. Warn if there are captions, which are not used."""
        aligner = resolve_aligner(self.aligner)
        check_is_fitted(aligner)
        if captions is not None:
            reason = "None, the starter model" if self.aligner is None else "fitted already"
            warn(
                f"captions are not used: aligner is {reason}, and fit keeps it. "
                "To train on captions, pass an aligner that is not fitted, such as "
                "sklearn.base.clone(aligner).",
            )
        return aligner

    def _fit_aligner(self, X: Any, captions: Any, progress: FitContext) -> Any:
        """Return a fitted clone of the aligner."""
        aligner = clone(self.aligner)
        with progress.fitting(aligner, "fit-aligner"):
            return aligner.fit(X, captions)

    def _ready_aligner(self, as_at_fit: bool = True) -> Any:
        """Return the aligner to predict with; parameters are looked at before."""
        self._check_parameters()
        check_is_fitted(self, msg=_NOT_FITTED)
        if as_at_fit:
            self._check_current()
        return self._fitted_aligner()

    def _logits_by(self, aligner: Any, scale: float) -> LogitTiles:
        """Return what gives the logits of images, with the labels embedded."""
        texts = unwrap_aligner(aligner)
        names = self._names_now()
        assert names is not None
        bank = resolve_bank(self.standardize, texts, aligner.transform, whole=aligner)
        embeddings = embed_labels(texts, names, resolve_templates(self.templates))
        return LogitTiles(aligner, class_array(names), embeddings, scale, bank)

    def _scale_by(self, aligner: Any) -> float:
        scale = self.logit_scale
        return unwrap_aligner(aligner).logit_scale_ if scale is None else float(scale)

    def _fitted_aligner(self) -> Any:
        return self.aligner_ if hasattr(self, "aligner_") else resolve_aligner(self.aligner)

    def _names_now(self) -> dict[Any, list[str]] | None:
        """Return the names of every class, in the order of the columns."""
        if self.labels is not None:
            return names_of(self.labels)
        return getattr(self, "_names", None)

    def _check_parameters(self) -> None:
        resolve_templates(self.templates)
        check_standardize(self.standardize)
        _check_scale(self.logit_scale)
        if self.aligner is not None:
            unwrap_aligner(resolve_aligner(self.aligner))

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        if "aligner_" in state and self._uses_starter():
            state = {**state, "aligner_": None}  # 54 MB that every installation has
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "aligner_" in state and state["aligner_"] is None:
            state = {**state, "aligner_": resolve_aligner(None)}
        super().__setstate__(state)

    def _uses_parameter(self) -> bool:
        is_starter = self.aligner is None and self.aligner_ is resolve_aligner(None)
        return is_starter or super()._uses_parameter()

    def _recorded_params(self) -> dict[str, Any]:
        params = super()._recorded_params()
        params["labels"] = _labels_to_save(params["labels"])
        return params

    def _get_state(self) -> dict[str, Any]:
        return {**super()._get_state(), "names": getattr(self, "_names", None)}

    def _set_state(self, state: FittedState) -> None:
        super()._set_state(state)
        names = state.optional("names")
        if names is not None:
            if not isinstance(names, dict):
                raise ValueError("names must be an object with the names of each class.")
            self._names = names_of(names)

    def _check_restored(self) -> None:
        self._check_parameters()
        self._names_now()

    def _card_facts(self) -> Facts:
        facts = self._aligner_facts()
        names = [str(label) for label in self._names_now() or ()]
        shown = ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")
        facts.what = f"Says {self._says} names. {facts.what}"
        facts.facts = {"classes": f"{len(names):,}: {shown}"} | facts.facts
        facts.limits.append(self._limit())
        preprocessing, aligner = unwrap(resolve_aligner(self.aligner))
        takes_images = preprocessing is not None or getattr(aligner, "image_encoder", None)
        images = "['image.jpg']" if takes_images else "image_features"
        facts.usage = f"print(model.predict({images}))"
        return facts

    def _limit(self) -> str:
        if getattr(self, "threshold", None) is None:
            return "It always answers with one of its classes."
        return "It always answers with one of its classes or, below the threshold, unknown."

    def __sklearn_is_fitted__(self) -> bool:
        if hasattr(self, "aligner_"):
            return True
        if self.labels is None:
            return False
        if self.aligner is None or isinstance(self.aligner, str):
            return True
        return _is_fitted(self.aligner)


def _is_fitted(aligner: Any) -> bool:
    try:
        check_is_fitted(aligner)
    except (NotFittedError, TypeError):  # TypeError: not an estimator; predicting reports it
        return False
    return True


def _check_scale(scale: Any) -> None:
    is_number = isinstance(scale, Real) and not isinstance(scale, bool | np.bool_)
    if scale is None or (is_number and _LEAST_SCALE <= scale <= _MOST_SCALE):
        return
    raise ValueError(
        f"logit_scale must be None or a number from {_LEAST_SCALE:g} to {_MOST_SCALE:g}, not "
        f"{scale!r}. Beyond these bounds logits overflow or vanish in float32."
    )


def _labels_to_save(labels: Any) -> Any:
    """Return labels in a form that a file can hold: members of an Enum become their values."""
    if labels is None or isinstance(labels, str) or not isinstance(labels, Iterable):
        return labels
    if isinstance(labels, Mapping):
        return {_label_to_save(label): _label_to_save(value) for label, value in labels.items()}
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biufU":
        return labels
    listed = [_label_to_save(label) for label in list_of_labels(labels)]
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "O":
        return np.array(listed, dtype=object)
    return tuple(listed) if isinstance(labels, tuple) else listed


def _label_to_save(label: Any) -> Any:
    return plain_label(label) if isinstance(label, Enum) else label
