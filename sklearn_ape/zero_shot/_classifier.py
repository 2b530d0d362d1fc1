"""Zero-shot classification of images by the names of the classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
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
    check_in_labels,
    make_captions,
    may_be_encoded,
    resolve_names,
    to_class_array,
    validate_y,
)
from ..utils.sklearn_compat import FitContext, with_callbacks
from ..utils.validation import check_number, format_list, ignores_underflow
from ..utils.warnings import warn
from ._base import ZeroShotBase

__all__ = ["ZeroShotClassifier"]


class ZeroShotClassifier(ZeroShotBase):
    """Predict the class whose name, embedded as text, is most similar to the image.

    Parameters
    ----------
    labels : sequence of str, mapping or None, default=None
        Names of the classes: texts, numbers or booleans. A mapping gives the names to embed for
        each class, and None stands for the label itself: ``{"vehicle": ["car", "bus"], "animal":
        ["cat", "dog"]}`` or ``{0: "cat", 1: "dog"}``. A name that contains ``{}`` is a template of
        its class alone. If `labels` is None, `fit` takes the distinct values of y.
    aligner : estimator, str or None, default=None
        Aligner such as `APEAligner`, or a Pipeline that ends in one. With a fitted aligner the
        classifier can predict without `fit`; an unfitted aligner is trained by `fit`. The name of
        a CLIP model, ``"open_clip:ViT-B-32/openai"``, stands for a `CLIPAligner`. None is the
        starter model that ships with the package, for EfficientNet-Lite0 and MiniLM.
    templates : str or sequence of str, default="simple"
        Sentences in which ``{}`` is replaced by a name, or the name of a set of templates in
        `sklearn_ape.prompts.TEMPLATES`. The embeddings of the sentences of a class are averaged.
        ``"none"`` embeds names without a template, which suits names that are sentences.
    threshold : float or None, default=None
        Probability in [0, 1]. An image whose highest probability is below the threshold is
        predicted as `unknown_label`. None disables the threshold.
    unknown_label : object, default="unknown"
        Label predicted for images below the threshold, and for images that an encoder with
        ``on_error="nan"`` could not read.
    logit_scale : float or None, default=None
        Scale of the cosines in `decision_function` and `predict_proba`, from 1e-30 to 1e30. A
        higher scale gives more confident probabilities. None takes the scale of the aligner.
    standardize : bool or collection of images or features, default=False
        Whether cosines are standardized by the cosines of a bank of images and captions, so that a
        class that is similar to every image is not predicted for all of them. True uses the images
        and captions that the aligner was fitted on. A collection in the form of X, such as the
        images to classify, replaces these images.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Classes in sorted order, as scikit-learn's scorers require.
    aligner_ : estimator
        Fitted aligner.
    n_features_in_ : int
        Number of features of X, if X is features.

    See Also
    --------
    APEAligner : Trains an aligner for this classifier.
    sklearn_ape.prompts : The sets of templates.

    Notes
    -----
    `fit` does not learn a decision boundary between the classes. If the aligner can embed already
    (it is fitted, named, in `sklearn.frozen.FrozenEstimator`, or None), `fit` only validates y and
    learns the classes. Otherwise it trains a clone of the aligner, on captions or on the names of
    the labels in y. Cross-validation and searches clone estimators, so they train a fitted aligner
    again in every fold, unless it is in `FrozenEstimator`.

    Within `VotingClassifier`, `StackingClassifier`, `BaggingClassifier` and other meta-estimators
    that replace the labels in y by their numbers, labels must be the numbers 0, 1, ..., one for
    each class in y. The page "Zero-shot classifiers within meta-estimators" of the documentation
    lists what works.

    Predicting raises ValueError if the aligner was changed after `fit`: if it was replaced or
    fitted again, or if a parameter of its encoders or of a step of its Pipeline was set.

    scikit-learn's callbacks (1.9 and later) report the epochs of an aligner within Pipelines and
    searches: ``search.set_callbacks(ProgressBar(max_propagation_depth=None))``.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021.

    Examples
    --------
    >>> from sklearn_ape import ZeroShotClassifier
    >>> from sklearn_ape.datasets import load_openmoji
    >>> data = load_openmoji()
    >>> names = ["red apple", "pizza", "teapot", "pizza"]
    >>> images = [data.images[data.captions.index(name)] for name in names]
    >>> classifier = ZeroShotClassifier(["pizza", "red apple", "teapot"])
    >>> classifier.predict(images).tolist()
    ['red apple', 'pizza', 'teapot', 'pizza']
    """

    _shown_properties = ("classes_",)

    def __init__(
        self,
        labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None = None,
        *,
        aligner: BaseEstimator | str | None = None,
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
            Images, or features if the aligner takes features.
        y : sequence of length n_samples or None, default=None
            Label of each image, which must be one of `labels` unless that is None. An unfitted
            aligner is trained on the prompts of these labels, unless there are captions.
        captions : sequence of length n_samples or None, default=None
            A caption or a list of captions for each image, on which an unfitted aligner is trained
            instead of y. If the aligner is kept, captions are not used, and a warning says so.

        Returns
        -------
        self : object
            The fitted classifier.

        Raises
        ------
        ValueError
            When y holds values that are not labels, or when the aligner is kept and the numbers in
            y may be those of a meta-estimator.
        """
        templates = self._check_fit_parameters()
        keeps_aligner = self._keeps_aligner()
        progress = FitContext(self, 0 if keeps_aligner else 1, X, y)
        check_consistent_length(X, y, captions)
        values = None if y is None and self.labels is not None else validate_y(y)
        names = self._fit_names(values, keeps_aligner)
        if keeps_aligner:
            self.aligner_ = self._get_kept_aligner(captions)
        else:
            if captions is None:
                captions = make_captions(validate_y(y), names, templates)
            self.aligner_ = self._fit_aligner(X, captions, progress)
        self._names = names
        self._note_fit()
        progress.end()
        return self

    def _fit_names(self, y: list[Any] | None, keeps_aligner: bool) -> dict[Any, list[str]]:
        """Return the names of each class, from labels or from y; y must agree with labels."""
        if self.labels is None:
            names = resolve_names(dict.fromkeys(y or ()))
            if not all(isinstance(label, str) for label in names):
                warn(
                    "y holds numbers, so the texts '0', '1', ... are embedded as names of the "
                    "classes. Pass names with labels={0: 'cat', 1: 'dog', ...}."
                )
            return names
        names = resolve_names(self.labels)
        if y is not None:
            check_in_labels(y, names)
            if may_be_encoded(y, names):
                self._report_encoded_labels(y, names, keeps_aligner)
        return names

    def _report_encoded_labels(
        self, y: list[Any], names: Mapping[Any, list[str]], keeps_aligner: bool
    ) -> None:
        message = (
            f"y holds the numbers from 0 to {max(y)} only, and labels has {len(names)} classes. "
            "Within VotingClassifier and other meta-estimators, which number the labels of y "
            "before they call fit, these numbers may stand for other labels. "
        )
        if keeps_aligner:  # fit would learn nothing from y, so that it is not needed
            raise ValueError(
                f"{message}Predict without fit, since the aligner is fitted, or pass labels that "
                "are texts, or only those that y holds."
            )
        warn(
            f"{message}Pass labels that are texts, or only those that y holds, if this "
            "classifier is fitted by a meta-estimator."
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute the scaled cosine of each image with each class, standardized if requested.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            Scores in the order of `classes_`. For two classes, the score of the second class minus
            the score of the first class. NaN for images that could not be read.
        """
        scores = self._prepare_logits().collect(X)
        _warn_if_unreadable(scores)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    @ignores_underflow
    def predict_proba(self, X: Any) -> np.ndarray:
        """Compute the probability of each class, assuming that one of them is correct.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Probabilities in the order of `classes_`. NaN, with a warning, for images that could
            not be read, for which meta-estimators such as `VotingClassifier` predict the first
            class.
        """
        probabilities = to_probabilities(self._prepare_logits().collect(X))
        _warn_if_unreadable(probabilities)
        return probabilities

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each image.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Members of `classes_`, or `unknown_label`.
        """
        logits = self._prepare_logits()
        return self._decode(self._predict_codes(logits, X), logits.classes)

    @ignores_underflow
    def predict_top_k(self, X: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Predict the k most probable classes of each image, without storing all probabilities.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.
        k : int, default=5
            Number of classes per image, at most the number of classes.

        Returns
        -------
        labels : ndarray of shape (n_samples, k)
            Members of `classes_`, the most probable first. `threshold` is not applied. Images that
            could not be read get `unknown_label`.
        probabilities : ndarray of shape (n_samples, k)
            Probabilities of these classes, as from `predict_proba`.

        Raises
        ------
        ValueError
            When k is not an integer from 1 to the number of classes.

        See Also
        --------
        sklearn.metrics.top_k_accuracy_score : How often the true class is among the first k.
        """
        logits = self._prepare_logits()
        n_classes = len(logits.classes)
        if not isinstance(k, int | np.integer) or not 1 <= k <= n_classes:
            raise ValueError(
                f"k must be an integer from 1 to the number of classes, {n_classes}, not {k!r}."
            )
        # Tile by tile: the logits of all images may not fit in memory.
        tiles = [choose_top_texts(tile.logits, int(k)) for tile in logits.iter_tiles(X)]
        codes, probabilities = map(np.concatenate, zip(*tiles, strict=True))
        return self._decode(codes, logits.classes), probabilities

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the accuracy: the fraction of images whose class is predicted correctly.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.
        y : sequence of length n_samples
            True labels.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images, which must be finite, at least 0, and not all 0.

        Returns
        -------
        accuracy : float
            Accuracy between 0 and 1.
        """
        logits = self._prepare_logits()
        truth = validate_y(y)
        code_of_label = {label: code for code, label in enumerate(logits.classes.tolist())}
        unknown_code = code_of_label.setdefault(self.unknown_label, UNKNOWN)
        absent = [label for label in dict.fromkeys(truth) if label not in code_of_label]
        if absent:
            warn(
                f"y contains labels that are not in classes_: {format_list(absent)}. They count "
                "as errors; correct y, or add them to labels."
            )
        codes = self._predict_codes(logits, X)
        check_consistent_length(codes, truth, sample_weight)
        weights = None if sample_weight is None else _validate_weights(sample_weight)
        codes[codes < 0] = unknown_code
        hits = codes == [code_of_label.get(label, UNREADABLE) for label in truth]
        return float(np.average(hits, weights=weights))

    def __sklearn_clone__(self) -> Self:
        _check_caller_of_clone()
        return super().__sklearn_clone__()

    @property
    def classes_(self) -> np.ndarray:
        """Classes in sorted order."""
        names = self._resolve_names()
        if names is None:
            raise AttributeError("ZeroShotClassifier has no classes_ before fit when labels=None.")
        return to_class_array(names)

    def _prepare_logits(self) -> LogitTiles:
        """Check the parameters and the fitted state, and embed the labels."""
        templates = self._check_ready()
        logits = self._make_logits(self._aligner_in_use(), templates)
        if len(logits.classes) == 1:
            label = f"{logits.classes[0]!s:.99}"
            warn(
                f"classes_ has only one class, {label}, so every image is predicted as {label}. "
                "Pass at least two labels."
            )
        return logits

    def _resolve_names(self) -> dict[Any, list[str]] | None:
        # scikit-learn's scorers assume that classes are sorted.
        names = super()._resolve_names()
        return None if names is None else {label: names[label] for label in sorted(names)}

    @ignores_underflow
    def _predict_codes(self, logits: LogitTiles, X: Any) -> np.ndarray:
        """Return the index of the class of each image, or `UNKNOWN` or `UNREADABLE`."""
        # Tile by tile: the logits of all images may not fit in memory.
        tiles = [choose_texts(tile.logits, self.threshold) for tile in logits.iter_tiles(X)]
        codes = np.concatenate(tiles)
        unreadable = np.flatnonzero(codes == UNREADABLE)
        if unreadable.size and self.threshold is None:
            warn(
                f"{len(unreadable)} images could not be read and are predicted as "
                f"{self.unknown_label!r}: rows {format_list(unreadable, str)}."
            )
        return codes

    def _decode(self, codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the labels of class indices, and `unknown_label` for negative ones."""
        labels = classes[codes.clip(min=0)]
        is_unknown = codes < 0
        if not is_unknown.any() and self.threshold is None:
            return labels
        unknown_type = np.asarray(self.unknown_label).dtype
        same_kind = unknown_type.kind == labels.dtype.kind
        # Use an array of objects, since NumPy would convert numbers to text for "unknown".
        labels = labels.astype(np.result_type(labels.dtype, unknown_type) if same_kind else object)
        labels[is_unknown] = self.unknown_label
        return labels

    def _check_parameters(self) -> tuple[str, ...]:
        templates = super()._check_parameters()
        check_number(self.threshold, "threshold", 0, 1, closed="both", optional=True)
        return templates


def _check_caller_of_clone() -> None:
    """Raise ValueError if `clone` was called by a one-vs-rest or similar meta-estimator.

    Each of their binary problems has the classes 0 and 1, which may also be labels. Then y does
    not show that the classes stand for something else, but the caller does. The check is made in
    `clone`, which they call in their own thread, while `fit` may run in another thread or process.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "sklearn.multiclass":
            raise ValueError(
                "ZeroShotClassifier cannot be fitted by OneVsRestClassifier, OneVsOneClassifier "
                "or OutputCodeClassifier, whose binary problems have no names. Use it directly: "
                "it distinguishes any number of classes."
            )
        frame = frame.f_back


def _warn_if_unreadable(scores: np.ndarray) -> None:
    """Warn about rows of NaN, for which ``argmax`` returns the first class."""
    unreadable = np.flatnonzero(np.isnan(scores[:, 0]))
    if unreadable.size:
        warn(
            f"{len(unreadable)} images could not be read, so their scores are NaN: rows "
            f"{format_list(unreadable, str)}. Leave them out, or call predict, which returns "
            "unknown_label for them."
        )


def _validate_weights(sample_weight: Any) -> np.ndarray:
    weights = np.asarray(sample_weight)
    if weights.dtype.kind == "O":  # such as pandas columns with missing values
        with suppress(TypeError, ValueError):
            weights = weights.astype(float)
    if weights.ndim != 1 or weights.dtype.kind not in "biuf":
        raise ValueError(
            "sample_weight must be one number per image, not an array of shape "
            f"{weights.shape} and type {weights.dtype}."
        )
    weights = weights.astype(float)
    invalid = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if invalid.size:
        raise ValueError(
            f"sample_weight holds {weights[invalid[0]]} (row {invalid[0]}). Weights must be "
            "finite and at least 0."
        )
    if not weights.any():
        raise ValueError(
            "sample_weight is zero for every image, so the accuracy is undefined. Pass a weight "
            "above 0 for at least one image."
        )
    return weights
