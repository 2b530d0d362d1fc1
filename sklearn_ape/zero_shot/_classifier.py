"""Zero-shot classification of images by the names of the classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from traceback import walk_stack
from typing import Any, Self

from sklearn.base import BaseEstimator

from ..prompts import (
    check_in_labels,
    check_not_groups,
    may_be_encoded,
    prompts_of,
    resolve_class_names,
    resolve_flat_names,
    resolve_templates,
    validate_y,
)
from ..utils.messages import warn
from ..utils.sklearn_compat import FitContext, with_callbacks
from ..utils.validation import check_same_length
from ._base import warn_about_numbers
from ._single_label import SingleLabelClassifier


@dataclass(eq=False, repr=False)
class ZeroShotClassifier(SingleLabelClassifier):
    """Predict the class whose name, embedded as text, is most similar to the image.

    Names are inserted into prompt templates, and images are compared by cosine similarity, as with
    CLIP [1]_.

    Parameters
    ----------
    labels : sequence of str, mapping or None, default=None
        Names of the classes: texts, numbers or booleans. A mapping gives the names to embed for
        each class, and None stands for the label itself: ``{"vehicle": ["car", "bus"], "animal":
        ["cat", "dog"]}`` or ``{0: "cat", 1: "dog"}``. A name that contains ``{}`` is a template of
        its class alone. Classes within classes are a hierarchy: ``{"animal": {"bird": None,
        "fish": ["fish", "shark"]}}``. If `labels` is None, `fit` takes the distinct values of y.
    aligner : estimator, str or None, default=None
        Aligner such as `APEAligner`, or a Pipeline that ends in one. With a fitted aligner the
        classifier can predict without `fit`; an unfitted aligner is trained by `fit`. The name of
        a CLIP model, ``"open_clip:ViT-B-32/openai"``, stands for a `CLIPAligner`. None is the
        starter model of the package, for EfficientNet-Lite0 and MiniLM.
    templates : str or sequence of str, default="simple"
        Sentences in which ``{}`` is replaced by a name, or the name of a set of templates in
        `sklearn_ape.prompts.TEMPLATES`. The embeddings of the sentences of a class are averaged.
        ``"none"`` embeds names without a template, which suits names that are sentences.
    threshold : float or None, default=None
        Probability in [0, 1]. An image whose highest probability is below the threshold is
        predicted as `unknown_label`, or, with a hierarchy of labels, as a group of classes that
        reaches the threshold; see `predict`. None disables the threshold.
    unknown_label : object, default="unknown"
        Label predicted for images below the threshold, and for images that an encoder with
        ``on_error="nan"`` could not read.
    class_prior : mapping, sequence of float or None, default=None
        Known shares of the classes among the images to classify, as a mapping from classes to
        shares or in the order of `classes_`; their sum must be 1. Their logarithms are added to
        the logits. None makes no assumption; shares that are only guessed reduce the accuracy.
    logit_scale : float or None, default=None
        Logit scale: factor of the cosines in `decision_function` and `predict_proba`, from 1e-30
        to 1e30. A larger logit scale gives more confident probabilities. None takes that of the
        aligner.
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
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the aligner was fitted on a table with column names.
    levels_ : list of ndarray
        Labels at each level of a hierarchy of labels, from the coarsest to the finest.

    See Also
    --------
    FewShotClassifier : Uses a few labelled images in addition to the names.
    APEAligner : Trains an aligner for this classifier.
    sklearn_ape.prompts : The sets of templates.

    Notes
    -----
    `fit` does not learn a decision boundary between the classes. If the aligner is fitted, in
    `sklearn.frozen.FrozenEstimator`, a name or None, `fit` only validates y and learns the
    classes. Otherwise it trains a clone of the aligner, on captions or on the names of the labels
    in y. Cross-validation and searches clone estimators, so they train a fitted aligner again in
    every fold, unless it is in `FrozenEstimator`.

    Within `VotingClassifier`, `StackingClassifier`, `BaggingClassifier` and other meta-estimators
    that replace the labels in y by their numbers, labels must be the numbers 0, 1, ..., one for
    each class in y. The page "Cross-validation, groups, weights, scorers and meta-estimators" of
    the documentation lists what works.

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

    labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None = None
    _: KW_ONLY
    aligner: BaseEstimator | str | None = None
    templates: str | Sequence[str] = "simple"
    threshold: float | None = None
    unknown_label: Any = "unknown"
    class_prior: Mapping[Any, float] | Sequence[float] | None = None
    logit_scale: float | None = None
    standardize: Any = False

    @with_callbacks
    def fit(self, X: Any, y: Any = None, captions: Any = None) -> Self:
        """Learn the classes, and train a clone of the aligner if it is not fitted.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images, or features if the aligner takes features.
        y : sequence of length n_samples or None, default=None
            Label of each image, which must be one of `labels` unless that is None. An unfitted
            aligner is trained on the prompts of these labels, unless there are captions. With
            `labels` and a fitted aligner, images of no class may have the label `unknown_label`.
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
            If y holds values that are not labels, or if the aligner is kept and the numbers in
            y may be those of a meta-estimator.

        Warns
        -----
        UserWarning
            If a clone of a fitted aligner, as cross-validation makes it, is trained on y.
        """
        self._check_fit_parameters()
        keeps_aligner = self._keeps_aligner()
        context = FitContext(self, 0 if keeps_aligner else 1, X, y)
        check_same_length(X=X, y=y, captions=captions)
        needs_y = self.labels is None or (captions is None and not keeps_aligner)
        values = validate_y(y) if needs_y or y is not None else None
        names = self._fit_names(values, learns_from_y=not keeps_aligner)
        if captions is None and not keeps_aligner:
            self._warn_if_fit_was_lost()
        self.aligner_ = self._make_aligner(X, values, names, captions, context)
        self._names = names
        self._note_fit()
        context.end()
        return self

    def _fit_names(self, y: list[Any] | None, learns_from_y: bool) -> dict[Any, list[str]]:
        """Return the names of each class, from labels or from y; y must agree with labels.

        If `fit` learns nothing from y, y may also hold `unknown_label`, and numbers that may be
        those of a meta-estimator raise an error instead of a warning.
        """
        if self.labels is None:
            names = resolve_flat_names(dict.fromkeys(y or ()), "y")
            warn_about_numbers("y", names)
            return names
        names = resolve_class_names(self.labels)
        if y is not None:
            check_not_groups(y, self.labels)
            # With images of no class, a search can choose the threshold of a fitted aligner.
            check_in_labels(y, names, [] if learns_from_y else [self.unknown_label])
            if may_be_encoded(y, names):
                self._report_encoded_labels(y, names, learns_from_y)
        return names

    def _report_encoded_labels(
        self, y: list[Any], names: Mapping[Any, list[str]], learns_from_y: bool
    ) -> None:
        message = (
            f"y holds the numbers from 0 to {max(y)} only, and labels has {len(names)} classes. "
            "Within VotingClassifier and other meta-estimators, which number the labels of y "
            "before they call fit, these numbers may stand for other labels. "
        )
        if not learns_from_y:  # so that fit is not needed
            raise ValueError(
                f"{message}Predict without fit, since the aligner is fitted, or pass labels that "
                "are texts, or only those that y holds."
            )
        warn(
            f"{message}Pass labels that are texts, or only those that y holds, if this "
            "classifier is fitted by a meta-estimator."
        )

    def _make_aligner(
        self, X: Any, y: Any, names: Mapping[Any, list[str]], captions: Any, context: FitContext
    ) -> Any:
        """Return the fitted aligner, or train a clone of it on captions or on the names in y."""
        if self._keeps_aligner():
            return self._get_kept_aligner(captions)
        if captions is None:
            templates = resolve_templates(self.templates)
            prompts = {label: prompts_of(label, names[label], templates) for label in set(y)}
            captions = [prompts[label] for label in y]
        return self._fit_aligner(X, captions, context)

    def __sklearn_clone__(self) -> Self:
        # One-vs-rest and similar meta-estimators replace y by the classes 0 and 1, which may also
        # be labels. Then y does not show that the classes stand for something else, but the caller
        # does. `clone` is called in their own thread, `fit` perhaps in another thread or process.
        callers = (frame.f_globals.get("__name__") for frame, _ in walk_stack(sys._getframe()))
        if "sklearn.multiclass" in callers:
            raise ValueError(
                f"{type(self).__name__} cannot be fitted by OneVsRestClassifier, "
                "OneVsOneClassifier or OutputCodeClassifier, whose binary problems have no names. "
                "Use it directly: it distinguishes any number of classes."
            )
        return super().__sklearn_clone__()
