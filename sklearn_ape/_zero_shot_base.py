"""What classifiers by names share: an aligner, labels as prompts, and logits of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ._aligner_choice import chosen_aligner, text_side
from ._callbacks import CallbackSupportMixin, FitContext
from ._label_embeddings import embed_labels
from ._labels import class_array, names_of
from ._shown import ShownMixin
from ._warnings import warn
from .aligners._bank import check_standardize, resolve_bank
from .aligners._logit_tiles import LogitTiles
from .prompts import resolve_templates

# Between these bounds float32 logits do not overflow, even if they are standardized by a tiny
# deviation, and do not become zero or subnormal, which would create ties.
_LEAST_SCALE, _MOST_SCALE = 1e-30, 1e30

_NOT_FITTED = (
    "This %(name)s is not fitted: call fit(images, captions), or pass labels and a fitted "
    "aligner, as in %(name)s(['cat', 'dog'], aligner=model)."
)


class ZeroShotBase(ShownMixin, CallbackSupportMixin, BaseEstimator):
    """Base of the classifiers: subclasses say what logits mean.

    Ready as soon as there are labels and a fitted aligner.
    """

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
        aligner = chosen_aligner(self.aligner)
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
        texts = text_side(aligner)
        names = self._names_now()
        assert names is not None
        bank = resolve_bank(self.standardize, texts, aligner.transform, whole=aligner)
        embeddings = embed_labels(texts, names, resolve_templates(self.templates))
        return LogitTiles(aligner, class_array(names), embeddings, scale, bank)

    def _scale_by(self, aligner: Any) -> float:
        scale = self.logit_scale
        return text_side(aligner).logit_scale_ if scale is None else float(scale)

    def _fitted_aligner(self) -> Any:
        return self.aligner_ if hasattr(self, "aligner_") else chosen_aligner(self.aligner)

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
            text_side(chosen_aligner(self.aligner))

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
