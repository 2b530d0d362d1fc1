"""Unwrapping of Pipelines and searches, and the base class of estimators that wrap an aligner."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Tags, get_tags

from ..persistence.hub import Facts
from ..persistence.mixins import FittedState, PretrainedMixin
from ..utils.messages import warn
from ..utils.sklearn_compat import DocLinkMixin
from .fitted_images import digest_embedding

_OPEN_CLIP = "open_clip:"

# Saved in place of `aligner_` if the ``aligner`` parameter selects the same aligner.
_SAME_AS_PARAMETER = "as the parameter says"


def resolve_aligner(aligner: Any) -> Any:
    """Return the aligner that an ``aligner`` parameter selects.

    None selects the starter model, and ``"open_clip:"`` followed by the name of an OpenCLIP model
    a `CLIPAligner`. The same name always gives the same object, so that caches are reused. An
    estimator is returned unchanged.
    """
    if aligner is None:
        from .starter import load_starter  # which imports ape, which imports this module

        return load_starter()
    return _make_named_aligner(aligner) if isinstance(aligner, str) else aligner


@lru_cache(maxsize=8)
def _make_named_aligner(name: str) -> Any:
    from .clip import CLIPAligner

    if not name.startswith(_OPEN_CLIP) or name == _OPEN_CLIP:
        raise ValueError(
            f"aligner={name!r} is not the name of an aligner. Pass a name such as "
            "'open_clip:ViT-B-32/openai' ('open_clip:' and an architecture/weights, a hub name or "
            "a folder), or an estimator: a fitted APEAligner, a Pipeline that ends in one, or "
            f"aligner=load_pretrained({name!r}) if this is a saved aligner. For the starter "
            "model, leave aligner out, or pass load_starter()."
        )
    aligner = CLIPAligner(name.removeprefix(_OPEN_CLIP))
    aligner._check_parameters()
    return aligner


def unwrap(estimator: Any, parameter: str | None = "aligner") -> tuple[Any, Any]:
    """Return the preprocessing and the aligner within an estimator, the value of a parameter.

    The estimator is an aligner, or a Pipeline, a search or a FrozenEstimator around one, in any
    nesting. The preprocessing is the step before the aligner, a Pipeline of several steps, or
    None. Without an aligner in it, TypeError is raised. With ``parameter=None``, the innermost
    estimator, such as a classifier, is returned instead.
    """
    steps: list[Any] = []
    inner = estimator
    # FrozenEstimator has the methods of its estimator, so it is unwrapped before they are tested.
    while isinstance(inner, FrozenEstimator) or not hasattr(inner, "transform_text"):
        if isinstance(inner, Pipeline):
            steps += [step for _, step in inner.steps[:-1] if step not in (None, "passthrough")]
            inner = inner.steps[-1][1]
        elif isinstance(inner, FrozenEstimator):
            inner = inner.estimator
        elif hasattr(inner, "best_estimator_"):
            inner = inner.best_estimator_
        elif parameter is None:
            break
        elif _is_search(inner) and getattr(inner, "refit", True):  # before its fit
            inner = inner.estimator
        else:
            raise TypeError(f"{parameter} {_describe_missing_aligner(estimator, inner)}")
    if len(steps) > 1:
        return Pipeline([(f"step{number}", step) for number, step in enumerate(steps)]), inner
    return (steps[0] if steps else None), inner


def _is_search(estimator: Any) -> bool:
    return hasattr(estimator, "estimator") and hasattr(estimator, "fit")


def _describe_missing_aligner(estimator: Any, inner: Any) -> str:
    """Return why there is no aligner in an estimator, whose innermost estimator is `inner`."""
    if _is_search(inner):
        return (
            f"is a {type(inner).__name__} with refit=False, which has no fitted aligner. Pass one "
            "with refit=True."
        )
    names = [name for name in ("aligner_", "aligner") if hasattr(inner, name)]
    owner = "its" if inner is estimator else f"the {type(inner).__name__}'s"
    hint = f" Pass {owner} {names[0]}." if names else ""
    return (
        "must be an aligner such as APEAligner, or a Pipeline that ends in one, not "
        f"{type(estimator).__name__}.{hint}"
    )


def unwrap_aligner(estimator: Any, parameter: str = "aligner") -> Any:
    """Return the aligner within an estimator; see `unwrap`."""
    return unwrap(estimator, parameter)[1]


def embed_with_features(estimator: Any, X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of images, and the image features that they are computed from.

    The features are the embeddings themselves if the aligner does not show its features.
    """
    preprocessing, aligner = unwrap(estimator)
    if not hasattr(aligner, "_get_image_features"):
        embeddings = np.asarray(estimator.transform(X), dtype=np.float32)
        return embeddings, embeddings
    if preprocessing is not None:
        X = preprocessing.transform(X)
    features = aligner._get_image_features(X, reset=False)
    embeddings = aligner._embed_valid("image", features)
    # The slice reads features that stay in a file.
    return embeddings, np.asarray(features[:], dtype=np.float32)


def get_wrapped_aligner(estimator: Any) -> Any:
    """Return the aligner of a classifier or retriever; return other estimators unchanged.

    The aligner may be a Pipeline or a search, as the ``aligner`` parameter allows. Steps before
    the classifier or retriever in a Pipeline are put before its aligner.
    """
    preprocessing, inner = unwrap(estimator, None)
    if not isinstance(inner, AlignerWrapperMixin):
        return estimator
    aligner = inner._get_aligner_in_use()
    return aligner if preprocessing is None else make_pipeline(preprocessing, aligner)


class AlignerWrapperMixin(PretrainedMixin, DocLinkMixin):
    """Base class of estimators whose ``aligner`` parameter selects an aligner.

    Subclasses extend `_get_state` and `_set_state` by the rest of their fitted state, and list in
    `_fit_only` the parameters that take effect only in the next fit.
    """

    aligner: Any
    _at_fit: dict[str, Any]
    _fit_only: ClassVar[tuple[str, ...]] = ("aligner",)

    @property
    def n_features_in_(self) -> int:
        """Number of features that the aligner was fitted on."""
        return self._get_aligner_attribute("n_features_in_")

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features that the aligner was fitted on."""
        return self._get_aligner_attribute("feature_names_in_")

    def _get_aligner_attribute(self, name: str) -> Any:
        if self.aligner is None or isinstance(self.aligner, str):  # these models take images
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(getattr(self, "aligner_", self.aligner), name)

    def _note_fit(self) -> None:
        """Record the digest of the aligner and the parameters, for `_check_current`."""
        self._at_fit = {
            "embeddings": digest_embedding(self._get_aligner_in_use()),
            "parameters": {name: getattr(self, name) for name in self._fit_only},
            "clip_weights": self._get_clip_weights(),
        }

    def _check_current(self) -> None:
        """Raise ValueError if the aligner or a parameter of `fit` was changed after `fit`."""
        record = getattr(self, "_at_fit", None)
        if record is None:
            return
        for name, value_at_fit in record["parameters"].items():
            value = getattr(self, name)
            is_plain = value is None or isinstance(value, str | int | float)
            is_equal = type(value) is type(value_at_fit) and is_plain and value == value_at_fit
            if value is not value_at_fit and not is_equal:
                shown = repr(value) if is_plain else f"{type(value).__name__}(...)"
                raise ValueError(
                    f"{name}={shown} was set after fit, which used another value. Call fit again, "
                    "or restore the previous value."
                )
        is_current = digest_embedding(self._get_aligner_in_use()) == record["embeddings"]
        weights = record["clip_weights"]
        if not is_current or (weights and self._get_clip_weights() not in (None, weights)):
            raise ValueError(
                f"aligner was changed since this {type(self).__name__} was fitted: it was fitted "
                "again, a parameter of its encoders or of another step of its Pipeline was set, "
                "or the weights of an encoder were replaced. Its embeddings are not comparable "
                "with those of the fit. Call fit again, or restore the parameter or the weights."
            )

    def _get_clip_weights(self) -> str | None:
        """Return the fingerprint of a CLIP model, or None if it has not been downloaded.

        The encoders of other aligners record their own.
        """
        aligner = unwrap_aligner(self._get_aligner_in_use())
        return getattr(aligner, "_weights_fingerprint", None)

    def __getstate__(self) -> dict[str, Any]:
        attributes: Any = super().__getstate__()
        state = dict(attributes)
        record = state.get("_at_fit")
        if record is not None:
            # A digest is valid in one process only. `__setstate__` computes it again if the
            # aligner is unchanged; "" is never equal to a digest.
            is_current = digest_embedding(self._get_aligner_in_use()) == record["embeddings"]
            # joblib loads an array that the state has twice as two arrays, which would differ.
            changed = {
                name: value
                for name, value in record["parameters"].items()
                if value is not state[name]
            }
            state["_at_fit"] = {
                "embeddings": None if is_current else "",
                "parameters": changed,
                "clip_weights": record["clip_weights"] or self._get_clip_weights(),
            }
        if "aligner_" in state and self._uses_starter():
            state["aligner_"] = None  # tens of megabytes that every installation has
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "aligner_" in state and state["aligner_"] is None:
            state = {**state, "aligner_": resolve_aligner(None)}
        super().__setstate__(state)  # type: ignore[misc]
        if record := state.get("_at_fit"):
            self._note_fit()
            self._at_fit["parameters"] |= record["parameters"]
            self._at_fit["clip_weights"] = record.get("clip_weights")
            if record["embeddings"] is not None:
                self._at_fit["embeddings"] = record["embeddings"]

    def _get_recorded_params(self) -> dict[str, Any]:
        params = super()._get_recorded_params()
        if hasattr(self, "aligner_") and not self._uses_parameter():
            # A clone of the parameter was fitted, so the parameter's own fit is not needed.
            params["aligner"] = None if self.aligner is None else clone(self.aligner)
        return params

    def _get_state(self) -> dict[str, Any]:
        self._check_current()
        aligner: Any = None
        if hasattr(self, "aligner_"):
            aligner = _SAME_AS_PARAMETER if self._uses_parameter() else self.aligner_
        return {
            "aligner": aligner,
            "starter": resolve_aligner(None).fingerprint_ if self._uses_starter() else None,
        }

    def _set_state(self, state: FittedState) -> None:
        aligner = state.optional("aligner")
        if aligner is not None:
            is_same = isinstance(aligner, str) and aligner == _SAME_AS_PARAMETER
            self.aligner_ = resolve_aligner(self.aligner) if is_same else aligner
            unwrap_aligner(self.aligner_)
        starter = state.optional("starter")
        if starter is not None and starter != resolve_aligner(None).fingerprint_:
            raise ValueError(
                "The model was saved with a starter model that differs from the starter model of "
                "this version of sklearn-ape. Install the version that README.md of the model "
                "names. (Models that are saved with aligner=load_starter() include it.)"
            )
        if hasattr(self, "aligner_"):
            self._note_fit()

    @classmethod
    def _from_record(
        cls, params: dict[str, Any], state: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> Self:
        estimator = super()._from_record(params, state, settings)
        options = (("cache", None), ("device", "auto"))
        ignored = [name for name, default in options if settings.get(name, default) != default]
        if ignored and (estimator.aligner is None or isinstance(estimator.aligner, str)):
            remedy = "Fit the model with aligner=CLIPAligner(...) instead of a name to set them."
            if estimator.aligner is None:
                parameters = "=..., ".join(ignored)
                encoder = "load_starter().image_encoder_"
                remedy = f"Set them for all of these, {encoder}.set_params({parameters}=...)."
            warn(
                f"load_pretrained does not use {' and '.join(ignored)}, because the model shares "
                f"its aligner with other estimators of this process. {remedy}"
            )
        return estimator

    def _get_aligner_in_use(self) -> Any:
        return self.aligner_ if hasattr(self, "aligner_") else resolve_aligner(self.aligner)

    def _uses_starter(self) -> bool:
        """Return whether the starter model is used, which is not stored in the file."""
        return self.aligner is None and (not hasattr(self, "aligner_") or self._uses_parameter())

    def _uses_parameter(self) -> bool:
        """Return whether `aligner_` is the aligner that the parameter selects."""
        return self.aligner_ is resolve_aligner(self.aligner)

    def _get_aligner_facts(self) -> Facts:
        """Return the aligner's part of the model card."""
        inner = unwrap_aligner(self._get_aligner_in_use())
        facts = inner._get_card_facts() if isinstance(inner, PretrainedMixin) else Facts()
        facts.rows = {"aligner": type(inner).__name__, **facts.rows}
        if self._uses_starter():
            facts.rows["encoders"] = "those of the starter model, which comes with sklearn-ape"
        return facts

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        if self.aligner is None or isinstance(self.aligner, str):
            tags.input_tags.two_d_array = False
        elif hasattr(self.aligner, "__sklearn_tags__"):
            tags.input_tags = get_tags(self.aligner).input_tags
        return tags
