"""Base class for zero-shot classifiers, and hierarchies of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ..aligners.similarity import UNKNOWN, Bank, LogitTiles, check_standardize, resolve_bank
from ..aligners.wrapper import AlignerWrapperMixin, resolve_aligner, unwrap, unwrap_aligner
from ..persistence.hub import Facts
from ..persistence.mixins import FittedState
from ..prompts import (
    flatten_labels,
    prompts_of,
    resolve_flat_names,
    resolve_templates,
    to_class_array,
)
from ..utils.messages import warn
from ..utils.sklearn_compat import CallbackSupportMixin, FitContext
from ..utils.validation import check_number, format_list, is_missing, to_builtin, to_list
from ._label_embeddings import embed_labels
from ._transduction import convert_class_prior

# Maximum number of classes that a model card lists.
_MAX_LISTED_CLASSES = 20


# Between these bounds float32 logits do not overflow, even if they are standardized by a tiny
# deviation, and do not become zero or subnormal, which would create ties.
_SCALE_BOUNDS = 1e-30, 1e30

NOT_FITTED = (
    "This %(name)s is not fitted: call fit(images, labels), or pass labels and a fitted "
    "aligner, as in %(name)s(['cat', 'dog'], aligner=model)."
)


class ZeroShotBase(AlignerWrapperMixin, ClassifierMixin, CallbackSupportMixin, BaseEstimator):
    """Base class of classifiers by names. They predict with labels and a fitted aligner."""

    # First sentence of the model card.
    _purpose = (
        "Says which of the classes an image shows, by the cosine of the image with the classes' "
        "names."
    )

    labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None
    templates: str | Sequence[str]
    logit_scale: float | None
    standardize: Any

    def _keeps_aligner(self) -> bool:
        """Return whether `fit` uses the aligner unchanged, since it can embed already."""
        return isinstance(self.aligner, FrozenEstimator) or _can_embed(self.aligner)

    def _fit_aligner(self, X: Any, captions: Any, context: FitContext) -> Any:
        aligner = clone(self.aligner)
        with context.fitting(aligner):
            return aligner.fit(X, captions)

    def _warn_if_fit_was_lost(self) -> None:
        """Warn if the aligner, which is about to be trained on labels, is a clone of a fitted one.

        Cross-validation and searches make such clones, so that a score would be that of another
        aligner than the one that was passed.
        """
        if getattr(unwrap_aligner(self.aligner), "_lost_fit", None) == "aligner":
            warn(
                "aligner is a clone of a fitted aligner, as cross-validation and searches make "
                "it. Clones are not fitted, so it is trained on the labels of these images. To "
                "keep the fit, pass aligner=sklearn.frozen.FrozenEstimator(aligner)."
            )

    def _get_kept_aligner(self, captions: Any) -> Any:
        """Return the aligner that `fit` keeps; warn if captions are passed."""
        aligner = resolve_aligner(self.aligner)
        check_is_fitted(aligner)
        if captions is not None:
            first = next(iter(captions))  # of a table, a name of a column
            is_table = len(getattr(captions, "shape", ())) == 2
            if isinstance(first, Real) and not is_table and not is_missing(first):
                raise ValueError(
                    "captions holds no texts. Pass texts; to pass weights to FewShotClassifier, "
                    "use sample_weight=..."
                )
            reason = "None, the starter model" if self.aligner is None else "fitted already"
            warn(
                f"captions are not used: aligner is {reason}, and fit keeps it. "
                "To train on captions, pass an aligner that is not fitted, such as "
                "sklearn.base.clone(aligner)."
            )
        return aligner

    def _check_ready(self, allow_changes: bool = False) -> None:
        """Raise an error unless the classifier can predict."""
        self._check_parameters()
        if self.aligner is not None and not self.__sklearn_is_fitted__():
            unwrap_aligner(resolve_aligner(self.aligner))  # an invalid type is reported first
        check_is_fitted(self, msg=NOT_FITTED)
        if not allow_changes:
            self._check_current()

    def _make_logits(self, aligner: BaseEstimator, scale: float) -> LogitTiles:
        """Embed the labels, and return an object that computes the logits of images."""
        text_aligner = unwrap_aligner(aligner)
        names = self._resolve_names()
        assert names is not None
        if self.labels is not None:
            warn_about_numbers("labels", names)
        bank = self._resolve_bank(self.standardize, aligner)
        embeddings = embed_labels(text_aligner, names, self.templates)
        return LogitTiles(aligner, to_class_array(names), embeddings, scale, bank)

    def _set_reference(self, X: Any) -> None:
        """Keep embeddings of labelled images in place of those of training images if needed."""
        self.__dict__.pop("_reference", None)
        aligner = self._get_aligner_in_use()
        if self._lacks_bank(aligner):
            bank = resolve_bank(X, aligner)
            assert bank is not None
            self._reference = bank.image

    def _lacks_bank(self, aligner: BaseEstimator) -> bool:
        """Return whether there are no images that cosines could be standardized by."""
        is_boolean = isinstance(self.standardize, bool | np.bool_)
        has_bank = getattr(unwrap_aligner(aligner), "bank_", None) is not None
        return is_boolean and not (has_bank or hasattr(self, "_reference"))

    def _check_has_bank(self, aligner: BaseEstimator) -> None:
        """Raise ValueError if there are no images from which thresholds could be computed."""
        if self._lacks_bank(aligner):
            raise ValueError(
                f"aligner is a {type(unwrap_aligner(aligner)).__name__} without training images, "
                "from which thresholds that are not fitted are computed. Call fit or "
                "fit_thresholds with labelled images, or pass a collection of some hundreds of "
                "images like those to be labelled, standardize=images."
            )

    def _resolve_bank(self, standardize: Any, aligner: BaseEstimator) -> Bank | None:
        """Return the bank that cosines are standardized by, or None for False."""
        if hasattr(self, "_reference"):
            return Bank.from_embeddings(self._reference, None) if standardize else None
        return resolve_bank(standardize, aligner)

    def _resolve_scale(self, aligner: BaseEstimator) -> float:
        """Return the parameter, or else the scale that the aligner learned."""
        if self.logit_scale is not None:
            return float(self.logit_scale)
        return unwrap_aligner(aligner).logit_scale_

    def _resolve_names(self) -> dict[Any, list[str]] | None:
        """Return the names of each class, in the order of the columns; None before `fit`."""
        if self.labels is not None:
            return resolve_flat_names(self.labels)
        return getattr(self, "_names", None)

    def _make_prompts(self) -> dict[Any, list[str]]:
        """Return the texts that are embedded for each class."""
        names, templates = self._resolve_names() or {}, resolve_templates(self.templates)
        return {label: prompts_of(label, names[label], templates) for label in names}

    def _check_parameters(self) -> None:
        """Raise an error for an invalid parameter other than the aligner."""
        resolve_templates(self.templates)
        check_standardize(self.standardize)
        check_number(self.logit_scale, "logit_scale", *_SCALE_BOUNDS, "both", optional=True)

    def _check_fit_parameters(self) -> None:
        """Raise an error for an invalid parameter."""
        self._check_parameters()
        if self.aligner is not None:
            unwrap_aligner(resolve_aligner(self.aligner))

    def _get_recorded_params(self) -> dict[str, Any]:
        params = super()._get_recorded_params()
        converters = {
            "labels": convert_labels,
            "class_prior": convert_class_prior,
            "unknown_label": to_builtin,
        }
        return params | {
            name: convert(params[name]) for name, convert in converters.items() if name in params
        }

    def _get_state(self) -> dict[str, Any]:
        return {**super()._get_state(), "names": getattr(self, "_names", None)}

    def _set_state(self, state: FittedState) -> None:
        super()._set_state(state)
        names = state.optional("names")
        if names is not None:
            if not isinstance(names, dict):
                raise ValueError("names must be an object with the names of each class.")
            self._names = resolve_flat_names(names)

    def _check_restored(self) -> None:
        self._check_fit_parameters()
        self._resolve_names()

    def _get_card_facts(self) -> Facts:
        facts = self._get_aligner_facts()
        names = self._resolve_names() or {}
        listed = format_list(names, str, _MAX_LISTED_CLASSES)
        facts.what = f"{self._purpose} {facts.what}"
        facts.rows = {"classes": f"{len(names):,}: {listed}"} | facts.rows
        facts.limits.append(self._describe_limit())
        preprocessing, aligner = unwrap(resolve_aligner(self.aligner))
        takes_images = preprocessing is not None or getattr(aligner, "image_encoder", None)
        images = "['image.jpg']" if takes_images else "image_features"
        facts.usage = f"print(model.predict({images}))"
        return facts

    def _describe_limit(self) -> str:
        if getattr(self, "threshold", None) is None:
            return "It always answers with one of its classes."
        return "It always answers with one of its classes or, below the threshold, unknown."

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "aligner_") or (self.labels is not None and _can_embed(self.aligner))


def _can_embed(aligner: BaseEstimator | str | None) -> bool:
    """Return whether an aligner is fitted; None and names are models that are."""
    if aligner is None or isinstance(aligner, str):
        return True
    try:
        check_is_fitted(aligner)
    except (NotFittedError, TypeError):  # TypeError: not an estimator, which predicting reports
        return False
    return True


def warn_about_numbers(parameter: str, names: Mapping[Any, list[str]]) -> None:
    """Warn if labels are numbers without names, so that their digits are embedded."""
    unnamed = [
        str(label)
        for label, texts in names.items()
        if texts == [str(label)] and not isinstance(label, str)
    ]
    if unnamed:
        source = " "
        if parameter == "y":
            source = (
                " VotingClassifier, cross_val_predict(method='predict_proba') and other functions "
                "of scikit-learn replace texts in y by their numbers in sorted order. "
            )
        warn(
            f"{parameter} holds numbers, so the texts {format_list(unnamed)} are "
            f"embedded as names of the classes.{source}Pass names with labels={{0: 'cat', 1: "
            "'dog', ...}."
        )


def convert_labels(labels: Any) -> Any:
    """Return labels in a form that a file can hold: members of an Enum become their values."""
    if labels is None or isinstance(labels, str) or not isinstance(labels, Iterable):
        return labels
    if isinstance(labels, Mapping):
        return {_convert_label(label): _convert_label(value) for label, value in labels.items()}
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biufU":
        return labels
    values = [_convert_label(label) for label in to_list(labels)]
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "O":
        return np.array(values, dtype=object)
    return tuple(values) if isinstance(labels, tuple) else values


def _convert_label(label: Any) -> Any:
    return to_builtin(label) if isinstance(label, Enum) else label


class Hierarchy(NamedTuple):
    """Hierarchy of the classes of a classifier.

    The nodes are the classes, in the order of ``classes_``, followed by the inner nodes. The path
    of a node has the indices of the nodes from the coarsest one to the node itself. The
    membership, of shape (n_classes, n_nodes), is 1 where a class is in a node.
    """

    nodes: np.ndarray
    paths: list[tuple[int, ...]]
    membership: np.ndarray

    @classmethod
    def from_labels(cls, labels: Any, classes: np.ndarray) -> Self:
        """Return the hierarchy of a nested ``labels`` parameter with these sorted classes."""
        _, label_paths = flatten_labels(labels)
        nodes = list(dict.fromkeys([*classes.tolist(), *label_paths]))
        index_of = {label: index for index, label in enumerate(nodes)}
        paths = [tuple(index_of[label] for label in label_paths[node]) for node in nodes]
        membership = np.zeros((len(classes), len(nodes)), np.float32)
        for leaf, path in enumerate(paths[: len(classes)]):
            membership[leaf, list(path)] = 1
        return cls(to_class_array(nodes), paths, membership)

    @property
    def levels(self) -> list[np.ndarray]:
        """Indices of the nodes at each level; classes above it stand for themselves."""
        depths = np.array([len(path) for path in self.paths])
        is_class = np.arange(len(depths)) < len(self.membership)
        return [
            np.flatnonzero((depths == depth) | (is_class & (depths < depth)))
            for depth in range(1, depths.max() + 1)
        ]

    def choose(self, probabilities: np.ndarray, threshold: float) -> np.ndarray:
        """Return the most specific node of each row whose probability reaches the threshold.

        It is the most probable class, or, if no class reaches the threshold, the most probable of
        the nodes that reach it and whose children do not. `UNKNOWN` is returned if there are none.
        """
        scores = probabilities @ self.membership
        n_classes = len(self.membership)
        is_specific = scores >= threshold
        has_class = is_specific[:, :n_classes].any(axis=1)
        is_specific[has_class, n_classes:] = False
        # A node is not the most specific one if one of its descendants reaches the threshold.
        for node, path in enumerate(self.paths):
            is_specific[:, list(path[:-1])] &= ~is_specific[:, [node]]
        best = np.where(is_specific, scores, -1).argmax(axis=1)
        return np.where(is_specific.any(axis=1), best, UNKNOWN)
