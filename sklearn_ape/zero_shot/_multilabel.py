"""Multi-label zero-shot classification of images by the names of the labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, _safe_indexing, indexable
from sklearn.utils.validation import check_is_fitted

from ..aligners.pairs import as_sequence, flatten_captions, holds_texts, renumber_errors
from ..aligners.similarity import LogitTiles, warn_unreadable
from ..encoders.items import EncodingError
from ..persistence.mixins import FittedState
from ..prompts import resolve_flat_names, to_class_array
from ..utils.messages import warn
from ..utils.sklearn_compat import (
    FitContext,
    check_cv,
    restored_on_failure,
    validate_weights,
    with_callbacks,
)
from ..utils.validation import check_number, check_same_length, format_list, ignores_underflow
from ._base import NOT_FITTED, ZeroShotBase, warn_about_numbers
from ._multilabel_targets import (
    as_table_or_rows,
    check_is_ordered,
    check_prevalence,
    collect_labels,
    collect_prompts,
    find_default_thresholds,
    find_f1_thresholds,
    list_splits,
    to_indicator,
    warn_about_order,
)


@dataclass(eq=False, repr=False)
class MultiLabelZeroShotClassifier(ZeroShotBase):
    """Predict every label whose name is similar enough to the image: none, one or several.

    Each label has its own threshold. `fit_thresholds` and `fit` select the threshold with the
    highest F1 score [1]_ on labelled images. Before, the threshold of a label is the score that a
    fraction `prevalence` of reference images exceed.

    Parameters
    ----------
    labels : sequence of str, mapping or None, default=None
        Names of the labels, or a mapping with the names to embed for each label; see
        `ZeroShotClassifier`. The columns of Y and of all results are in this order. If `labels`
        is None, `fit` takes the labels of Y.
    aligner : estimator, str or None, default=None
        Aligner, or a Pipeline that ends in one; see `ZeroShotClassifier`. None is the starter
        model, which `fit` does not train.
    templates : str or sequence of str, default="simple"
        Sentences that a name is put into, or the name of a set of templates; see
        `ZeroShotClassifier`.
    prevalence : float or mapping, default=0.1
        Fraction of images to which a label applies, or a mapping from labels to fractions. Without
        fitted thresholds, a label is predicted for this fraction of the images that `standardize`
        compares with.
    shrinkage : float, default=5.0
        Strength of the shrinkage of fitted thresholds to the threshold that is best for all labels
        together, as a number of positive examples. 0 disables it.
    cv : int, splitter or iterable, default=3
        Number of folds, or splits, in which `fit` fits an unfitted aligner, so that thresholds are
        learned from images that the aligner was not fitted on. The test sets must contain each
        image once. For a splitter that needs groups, pass a list of its splits, such as
        ``list(GroupKFold(3).split(X, groups=groups))``. The final aligner is fitted on all images.
    logit_scale : float or None, default=None
        Logit scale: factor of the cosines in `decision_function` and `predict_proba`; see
        `ZeroShotClassifier`.
    standardize : bool or collection of images or features, default=True
        Whether cosines are standardized by the cosines of a bank of images and captions; see
        `ZeroShotClassifier`. Thresholds that are not fitted also come from these images; pass
        some of the images to label, if possible. Call `fit` again if it was set after `fit`. With
        an aligner without training images (`CLIPAligner`), True stands for the images passed to
        `fit` or `fit_thresholds`, at most 1,000 of them.

    Attributes
    ----------
    labels_ : ndarray of shape (n_labels,)
        Labels of the columns.
    thresholds_ : ndarray of shape (n_labels,)
        Fitted thresholds of the standardized cosines, in the order of `labels_`. Each label keeps
        its threshold if the order of ``labels`` is changed after `fit` or labels are left out.
    classes_ : ndarray of shape (n_labels, 2)
        ``[0, 1]`` for each label.
    aligner_ : estimator
        Fitted aligner.
    n_features_in_ : int
        Number of features of X, if X is features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the aligner was fitted on a table with column names.

    See Also
    --------
    ZeroShotClassifier : Predicts one label per image.

    Notes
    -----
    Labels differ in how similar they are to images in general, so cosines of several labels with
    an image are comparable only if they are standardized, which is the default.

    The subset accuracy of `score` is a strict measure. `sklearn.metrics.f1_score` with
    ``average="samples"`` or ``"macro"`` and `average_precision_score` are more informative.
    scikit-learn cross-validates tables of zeros and ones, not lists of labels: convert lists with
    `sklearn.preprocessing.MultiLabelBinarizer` and ``classes=labels``. `CalibratedClassifierCV`
    does not support several labels.

    References
    ----------
    .. [1] Z. C. Lipton, C. Elkan and B. Narayanaswamy, "Optimal Thresholding of Classifiers to
       Maximize F1 Measure", ECML PKDD 2014.

    Examples
    --------
    >>> from sklearn_ape import MultiLabelZeroShotClassifier
    >>> from sklearn_ape.datasets import load_openmoji
    >>> data = load_openmoji()
    >>> images = [data.images[data.captions.index(name)] for name in ("dog", "pizza", "rocket")]
    >>> classifier = MultiLabelZeroShotClassifier(["an animal", "food", "a dog"])
    >>> classifier.predict(images).shape
    (3, 3)
    >>> sorted(classifier.predict_sets(images[:1])[0])
    ['a dog', 'an animal']
    """

    _shown_properties = ("labels_", "thresholds_")
    # Fitted thresholds are of cosines that are standardized by the same images.
    _fit_only = ("aligner", "standardize")
    _purpose = "Says all the labels that hold for an image, by its cosine with the labels' names."

    labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None = None
    _: KW_ONLY
    aligner: BaseEstimator | str | None = None
    templates: str | Sequence[str] = "simple"
    prevalence: float | Mapping[Any, float] = 0.1
    shrinkage: float = 5.0
    cv: Any = 3
    logit_scale: float | None = None
    standardize: Any = True

    @with_callbacks
    def fit(self, X: Any, Y: Any, captions: Any = None) -> Self:
        """Fit a threshold for each label, and a clone of the aligner unless it is kept.

        The starter model (``aligner=None``), a named model, a fitted aligner and an aligner in
        `FrozenEstimator` are kept unchanged: only the labels and their thresholds are learned.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images, or features if the aligner takes features.
        Y : array-like or DataFrame of shape (n_samples, n_labels), or list of label sets
            Labels of each image, in one of these forms:

            - a DataFrame of pandas, polars or pyarrow with zeros and ones, or one dict per image.
              Columns and keys must be the labels, in any order. They are matched by equality:
              1, 1.0 and True are the same name, and "1" is another.
            - an array, a sparse matrix or a list of lists of zeros and ones, with columns in the
              order of the labels.
            - a list with the labels of each image, in a set, a tuple or a list.

            Lists are read as zeros and ones when each has one value per label and all values are
            0 or 1, even if 0 and 1 are labels. Pass sets or tuples of such labels instead.
        captions : sequence of length n_samples or None, default=None
            Captions to fit the aligner on. None takes the prompts of the labels of each image. If
            the aligner is kept, captions are not used, and a warning says so.

        Returns
        -------
        self : object
            The fitted classifier.

        Raises
        ------
        ValueError
            If a parameter or Y is invalid, or no image has a label on which an unfitted aligner
            could be trained.
        """
        with restored_on_failure(self):
            return self._fit(X, Y, captions)

    def fit_thresholds(self, X: Any, Y: Any) -> Self:
        """Fit the thresholds only; the aligner must be fitted and stays unchanged.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features that the aligner was preferably not fitted on.
        Y : array-like or DataFrame of shape (n_samples, n_labels), or list of label sets
            Labels of each image, in one of the forms that `fit` takes.

        Returns
        -------
        self : object
            The classifier with fitted thresholds.
        """
        self._check_ready(allow_changes=True)
        table = to_indicator(Y, self._list_labels())
        check_same_length(X=X, Y=table)
        with restored_on_failure(self):
            self._set_reference(X)
            margins = self._compute_margins(self._get_aligner_in_use(), X)
            self._fit_label_thresholds(table, margins)
            self._note_fit()
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute the scaled cosine of each image with each label, minus the label's threshold.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_labels)
            A label is predicted if its score is above 0. NaN for images that could not be read.
        """
        self._check_ready()
        aligner = self._get_aligner_in_use()
        # Thresholds are of cosines, so the scale comes last.
        scores = self._compute_margins(aligner, X, self._get_thresholds())
        scores *= self._resolve_scale(aligner)
        return scores

    @ignores_underflow
    def predict_proba(self, X: Any) -> np.ndarray:
        """Compute the probability of each label, independently of the other labels.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_labels)
            The probability is 0.5 at the threshold. Rows do not sum to 1.
        """
        return expit(self.decision_function(X))

    def predict(self, X: Any) -> np.ndarray:
        """Predict which labels hold for each image.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        table : ndarray of shape (n_samples, n_labels) and dtype int
            1 for labels that hold, and 0 for all other labels.
        """
        scores = self.decision_function(X)
        unreadable = np.flatnonzero(np.isnan(scores[:, 0]))
        warn_unreadable(unreadable, len(scores), "get no label")
        return (scores > 0).astype(int)

    def predict_sets(self, X: Any) -> list[tuple[Any, ...]]:
        """Predict the labels of each image as a tuple.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        labels : list of tuple
            Labels that hold, in the order of `labels_`. A tuple is empty if no label holds.
        """
        labels = self._list_labels()
        return [tuple(labels[column] for column in np.flatnonzero(row)) for row in self.predict(X)]

    def score(self, X: Any, Y: Any, sample_weight: Any = None) -> float:
        """Compute the subset accuracy: the fraction of images whose labels are all correct.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.
        Y : array-like or DataFrame of shape (n_samples, n_labels), or list of label sets
            True labels, in one of the forms that `fit` takes.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images.

        Returns
        -------
        accuracy : float
            Accuracy between 0 and 1.
        """
        check_is_fitted(self, msg=NOT_FITTED)
        truth = to_indicator(Y, self._list_labels())
        check_same_length(X=X, Y=truth, sample_weight=sample_weight)
        weights = validate_weights(sample_weight, len(truth))
        scores = self.decision_function(X)
        is_hit = ((scores > 0) == truth).all(axis=1) & ~np.isnan(scores[:, 0])
        return float(np.average(is_hit, weights=weights))

    @property
    def labels_(self) -> np.ndarray:
        """Labels of the columns."""
        return to_class_array(self._list_labels())

    @property
    def thresholds_(self) -> np.ndarray:
        """Thresholds of the standardized cosines, in the order of the columns."""
        thresholds = self._get_thresholds()
        if thresholds is None:
            raise AttributeError(
                f"{type(self).__name__} has no thresholds_ before fit or fit_thresholds."
            )
        thresholds.flags.writeable = False  # writing to this copy would have no effect
        return thresholds

    @property
    def classes_(self) -> np.ndarray:
        """Values of each column: 0 and 1."""
        # scikit-learn's scorers recognize several labels by this shape. They would interpret an
        # array of two labels as two classes.
        return np.tile([0, 1], (len(self.labels_), 1))

    def _fit(self, X: Any, Y: Any, captions: Any) -> Self:
        self._check_fit_parameters()
        Y = as_table_or_rows(Y)
        names, table = self._read_targets(Y)
        check_same_length(X=X, Y=table, captions=captions)
        if captions is not None:
            captions = as_sequence(captions, "captions")
            if holds_texts(captions):
                flatten_captions(captions)  # an error names the row of a missing or empty caption
        self._names = names
        for name in ("_reference", "_thresholds"):
            self.__dict__.pop(name, None)
        if self._keeps_aligner():
            context = FitContext(self, 0, X, Y)
            self.aligner_ = self._get_kept_aligner(captions)
            self._set_reference(X)
            margins = self._compute_margins(self.aligner_, X)
        else:
            splits = list_splits(self.cv, X, table)
            context = FitContext(self, len(splits) + 1, X, Y)
            if captions is None:
                self._warn_if_fit_was_lost()
                captions = collect_prompts(table, list(self._make_prompts().values()))
            elif not hasattr(captions, "iloc"):
                captions = list(captions)
            X, captions = indexable(X, captions)
            # The first fit is on all images, since errors and warnings name its rows.
            self.aligner_ = self._fit_on_captioned(X, captions, context)
            margins = self._compute_held_out_margins(splits, X, captions, context)
        self._fit_label_thresholds(table, margins)
        self._note_fit()
        context.end()
        return self

    def _read_targets(self, Y: Any) -> tuple[dict[Any, list[str]], np.ndarray]:
        """Return the names of the labels, and Y as zeros and ones."""
        names = resolve_flat_names(collect_labels(Y) if self.labels is None else self.labels)
        if self.labels is None:
            warn_about_numbers("Y", names)
        table = to_indicator(Y, list(names))
        warn_about_order(Y, list(names))
        return names, table

    def _list_labels(self) -> list[Any]:
        names = self._resolve_names()
        if names is None:
            raise AttributeError(f"{type(self).__name__} has no labels_ before fit.")
        return list(names)

    def _compute_margins(
        self, aligner: BaseEstimator, X: Any, thresholds: np.ndarray | None = None
    ) -> np.ndarray:
        """Return standardized cosines minus thresholds; None stands for the default ones."""
        if thresholds is None:
            self._check_has_bank(aligner)
        logits = self._make_logits(aligner, scale=1.0)
        margins = logits.collect(X)
        margins -= self._compute_default_thresholds(logits) if thresholds is None else thresholds
        return margins

    def _compute_held_out_margins(
        self, splits: list[Any], X: Any, captions: Any, context: FitContext
    ) -> np.ndarray:
        """Return the margins of each image, by an aligner that was not fitted on it."""
        margins = np.empty((len(captions), len(self.labels_)))
        for train, test in splits:
            X_train, train_captions = _safe_indexing(X, train), _safe_indexing(captions, train)
            # The fit on all images gives the same warnings. Here they would name rows of a fold.
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                aligner = self._fit_on_captioned(X_train, train_captions, context)
                margins[test] = self._compute_margins(aligner, _safe_indexing(X, test))
        return margins

    def _fit_on_captioned(self, X: Any, captions: Any, context: FitContext) -> Any:
        """Fit a clone of the aligner on the images that have a caption."""
        captioned = [row for row, caption in enumerate(list(captions)) if len(caption)]
        if not captioned:
            raise ValueError(
                f"Y has no label for any of {len(captions)} images that the aligner would be "
                "trained on. Pass labels of more images, captions, or a fitted aligner."
            )
        if len(captioned) == len(captions):
            return self._fit_aligner(X, captions, context)
        X, captions = _safe_indexing(X, captioned), _safe_indexing(captions, captioned)
        try:
            return self._fit_aligner(X, captions, context)
        except EncodingError as error:
            raise renumber_errors(error, captioned, "image") from None

    def _fit_label_thresholds(self, table: np.ndarray, margins: np.ndarray) -> None:
        readable = ~np.isnan(margins[:, 0])
        if not table[readable].any():
            warn("Y has no label for any image, so the thresholds keep their default values.")
        offsets = find_f1_thresholds(table[readable], margins[readable], self.shrinkage)
        logits = self._make_logits(self._get_aligner_in_use(), scale=1.0)
        self._set_thresholds(self._compute_default_thresholds(logits) + offsets)

    def _set_thresholds(self, thresholds: np.ndarray) -> None:
        self._prompts_of_thresholds = self._make_prompts()
        self._thresholds = dict(zip(self._list_labels(), thresholds.tolist(), strict=True))

    def _get_thresholds(self) -> np.ndarray | None:
        """Return the fitted thresholds in the order of the labels, or None before `fit`."""
        if not hasattr(self, "_thresholds"):
            return None
        labels = self._list_labels()
        unfitted = [label for label in labels if label not in self._thresholds]
        if unfitted:
            raise ValueError(
                f"labels has {format_list(unfitted)}, for which no threshold was fitted. Call fit "
                "or fit_thresholds again after changing labels."
            )
        prompts, fitted_prompts = self._make_prompts(), self._prompts_of_thresholds
        changed = [label for label in labels if prompts[label] != fitted_prompts[label]]
        if changed:
            raise ValueError(
                f"labels or templates give {format_list(changed)} other texts than those for "
                "which thresholds were fitted. Call fit or fit_thresholds again."
            )
        return np.array([self._thresholds[label] for label in labels])

    def _compute_default_thresholds(self, logits: LogitTiles) -> np.ndarray:
        """Return for each label the score that a fraction `prevalence` of the bank exceeds."""
        if logits.standardizer is None:  # thresholds need a bank also without standardization
            bank = self._resolve_bank(True, logits.aligner)
        else:
            bank = logits.standardizer.bank
        assert bank is not None
        scores = logits.compute(bank.image)
        return find_default_thresholds(scores, self.prevalence, logits.classes.tolist())

    def _get_state(self) -> dict[str, Any]:
        return super()._get_state() | {
            "reference": getattr(self, "_reference", None),
            "thresholds": self._get_thresholds(),
        }

    def _set_state(self, state: FittedState) -> None:
        super()._set_state(state)
        if "reference" in state:
            self._reference = state.array("reference", (None, None))
        if "thresholds" in state:
            self._set_thresholds(state.array("thresholds", (len(self._list_labels()),)))

    def _describe_limit(self) -> str:
        return "Thresholds suit images like those that they were fitted on."

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_prevalence(self.prevalence)
        check_number(self.shrinkage, "shrinkage", 0, closed="both")
        check_cv(self.cv)
        check_is_ordered(self.labels)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        tags.target_tags.two_d_labels = True
        return tags
