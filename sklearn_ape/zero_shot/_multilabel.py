"""Find all the labels that hold for an image, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.model_selection import KFold
from sklearn.utils import Tags, _safe_indexing, check_consistent_length, indexable

from ..aligners.similarity import LogitTiles, resolve_bank
from ..aligners.wrapper import unwrap_aligner
from ..persistence import FittedState
from ..prompts import class_array, names_of, prompts_of, resolve_templates
from ..utils.sklearn_compat import FitContext, with_callbacks
from ..utils.validation import format_list, ignores_underflow
from ..utils.warnings import warn
from ._base import ZeroShotBase
from ._multilabel_targets import (
    as_table_or_rows,
    check_prevalence,
    fit_thresholds,
    indicator,
    labels_in,
    shares_of,
)

__all__ = ["MultiLabelZeroShotClassifier"]


class MultiLabelZeroShotClassifier(ClassifierMixin, ZeroShotBase):
    """Predict every label whose name is near enough to the image: none, one or several.

    Each label has a threshold of its own. Without examples it is what a given share of other
    images exceed; `fit_thresholds` learns it from some.

    Parameters
    ----------
    labels : sequence of str, mapping or None, default=None
        Names of the labels, or what each is embedded as; see `ZeroShotClassifier`. The columns of
        Y and of all answers are in this order. None takes them from Y in `fit`.
    aligner : estimator, str or None, default=None
        See `ZeroShotClassifier`. None is the starter model, which `fit` does not train.
    templates : str or sequence of str, default="simple"
        See `ZeroShotClassifier`.
    prevalence : float or mapping, default=0.1
        Share of images that a label holds for, or a mapping of labels to shares: without
        fitted thresholds, as many of the images that `standardize` compares with are above it.
        Where those were chosen for the labels it should be higher.
    shrinkage : float, default=5.0
        Positive examples of a label that count as much as all labels' common threshold when
        thresholds are fitted. 0 gives each label its own best one.
    cv : int, default=3
        `fit` learns thresholds from images that the aligner was not fitted on: it is fitted on
        so many folds, and once on all.
    logit_scale : float or None, default=None
        See `ZeroShotClassifier`.
    standardize : bool or collection of images or features, default=True
        See `ZeroShotClassifier`. The images compared with also give the thresholds; pass some
        of those to be labelled, if there are.

    Attributes
    ----------
    labels_ : ndarray of shape (n_labels,)
        Labels of the columns.
    thresholds_ : ndarray of shape (n_labels,)
        Fitted thresholds of the standardized cosines, in the order of `labels_`. Each label keeps
        its own threshold when the order of ``labels`` is changed after `fit` or labels are left
        out. A label without a threshold raises an error.
    classes_ : ndarray of shape (n_labels, 2)
        ``[0, 1]`` for each label.
    aligner_ : estimator
        The aligner used.
    n_features_in_ : int
        Width of the features, where X is features.

    See Also
    --------
    ZeroShotClassifier : One label per image.

    Notes
    -----
    A raw cosine says little about whether one label holds: it depends on the label how similar it
    is to any image. So cosines are standardised unless told otherwise.

    `score` is scikit-learn's for several labels: the share of images whose labels are all
    right, which is hard. `sklearn.metrics.f1_score` with ``average="samples"`` or ``"macro"`` and
    `average_precision_score` see more. scikit-learn cross-validates tables of zeros and ones, not
    lists of labels: use `sklearn.preprocessing.MultiLabelBinarizer` there, with
    ``classes=labels``. Its `CalibratedClassifierCV` has no notion of several labels.

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
    _says = "all the labels that hold for an image, by its cosine with the labels'"

    def __init__(
        self,
        labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None = None,
        *,
        aligner: Any = None,
        templates: str | Sequence[str] = "simple",
        prevalence: float | Mapping[Any, float] = 0.1,
        shrinkage: float = 5.0,
        cv: int = 3,
        logit_scale: float | None = None,
        standardize: Any = True,
    ) -> None:
        self.labels = labels
        self.aligner = aligner
        self.templates = templates
        self.prevalence = prevalence
        self.shrinkage = shrinkage
        self.cv = cv
        self.logit_scale = logit_scale
        self.standardize = standardize

    @with_callbacks
    def fit(self, X: Any, Y: Any, captions: Any = None) -> Self:
        """Fit a threshold for each label, and a clone of the aligner unless it is kept.

        The starter model (``aligner=None``), a named model, a fitted aligner and an aligner in
        `FrozenEstimator` are kept as they are: only the labels and their thresholds are learned.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            What the aligner takes.
        Y : array-like or DataFrame of shape (n_samples, n_labels), or list of label sets
            The labels of every image, in one of these forms:

            - a DataFrame of pandas, polars or pyarrow with zeros and ones, or one dict per image.
              Columns and keys must be the labels, in any order. They are matched by equality:
              1, 1.0 and True are the same name, and "1" is another.
            - an array, a sparse matrix or a list of lists of zeros and ones, with columns in the
              order of the labels.
            - a list with the labels of every image, in a set, a tuple or a list.

            Lists are read as zeros and ones when each has one value per label and all values are
            0 or 1, even if 0 and 1 are labels. Pass sets or tuples of such labels instead.
        captions : sequence of length n_samples or None, default=None
            What the aligner is fitted on. None takes the labels of each image, put through the
            templates. If the aligner is kept, captions are not used, and a warning says so.

        Returns
        -------
        self : object
            The fitted classifier.
        """
        self._check_parameters()
        Y = as_table_or_rows(Y)
        names = names_of(labels_in(Y) if self.labels is None else self.labels)
        if self.labels is None and not all(isinstance(label, str) for label in names):
            warn(
                "The labels in Y are numbers, so the texts '0', '1', ... are embedded for them. "
                "Pass labels={0: 'cat', 1: 'dog', ...} to name them.",
            )
        table = indicator(Y, list(names))
        check_consistent_length(X, table, captions)
        self._names = names
        self.__dict__.pop("_thresholds", None)
        if self._is_kept():
            progress = FitContext(self, 0, X, Y)
            self.aligner_ = self._kept_aligner(captions)
            distances = self._distances(self.aligner_, X)
        else:
            progress = FitContext(self, self.cv + 1, X, Y)
            if captions is None:
                captions = self._prompts(table, names)
            elif not hasattr(captions, "iloc"):
                captions = list(captions)
            X, captions = indexable(X, captions)
            distances = self._held_out_distances(X, captions, progress)
            self.aligner_ = self._fit_on_described(X, captions, progress)
        self._keep_thresholds(table, distances)
        self._note_fit()
        progress.end()
        return self

    def fit_thresholds(self, X: Any, Y: Any) -> Self:
        """Fit the thresholds alone; the aligner stays, and must be fitted.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Better not those that the aligner was fitted on.
        Y : array-like or DataFrame of shape (n_samples, n_labels), or list of label sets
            See `fit`.

        Returns
        -------
        self : object
            The classifier.
        """
        aligner = self._ready_aligner(as_at_fit=False)
        table = indicator(Y, self._label_list())
        distances = self._distances(aligner, X)
        check_consistent_length(distances, table)
        self._keep_thresholds(table, distances)
        self._note_fit()
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scaled cosine of every image with every label, less the label's threshold.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_labels)
            Above 0 the label is predicted. NaN for images that could not be read.
        """
        aligner = self._ready_aligner()
        thresholds = self._fitted_thresholds()
        logits = self._logits_by(aligner, scale=1.0)
        scores = _cosines(logits, X)
        scores -= self._defaults(logits) if thresholds is None else thresholds
        scores *= self._scale_by(aligner)
        return scores

    @ignores_underflow
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of every label, each for itself.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_labels)
            One half at the threshold; rows do not sum to 1.
        """
        return expit(self.decision_function(X))

    def predict(self, X: Any) -> np.ndarray:
        """Say of every image which labels hold.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.

        Returns
        -------
        table : ndarray of shape (n_samples, n_labels) and dtype int
            Zeros and ones.
        """
        scores = self.decision_function(X)
        unread = np.flatnonzero(np.isnan(scores[:, 0]))
        if unread.size:
            warn(
                f"{len(unread)} images could not be read and are given no label: rows "
                f"{format_list(unread, str)}.",
            )
        return (scores > 0).astype(int)

    def predict_sets(self, X: Any) -> list[tuple[Any, ...]]:
        """Name the labels of every image.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.

        Returns
        -------
        labels : list of tuple
            In the order of `labels_`; an empty one where no label holds.
        """
        names = self._label_list()
        return [tuple(names[column] for column in np.flatnonzero(row)) for row in self.predict(X)]

    def score(self, X: Any, Y: Any, sample_weight: Any = None) -> float:
        """Share of the images whose labels are all right.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes.
        Y : array-like or DataFrame of shape (n_samples, n_labels), or list of label sets
            See `fit`.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images.

        Returns
        -------
        accuracy : float
            Between 0 and 1.
        """
        self._ready_aligner()
        truth = indicator(Y, self._label_list())
        return float(accuracy_score(truth, self.predict(X), sample_weight=sample_weight))

    @property
    def labels_(self) -> np.ndarray:
        """Labels of the columns."""
        return class_array(self._label_list())

    @property
    def thresholds_(self) -> np.ndarray:
        """Thresholds of the standardized cosines, in the order of the columns."""
        thresholds = self._fitted_thresholds()
        if thresholds is None:
            raise AttributeError(
                f"{type(self).__name__} has no thresholds_ before fit or fit_thresholds."
            )
        thresholds.flags.writeable = False  # it is a copy: writing to it would have no effect
        return thresholds

    @property
    def classes_(self) -> np.ndarray:
        """What each column may hold."""
        # By its form scikit-learn's scorers know several labels, two of them not being classes.
        return np.tile([0, 1], (len(self.labels_), 1))

    def _label_list(self) -> list[Any]:
        """Return the labels as they were given, in the order of the columns."""
        names = self._names_now()
        if names is None:
            raise AttributeError(f"{type(self).__name__} has no labels_ before fit.")
        return list(names)

    def _distances(self, aligner: Any, X: Any) -> np.ndarray:
        """Return standardised cosines less the default thresholds."""
        logits = self._logits_by(aligner, scale=1.0)
        distances = _cosines(logits, X)
        distances -= self._defaults(logits)
        return distances

    def _held_out_distances(self, X: Any, captions: Any, progress: FitContext) -> np.ndarray:
        """Return distances of every image by an aligner that did not see it."""
        distances = np.empty((len(captions), len(self.labels_)))
        folds = KFold(self.cv, shuffle=True, random_state=0).split(distances)
        for train, test in folds:
            some = _safe_indexing(X, train), _safe_indexing(captions, train)
            aligner = self._fit_on_described(*some, progress)
            distances[test] = self._distances(aligner, _safe_indexing(X, test))
        return distances

    def _fit_on_described(self, X: Any, captions: Any, progress: FitContext) -> Any:
        """Fit a clone of the aligner on the images that have a caption."""
        described = [row for row, some in enumerate(list(captions)) if len(some)]
        if len(described) < len(captions):
            X, captions = _safe_indexing(X, described), _safe_indexing(captions, described)
        return self._fit_aligner(X, captions, progress)

    def _prompts(self, table: np.ndarray, names: dict[Any, list[str]]) -> list[list[str]]:
        templates = resolve_templates(self.templates)
        prompts = [prompts_of(label, some, templates) for label, some in names.items()]
        return [[text for column in np.flatnonzero(row) for text in prompts[column]]
                for row in table]  # fmt: skip

    def _keep_thresholds(self, table: np.ndarray, distances: np.ndarray) -> None:
        read = ~np.isnan(distances[:, 0])
        beyond = fit_thresholds(table[read], distances[read], self.shrinkage)
        logits = self._logits_by(self._fitted_aligner(), scale=1.0)
        self._keep(self._defaults(logits) + beyond)

    def _keep(self, thresholds: np.ndarray) -> None:
        self._thresholds = dict(zip(self._label_list(), thresholds.tolist(), strict=True))
        self._thresholds_are_standardized = self._is_standardized()

    def _is_standardized(self) -> bool:
        is_flag = isinstance(self.standardize, bool | np.bool_)
        return not is_flag or bool(self.standardize)

    def _fitted_thresholds(self) -> np.ndarray | None:
        """Return the thresholds in the order of the labels, or None where none were fitted."""
        if not hasattr(self, "_thresholds"):
            return None
        labels = self._label_list()
        new = [label for label in labels if label not in self._thresholds]
        if new:
            raise ValueError(
                f"labels has {format_list(new)}, for which no threshold was fitted. Call fit or "
                "fit_thresholds again after changing labels."
            )
        if self._is_standardized() != self._thresholds_are_standardized:
            raise ValueError(
                f"standardize is {self._is_standardized()}, and thresholds were fitted with "
                f"standardize={self._thresholds_are_standardized}, which gives cosines of another "
                "scale. Call fit or fit_thresholds again after changing standardize."
            )
        return np.array([self._thresholds[label] for label in labels])

    def _defaults(self, logits: LogitTiles) -> np.ndarray:
        """Return what the given share of the images compared with exceed."""
        # Cosines that are not standardised have a threshold, too.
        standardize = True if self.standardize is False else self.standardize
        texts = unwrap_aligner(logits.aligner)
        bank = resolve_bank(standardize, texts, logits.aligner.transform, whole=logits.aligner)
        assert bank is not None
        shares = shares_of(self.prevalence, logits.classes.tolist())
        scores = zip(logits.of_embeddings(bank.image).T, shares, strict=True)
        return np.array([np.quantile(some, 1 - share) for some, share in scores])

    def _get_state(self) -> dict[str, Any]:
        return {**super()._get_state(), "thresholds": self._fitted_thresholds()}

    def _set_state(self, state: FittedState) -> None:
        super()._set_state(state)
        if "thresholds" in state:
            self._keep(state.array("thresholds", (len(self._label_list()),)))
        state.optional("thresholds")

    def _limit(self) -> str:
        return "Thresholds are right for images like those that they were taken from."

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_prevalence(self.prevalence)
        if not self.shrinkage >= 0:
            raise ValueError(f"shrinkage must be at least 0, not {self.shrinkage!r}.")
        if not isinstance(self.cv, int | np.integer) or self.cv < 2:
            raise ValueError(f"cv must be an integer of at least 2, not {self.cv!r}.")
        if isinstance(self.labels, set | frozenset):
            raise ValueError(
                "labels is a set, whose order, and so that of the columns, differs from run to "
                "run. Pass a list, sorted(labels)."
            )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        tags.target_tags.two_d_labels = True
        return tags


def _cosines(logits: LogitTiles, X: Any) -> np.ndarray:
    return logits.collect(X, lambda some: (some,))[0]
