"""Base class of classifiers that predict one class per image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax

from ..aligners.similarity import (
    UNREADABLE,
    LogitTiles,
    choose_texts,
    choose_top_texts,
    to_probabilities,
    warn_unreadable,
)
from ..prompts import (
    check_in_labels,
    describe_similar_label,
    is_hierarchy,
    resolve_class_names,
    to_class_array,
    validate_y,
)
from ..utils.messages import warn
from ..utils.sklearn_compat import validate_weights
from ..utils.validation import (
    check_count,
    check_number,
    check_same_length,
    format_list,
    ignores_underflow,
    to_builtin,
)
from ._base import Hierarchy, ZeroShotBase
from ._transduction import (
    compute_log_prior,
    convert_class_prior,
    propagate_labels,
    resolve_class_prior,
)


class SingleLabelClassifier(ZeroShotBase):
    """Base class of `ZeroShotClassifier` and `FewShotClassifier`, which define `fit`."""

    _shown_properties = ("classes_",)

    threshold: float | None
    unknown_label: Any
    class_prior: Any

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute the logit of each class for each image.

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
        _warn_about_scores_of_nan(scores)
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
        _warn_about_scores_of_nan(probabilities)
        return probabilities

    @ignores_underflow
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Compute the logarithm of the probability of each class.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
            Natural logarithms of the results of `predict_proba`. They are finite also for
            probabilities that are rounded to 0.
        """
        log_probabilities = log_softmax(self._prepare_logits().collect(X), axis=1)
        _warn_about_scores_of_nan(log_probabilities)
        return log_probabilities

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each image.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Members of `classes_`, or `unknown_label`. With a hierarchy of labels and a threshold,
            the most probable class that reaches the threshold. If there is none, the most
            probable group that reaches it, of those without a smaller group that does.
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
            If k is not an integer from 1 to the number of classes.

        See Also
        --------
        sklearn.metrics.top_k_accuracy_score : How often the true class is among the first k.
        """
        logits = self._prepare_logits()
        check_count(k, "k", len(logits.classes), "classes")
        # Tile by tile: the logits of all images may not fit in memory.
        tiles = [choose_top_texts(tile.logits, int(k)) for tile in logits.iter_tiles(X)]
        codes, probabilities = map(np.concatenate, zip(*tiles, strict=True))
        return self._decode(codes, logits.classes), probabilities

    @ignores_underflow
    def predict_proba_together(self, X: Any) -> np.ndarray:
        """Compute class probabilities of all images of a collection together.

        An image that is hard to classify often has neighbours that are easy to classify. The
        probabilities are propagated along the graph of nearest neighbours in the collection (label
        propagation [1]_). If `class_prior` is set, they are first matched to these shares of the
        classes, which increases the accuracy most. The means of the results are near the shares.

        Up to five images get the results of `predict_proba`. Without `class_prior`, so do
        collections with fewer than about 2.5 images per class, and collections whose images the
        names hardly distinguish.

        Unlike the results of `predict_proba`, these depend on all images of X. No state of the
        classifier is changed.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features of a collection. A few hundred images or more are needed for a gain.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Probabilities in the order of `classes_`. NaN, with a warning, for images that could
            not be read.

        References
        ----------
        .. [1] D. Zhou, O. Bousquet, T. N. Lal, J. Weston and B. Schölkopf, "Learning with Local
           and Global Consistency", NeurIPS 2003.
        """
        probabilities = self._propagate(X)
        _warn_about_scores_of_nan(probabilities)
        return probabilities

    @ignores_underflow
    def predict_together(self, X: Any) -> np.ndarray:
        """Predict the classes of all images of a collection together.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features of a collection; see `predict_proba_together`.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Members of `classes_`, or `unknown_label`, as from `predict`.
        """
        return self._choose_labels(self._propagate(X))[0]

    @ignores_underflow
    def predict_proba_levels(self, X: Any) -> list[np.ndarray]:
        """Compute the probabilities of the nodes at each level of a hierarchy of labels.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        probabilities : list of ndarray of shape (n_samples, n_nodes)
            One array per level of `levels_`, from the coarsest to the finest. The probability of a
            node is the sum over its classes.
        """
        hierarchy = self._get_hierarchy()
        probabilities = self.predict_proba(X)
        return [probabilities @ hierarchy.membership[:, nodes] for nodes in hierarchy.levels]

    def score_levels(self, X: Any, y: Any) -> list[float]:
        """Compute the accuracy at each level of a hierarchy of labels.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.
        y : sequence of length n_samples
            True labels: classes or inner nodes. An image whose label is an inner node is not
            counted at finer levels.

        Returns
        -------
        accuracies : list of float
            Accuracy at each level of `levels_`, from the coarsest to the finest; NaN at levels
            without images.

        Raises
        ------
        ValueError
            If y has labels that are not in the hierarchy.
        """
        hits_by_level = self._iter_hits_by_level(X, y)
        return [float(np.mean(hits)) if hits else np.nan for hits in hits_by_level]

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
        nodes = self._list_nodes(logits.classes)
        # Without a threshold, groups of a hierarchy are never predicted.
        predictable = logits.classes if self.threshold is None else nodes
        expected = {*predictable.tolist(), self.unknown_label}
        absent = [label for label in dict.fromkeys(truth) if label not in expected]
        if absent:
            advice = describe_similar_label(absent[0], predictable.tolist(), "y")
            if set(absent) <= set(nodes.tolist()):
                advice = "Call score_levels for groups."
            warn(
                f"y contains labels that are not in classes_: {format_list(absent)}. They count "
                f"as errors. {advice or 'Correct y, or add them to labels.'}"
            )
        check_same_length(X=X, y=truth, sample_weight=sample_weight)
        weights = validate_weights(sample_weight, len(truth))
        predicted = self._decode(self._predict_codes(logits, X), logits.classes).tolist()
        hits = [label == true_label for label, true_label in zip(predicted, truth, strict=True)]
        return float(np.average(hits, weights=weights))

    @property
    def classes_(self) -> np.ndarray:
        """Classes in sorted order."""
        names = self._resolve_names()
        if names is None:
            raise AttributeError(
                f"{type(self).__name__} has no classes_ before fit when labels=None."
            )
        return to_class_array(names)

    @property
    def levels_(self) -> list[np.ndarray]:
        """Labels of the nodes at each level of a hierarchy, from the coarsest to the finest."""
        hierarchy = self._get_hierarchy()
        return [hierarchy.nodes[nodes] for nodes in hierarchy.levels]

    def _prepare_logits(self, use_prior: bool = True) -> LogitTiles:
        """Check the parameters and the fitted state, and embed the labels."""
        self._check_ready()
        self._check_order_of_shares()
        logits = self._make_class_logits()
        if use_prior and self.class_prior is not None:
            shares = resolve_class_prior(self.class_prior, logits.classes)
            log_prior = compute_log_prior(shares)
            logits.offset = log_prior if logits.offset is None else logits.offset + log_prior
        if len(logits.classes) == 1:
            label = f"{logits.classes[0]!s:.99}"
            warn(
                f"classes_ has only one class, {label}, so every image is predicted as {label}. "
                "Pass at least two labels."
            )
        return logits

    def _check_order_of_shares(self) -> None:
        """Raise ValueError for shares in the order of classes that were changed after `fit`."""
        names = getattr(self, "_names", None)
        is_named = isinstance(convert_class_prior(self.class_prior), Mapping)
        if self.class_prior is None or is_named or names is None or self.labels is None:
            return
        if resolve_class_names(self.labels).keys() != names.keys():
            raise ValueError(
                "class_prior is a sequence in the order of classes_, and labels was changed after "
                "fit. Call fit again, or pass a mapping {label: share}."
            )

    def _make_class_logits(self) -> LogitTiles:
        aligner = self._get_aligner_in_use()
        return self._make_logits(aligner, self._resolve_scale(aligner))

    def _propagate(self, X: Any) -> np.ndarray:
        logits = self._prepare_logits(use_prior=False)
        prior = self.class_prior
        shares = None if prior is None else resolve_class_prior(prior, logits.classes)
        vectors = np.asarray(logits.aligner.transform(X))
        scores = logits.compute(vectors)
        examples = self._get_examples()
        if examples is not None:
            # With image features the vectors are three times as wide, and accuracies the same.
            vectors = vectors[:, : examples[0].shape[1]]
        is_readable = ~np.isnan(scores[:, 0])
        probabilities = np.full(scores.shape, np.nan, scores.dtype)
        if is_readable.any():
            probabilities[is_readable] = propagate_labels(
                vectors[is_readable], scores[is_readable], shares, examples
            )
        return probabilities

    def _get_examples(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return embeddings and class indices of labelled images; None if there are none."""
        return None

    def _resolve_names(self) -> dict[Any, list[str]] | None:
        # scikit-learn's scorers assume that classes are sorted.
        labels = self.labels
        names = super()._resolve_names() if labels is None else resolve_class_names(labels)
        return None if names is None else {label: names[label] for label in sorted(names)}

    def _get_labels(self) -> Any:
        """Return the `labels` that determine the present classes."""
        return self.labels

    def _get_hierarchy(self) -> Hierarchy:
        labels = self._get_labels()
        if not is_hierarchy(labels):
            raise AttributeError(
                f"labels of this {type(self).__name__} is not a hierarchy. Pass classes within "
                "classes: labels={'animal': {'bird': None, 'fish': ['fish', 'shark']}, ...}."
            )
        return Hierarchy.from_labels(labels, self.classes_)

    def _list_nodes(self, classes: np.ndarray) -> np.ndarray:
        """Return the labels that may be predicted: the classes, and nodes of a hierarchy."""
        return self._get_hierarchy().nodes if is_hierarchy(self._get_labels()) else classes

    def _iter_hits_by_level(self, X: Any, y: Any) -> Iterator[list[bool]]:
        """Yield, for each level, whether the images that count there are predicted correctly."""
        hierarchy = self._get_hierarchy()
        check_same_length(X=X, y=y)
        index_of = {label: index for index, label in enumerate(hierarchy.nodes.tolist())}
        truth = validate_y(y)
        check_in_labels(truth, {label: [str(label)] for label in index_of}, in_fit=False)
        paths = [hierarchy.paths[index_of[label]] for label in truth]
        levels = zip(hierarchy.levels, self.predict_proba_levels(X), strict=True)
        for level, (nodes, level_probabilities) in enumerate(levels):
            is_unreadable = np.isnan(level_probabilities[:, 0])
            predicted = nodes[level_probabilities.argmax(axis=1)]
            predicted = np.where(is_unreadable, UNREADABLE, predicted)
            # Classes above this level stand for themselves. Inner nodes count down to their own.
            yield [
                predicted[row] == path[min(level, len(path) - 1)]
                for row, path in enumerate(paths)
                if len(path) > level or path[-1] in nodes
            ]

    @ignores_underflow
    def _predict_codes(self, logits: LogitTiles, X: Any) -> np.ndarray:
        """Return the index of the class of each image, or `UNKNOWN` or `UNREADABLE`."""
        # Tile by tile: the logits of all images may not fit in memory.
        codes = np.concatenate([self._choose(tile.logits) for tile in logits.iter_tiles(X)])
        self._warn_about_unknown_labels(codes)
        return codes

    def _choose(self, logits: np.ndarray) -> np.ndarray:
        """Return the index of the node of each row of logits, which are modified."""
        if self.threshold is None or not is_hierarchy(self._get_labels()):
            return choose_texts(logits, self.threshold)
        is_unreadable = np.isnan(logits[:, 0])
        codes = self._get_hierarchy().choose(to_probabilities(logits), self.threshold)
        codes[is_unreadable] = UNREADABLE
        return codes

    def _choose_labels(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and their probabilities; for `unknown_label` that of the best class."""
        # The logarithm turns probabilities into logits.
        codes = self._choose(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)))
        self._warn_about_unknown_labels(codes)
        node_probabilities = probabilities
        if is_hierarchy(self._get_labels()):
            node_probabilities = probabilities @ self._get_hierarchy().membership
        chosen = node_probabilities[np.arange(len(codes)), codes]
        chosen = np.where(codes < 0, probabilities.max(axis=1), chosen)
        return self._decode(codes, self.classes_), chosen

    def _warn_about_unknown_labels(self, codes: np.ndarray) -> None:
        if self.threshold is None:
            unreadable = np.flatnonzero(codes == UNREADABLE)
            warn_unreadable(unreadable, len(codes), f"are predicted as {self.unknown_label!r}")

    def _decode(self, codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the labels of class indices, and `unknown_label` for negative ones."""
        nodes = self._list_nodes(classes)
        labels = nodes[codes.clip(min=0)]
        is_unknown = codes < 0
        if not is_unknown.any() and self.threshold is None:
            return labels
        unknown_label = to_builtin(self.unknown_label)
        unknown_type = np.asarray(unknown_label).dtype
        same_kind = unknown_type.kind == labels.dtype.kind
        # Use an array of objects, since NumPy would convert numbers to text for "unknown".
        labels = labels.astype(np.result_type(labels.dtype, unknown_type) if same_kind else object)
        labels[is_unknown] = unknown_label
        return labels

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number(self.threshold, "threshold", 0, 1, closed="both", optional=True)
        if np.ndim(self.unknown_label):
            raise ValueError(
                f"unknown_label must be one text or number, not {self.unknown_label!r}."
            )
        if self.labels is not None and self.class_prior is not None:
            names = resolve_class_names(self.labels)
            resolve_class_prior(self.class_prior, to_class_array(sorted(names)))


def _warn_about_scores_of_nan(scores: np.ndarray) -> None:
    """Warn about rows of NaN, for which ``argmax`` returns the first class."""
    warn_unreadable(
        np.flatnonzero(np.isnan(scores[:, 0])),
        len(scores),
        "have scores of NaN",
        advice=" Leave them out, or call predict, which returns unknown_label for them.",
    )
