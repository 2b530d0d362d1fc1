"""What classifiers by names share: an aligner, labels as prompts, and logits of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ._aligner_choice import chosen_aligner, default_aligner, text_side
from ._callbacks import CallbackSupportMixin, FitContext
from ._label_embeddings import embed_labels
from ._labels import names_of
from ._shown import ShownMixin
from .aligners._bank import check_standardize, resolve_bank
from .aligners._logit_tiles import LogitTiles
from .prompts import resolve_templates

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
        return getattr(self, "aligner_", self.aligner).n_features_in_

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features that the aligner was fitted on."""
        return getattr(self, "aligner_", self.aligner).feature_names_in_

    def _is_kept(self) -> bool:
        """Say whether `fit` leaves the aligner as it is."""
        return isinstance(self.aligner, FrozenEstimator | str)

    def _kept_aligner(self) -> Any:
        aligner = chosen_aligner(self.aligner)
        check_is_fitted(aligner)
        return aligner

    def _new_aligner(self) -> Any:
        return default_aligner() if self.aligner is None else clone(self.aligner)

    def _fit_aligner(self, X: Any, captions: Any, progress: FitContext) -> Any:
        """Return a fitted clone of the aligner."""
        aligner = self._new_aligner()
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
        """Return what gives the logits of pictures, with the labels embedded."""
        texts = text_side(aligner)
        names = self._names_now()
        assert names is not None
        bank = resolve_bank(self.standardize, texts, aligner.transform, whole=aligner)
        embeddings = embed_labels(texts, names, resolve_templates(self.templates))
        return LogitTiles(aligner, np.array(list(names)), embeddings, scale, bank)

    def _scale_by(self, aligner: Any) -> float:
        return text_side(aligner).logit_scale_ if self.logit_scale is None else self.logit_scale

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
        if self.logit_scale is not None and not self.logit_scale > 0:
            raise ValueError(f"logit_scale must be None or above 0, not {self.logit_scale!r}.")
        if self.aligner is not None:
            text_side(chosen_aligner(self.aligner))

    def __sklearn_is_fitted__(self) -> bool:
        if hasattr(self, "aligner_"):
            return True
        if self.labels is None:
            return False
        if self.aligner is None or isinstance(self.aligner, str):
            return True
        try:
            check_is_fitted(self.aligner)
        except (NotFittedError, TypeError):  # or no estimator at all, as use will tell
            return False
        return True
