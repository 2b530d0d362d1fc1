"""Classify images by the names of the classes alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from types import FrameType
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import check_consistent_length

from ..aligners.similarity import (
    UNKNOWN,
    UNREADABLE,
    LogitTiles,
    choose_texts,
    choose_top_texts,
    to_probabilities,
)
from ..prompts import (
    captions_of,
    check_in_labels,
    class_array,
    may_be_renumbered,
    names_of,
    resolve_templates,
    validate_y,
)
from ..utils.sklearn_compat import FitContext, with_callbacks
from ..utils.validation import format_list
from ..utils.warnings import warn
from ._base import ZeroShotBase

__all__ = ["ZeroShotClassifier"]


class ZeroShotClassifier(ClassifierMixin, ZeroShotBase):
    """Predict the class whose name, embedded as text, is nearest to the image.

    Parameters
    ----------
    labels : sequence of str, mapping or None, default=None
        Names of the classes. A mapping gives for each class the names that are embedded in its
        place (None: its own), ``{"vehicle": ["car", "bus"], "animal": ["cat", "dog"]}`` or
        ``{0: "cat", 1: "dog"}``. A name with ``{}`` in it is a template of that class alone.
        Labels are texts, numbers or booleans, in any collection that can be read twice. None
        takes the distinct values of y in `fit`.
    aligner : estimator, str or None, default=None
        An aligner such as `APEAligner`, or a Pipeline that ends in one. A fitted aligner is used
        as it is, and the classifier predicts at once; an unfitted one is trained by `fit`. The
        name of a CLIP model, ``"open_clip:ViT-B-32/openai"``, stands for a `CLIPAligner`. None is
        the starter model that ships with the package, for EfficientNet-Lite0 and MiniLM.
    templates : str or sequence of str, default="simple"
        Sentences that a name is put into, or the name of a set of them in
        `sklearn_ape.prompts.TEMPLATES`; the embeddings of a class's sentences are averaged.
        ``"none"`` embeds names as they are, which suits names that are sentences.
    threshold : float or None, default=None
        An image whose highest probability lies below is given `unknown_label`.
    unknown_label : object, default="unknown"
        What is predicted below the threshold, and for images that an encoder with
        ``on_error="nan"`` could not read.
    logit_scale : float or None, default=None
        Factor of the cosines in `decision_function` and `predict_proba`, from 1e-30 to 1e30:
        higher is more confident. None takes the one that the aligner learned.
    standardize : bool or collection of images or features, default=False
        Whether cosines are taken relative to those of other images and captions, which keeps a
        class that is similar to everything from winning everywhere; see the aligner's
        ``similarity``. True compares with what the aligner was fitted on; a collection like X,
        such as the images to be sorted, stands in for its images.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Classes, sorted, as scikit-learn's scorers need them.
    aligner_ : estimator
        The aligner used.
    n_features_in_ : int
        Width of the features, where X is features.

    See Also
    --------
    APEAligner : Trains what this classifier needs.
    sklearn_ape.prompts : The sets of templates.

    Notes
    -----
    `fit` never learns a boundary between the classes. Around an aligner that can predict (fitted,
    named, in `sklearn.frozen.FrozenEstimator`, or None) it checks y and learns the classes,
    nothing else. Around an unfitted aligner it trains a clone of the aligner, on captions or on
    the names of y. `sklearn.base.clone` forgets what an aligner learned, so that cross-validation
    and searches train a fitted aligner again in every fold, unless it is in `FrozenEstimator`.

    Many of scikit-learn's meta-estimators replace the labels in y by their numbers before they
    call `fit`: `VotingClassifier`, `StackingClassifier`, `BaggingClassifier`,
    ``CalibratedClassifierCV(ensemble=False)``, ``cross_val_predict(method="predict_proba")``.
    There, labels must be these numbers, 0, 1, ..., one for each class in y; anything else is
    refused. The documentation has a table of what works, "Zero-shot classifiers within
    meta-estimators".

    After `fit`, predicting raises ValueError when the aligner was changed meanwhile: when another
    one was set or it was fitted again, or when a parameter of its encoders or of another step of
    its Pipeline was set. A classifier that predicts without `fit` takes its aligner as it is.

    scikit-learn's callbacks (1.9 and later) reach the epochs of an aligner within Pipelines and
    searches: ``search.set_callbacks(ProgressBar(max_propagation_depth=None))``.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_ape import APEAligner, ZeroShotClassifier
    >>> from sklearn_ape.datasets import load_openmoji
    >>> from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
    >>> data = load_openmoji()
    >>> food = [i for i, c in enumerate(data.categories) if c == "Food & Drink"]
    >>> images = [data.images[i] for i in food]
    >>> captions = [data.captions[i] for i in food]
    >>> model = make_pipeline(
    ...     TimmImageEncoder("efficientnet_lite0"),
    ...     APEAligner(
    ...         text_encoder=TransformersTextEncoder(),
    ...         early_stopping=False,
    ...         max_epochs=30,
    ...         random_state=0,
    ...     ),
    ... ).fit(images, captions)
    >>> classifier = ZeroShotClassifier(["pizza", "red apple", "teapot"], aligner=model)
    >>> names = ["red apple", "pizza", "teapot", "pizza"]
    >>> classifier.predict([images[captions.index(name)] for name in names]).tolist()
    ['red apple', 'pizza', 'teapot', 'pizza']

    These images were used for fitting. Call ``score`` with labelled images that were not.
    """

    _shown_properties = ("classes_",)

    def __init__(
        self,
        labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None = None,
        *,
        aligner: Any = None,
        templates: str | Sequence[str] = "simple",
        threshold: float | None = None,
        unknown_label: Any = "unknown",
        logit_scale: float | None = None,
        standardize: Any = False,
    ) -> None:
        self.labels = labels
        self.aligner = aligner
        self.templates = templates
        self.threshold = threshold
        self.unknown_label = unknown_label
        self.logit_scale = logit_scale
        self.standardize = standardize

    @with_callbacks
    def fit(self, X: Any, y: Any = None, captions: Any = None) -> Self:
        """Learn the classes, and train a clone of the aligner if it is not fitted.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            What the aligner takes.
        y : sequence of length n_samples or None, default=None
            The label of every image, one of `labels` where these are given. An unfitted aligner
            is trained on the names of these labels, put through the templates, unless there are
            captions.
        captions : sequence of length n_samples or None, default=None
            A caption or a list of captions for every image: what an unfitted aligner is trained
            on in place of y. Around any other aligner captions are not used, with a warning.

        Returns
        -------
        self : object
            The fitted classifier.

        Raises
        ------
        ValueError
            When y holds values that are not labels, or when numbers in y may be those of a
            meta-estimator and nothing would be learned from them; the message says what to do.
        """
        self._check_parameters()
        is_kept = self._is_kept()
        progress = FitContext(self, 0 if is_kept else 1, X, y)
        check_consistent_length(X, y, captions)
        given = None if y is None and self.labels is not None else validate_y(y)
        names = self._fit_names(given, is_kept)
        if is_kept:
            self.aligner_ = self._kept_aligner(captions)
        else:
            if captions is None:
                captions = captions_of(validate_y(y), names, resolve_templates(self.templates))
            self.aligner_ = self._fit_aligner(X, captions, progress)
        self._names = names
        self._note_fit()
        progress.end()
        return self

    def _fit_names(self, y: list[Any] | None, is_kept: bool) -> dict[Any, list[str]]:
        """Return the names of every class, from labels or from y; y must agree with labels."""
        if self.labels is None:
            names = names_of(dict.fromkeys(y or ()))
            if not all(isinstance(label, str) for label in names):
                warn(
                    "y holds numbers, so the classes are named by them ('0', '1', ...). Give them "
                    "names with labels={0: 'cat', 1: 'dog', ...}.",
                )
            return names
        names = names_of(self.labels)
        if y is not None:
            check_in_labels(y, names)
            if may_be_renumbered(y, names):
                self._report_renumbering(y, names, is_kept)
        return names

    def _report_renumbering(
        self, y: list[Any], names: Mapping[Any, list[str]], is_kept: bool
    ) -> None:
        message = (
            f"y holds the numbers from 0 to {max(y)} only, and labels has {len(names)} classes. "
            "Within VotingClassifier and other meta-estimators, which number the labels of y "
            "before they call fit, these numbers may stand for other labels. "
        )
        if is_kept:  # nothing would be learned from y
            raise ValueError(
                f"{message}Predict without fit, as the aligner is fitted, or give labels that "
                "are texts, or only those that y holds."
            )
        warn(
            f"{message}Give labels that are texts, or only those that y holds, if this "
            "classifier is fitted by a meta-estimator.",
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """Scaled cosine of every image with every class, standardised if so wished.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            For two classes, the second one's less the first one's. NaN for images that could not
            be read.
        """
        scores = self._logits().collect(X, lambda some: (some,))[0]
        _warn_of_unread(scores)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of every class, supposing that one of them is right.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`. NaN for images that could not be read.

        Warns
        -----
        UserWarning
            When images could not be read, since `VotingClassifier` and others predict the first
            class for them.
        """
        probabilities = self._logits().collect(X, lambda some: (to_probabilities(some),))[0]
        _warn_of_unread(probabilities)
        return probabilities

    def predict(self, X: Any) -> np.ndarray:
        """Name every image.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Members of `classes_`, or `unknown_label`.
        """
        logits = self._logits()
        return self._named(self._codes(logits, X), logits.classes)

    def predict_top_k(self, X: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Name the k most probable classes of every image, without keeping all probabilities.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.
        k : int, default=5
            How many, at most as many as there are classes.

        Returns
        -------
        labels : ndarray of shape (n_samples, k)
            Members of `classes_`, the most probable first. `threshold` has no part in it;
            `unknown_label` stands for images that could not be read.
        probabilities : ndarray of shape (n_samples, k)
            Those of `predict_proba`.

        Raises
        ------
        ValueError
            When there are not so many classes.

        See Also
        --------
        sklearn.metrics.top_k_accuracy_score : How often the right class is among the first k.
        """
        logits = self._logits()
        n_classes = len(logits.classes)
        if not isinstance(k, int | np.integer) or not 1 <= k <= n_classes:
            raise ValueError(
                f"k must be an integer from 1 to the number of classes, {n_classes}, not {k!r}."
            )
        codes, probabilities = logits.collect(X, lambda some: choose_top_texts(some, int(k)))
        return self._named(codes, logits.classes), probabilities

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the images that are named right.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.
        y : sequence of length n_samples
            True labels.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images: finite, at least 0, and not all 0.

        Returns
        -------
        accuracy : float
            Between 0 and 1.
        """
        logits = self._logits()
        truth = validate_y(y)
        codes_of = {label: code for code, label in enumerate(logits.classes.tolist())}
        unknown = codes_of.setdefault(self.unknown_label, UNKNOWN)
        absent = [label for label in dict.fromkeys(truth) if label not in codes_of]
        if absent:
            warn(
                "y has labels that are no class of this classifier, so that they count as wrong: "
                f"{format_list(absent)}.",
            )
        codes = self._codes(logits, X)
        check_consistent_length(codes, truth, sample_weight)
        weights = None if sample_weight is None else _checked_weights(sample_weight)
        codes[codes < 0] = unknown
        hits = codes == [codes_of.get(label, UNREADABLE) for label in truth]
        return float(np.average(hits, weights=weights))

    def __sklearn_clone__(self) -> Self:
        _refuse_binary_reductions()
        return super().__sklearn_clone__()

    @property
    def classes_(self) -> np.ndarray:
        """Classes, sorted."""
        names = self._names_now()
        if names is None:
            raise AttributeError("ZeroShotClassifier has no classes_ before fit when labels=None.")
        return class_array(names)

    def _logits(self) -> LogitTiles:
        aligner = self._ready_aligner()
        logits = self._logits_by(aligner, self._scale_by(aligner))
        if len(logits.classes) == 1:
            warn(
                f"The only class is {logits.classes[0]!s:.99}, so every image is given it. "
                "Give the classes that it is to be told from, too.",
            )
        return logits

    def _names_now(self) -> dict[Any, list[str]] | None:
        # scikit-learn's scorers suppose that classes are sorted.
        names = super()._names_now()
        return None if names is None else {label: names[label] for label in sorted(names)}

    def _codes(self, logits: LogitTiles, X: Any) -> np.ndarray:
        """Return the number of every image's class, below 0 for those that are unknown."""
        (codes,) = logits.collect(X, lambda some: (choose_texts(some, self.threshold),))
        unread = np.flatnonzero(codes == UNREADABLE)
        if unread.size and self.threshold is None:
            warn(
                f"{len(unread)} images could not be read and are called "
                f"{self.unknown_label!r}: rows {format_list(unread, str)}.",
            )
        return codes

    def _named(self, codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the labels that numbers of classes stand for."""
        labels = classes[codes.clip(min=0)]
        unknown = codes < 0
        if not unknown.any() and self.threshold is None:
            return labels
        other = np.asarray(self.unknown_label).dtype
        same_kind = other.kind == labels.dtype.kind
        # Numbers must not turn into text because one image is unknown.
        labels = labels.astype(np.result_type(labels.dtype, other) if same_kind else object)
        labels[unknown] = self.unknown_label
        return labels

    def _check_parameters(self) -> None:
        super()._check_parameters()
        threshold = self.threshold
        is_number = isinstance(threshold, Real) and not isinstance(threshold, bool | np.bool_)
        if threshold is not None and not (is_number and 0 <= threshold <= 1):
            raise ValueError(f"threshold must be None or a number in [0, 1], not {threshold!r}.")


def _refuse_binary_reductions() -> None:
    """Refuse to be cloned by one-vs-rest, one-vs-one and output codes.

    Each of their problems calls its two classes 0 and 1. Where these are labels, y does not tell
    that they stand for something else in every problem; only the caller does. It is looked for
    in `clone`, which all of them call in their own thread, since `fit` may run in another thread
    or process of a meta-estimator in between.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "sklearn.multiclass":
            raise ValueError(
                "ZeroShotClassifier cannot be fitted by OneVsRestClassifier, OneVsOneClassifier "
                "or OutputCodeClassifier, whose problems of two classes have no names. Use it "
                "directly: it tells any number of classes apart."
            )
        frame = frame.f_back


def _warn_of_unread(scores: np.ndarray) -> None:
    """Warn of rows of NaN, of which ``argmax`` makes the first class."""
    unread = np.flatnonzero(np.isnan(scores[:, 0]))
    if unread.size:
        warn(
            f"{len(unread)} images could not be read, so their scores are NaN: rows "
            f"{format_list(unread, str)}. Leave them out, or call predict, which returns "
            "unknown_label for them.",
        )


def _checked_weights(sample_weight: Any) -> np.ndarray:
    """Return weights of images as floats."""
    weights = np.asarray(sample_weight)
    if weights.dtype.kind == "O":  # such as columns of pandas that may hold missing values
        with suppress(TypeError, ValueError):
            weights = weights.astype(float)
    if weights.ndim != 1 or weights.dtype.kind not in "biuf":
        raise ValueError(
            "sample_weight must be one number per image, not an array of shape "
            f"{weights.shape} and type {weights.dtype}."
        )
    weights = weights.astype(float)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ValueError(
            f"sample_weight holds {weights[bad[0]]} (row {bad[0]}). Weights must be finite and "
            "at least 0."
        )
    if not weights.any():
        raise ValueError(
            "sample_weight is zero for every image, so that no accuracy can be computed. Give at "
            "least one image a weight above 0."
        )
    return weights
