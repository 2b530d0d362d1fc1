"""Classification of images by the names of the classes and a few labelled images."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from ..aligners.fitted_images import find_label_conflicts
from ..aligners.pairs import holds_images
from ..aligners.similarity import LogitTiles, warn_unreadable
from ..aligners.wrapper import embed_with_features, unwrap_aligner
from ..features.matrix import is_table
from ..persistence.hub import Facts
from ..persistence.mixins import FittedState
from ..prompts import (
    check_classes,
    check_in_labels,
    resolve_flat_names,
    to_class_array,
    validate_y,
)
from ..utils.messages import warn
from ..utils.sklearn_compat import FitContext, validate_weights, with_callbacks
from ..utils.validation import (
    check_number,
    check_same_length,
    format_list,
    ignores_underflow,
    to_list,
)
from ._base import convert_labels, warn_about_numbers
from ._classifier import ZeroShotClassifier
from ._label_embeddings import embed_labels
from ._probe import Examples, Probe, fit_probe, make_vectors


class _ImageVectors(NamedTuple):
    """Turns images into vectors; see `make_vectors`."""

    aligner: Any
    center: np.ndarray | None

    def transform(self, X: Any) -> np.ndarray:
        """Return the vectors of images, or rows of NaN for those that could not be read."""
        return make_vectors(*embed_with_features(self.aligner, X), self.center)


@dataclass(eq=False, repr=False, kw_only=True)
class FewShotClassifier(ZeroShotClassifier):
    """Predict classes by their names and by a few labelled images.

    Without labelled images it is a `ZeroShotClassifier`. With many of them it approaches logistic
    regression on the image features. In between it is usually more accurate than both: names help
    while there are few labelled images, and the images help where names are ambiguous.

    Parameters
    ----------
    labels : sequence of str, mapping or None, default=None
        Names of the classes, a mapping with the names to embed for each class, or a hierarchy; see
        `ZeroShotClassifier`. Classes without labelled images are allowed. If `labels` is None,
        `fit` takes the distinct values of y.
    aligner : estimator, str or None, default=None
        Fitted aligner, Pipeline that ends in one, or name of a CLIP model; see
        `ZeroShotClassifier`. None is the starter model. An aligner that is not fitted is trained
        by `fit`, which needs more than a few images.
    templates : str or sequence of str, default="simple"
        Sentences that a name is put into, or the name of a set of templates; see
        `ZeroShotClassifier`.
    threshold : float or None, default=None
        Probability in [0, 1]. An image whose highest probability is below the threshold is
        predicted as `unknown_label`. None disables the threshold.
    unknown_label : object, default="unknown"
        Label predicted for images below the threshold, and for unreadable images.
    class_prior : mapping, sequence of float or None, default=None
        Known shares of the classes among the images to classify; see `ZeroShotClassifier`. Pass
        them if each class has about the same number of labelled images. They are not needed if the
        labelled images are a random sample.
    logit_scale : float or None, default=None
        Logit scale: factor of the cosines of images and names. None takes that of the aligner.
    alpha : float, default=0.006
        Strength of the L2 penalty on what is learned from images. A higher value gives the
        names more weight, and the labelled images less. With more than 20 labelled images per
        class on average, up to 64 times this strength is used if cross-validation prefers it.
        Values below 1e-5 times the mean of `sample_weight` have the effect of this product.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Classes in sorted order.
    class_count_ : ndarray of int, shape (n_classes,)
        Number of labelled images of each class.
    coef_ : ndarray of shape (n_classes, n_components + n_image_features)
        Vector of each class. The logit is its product with the embedding of an image and its
        centered features, both L2-normalized, plus the intercept, divided by `temperature_`; see
        Notes. The columns are not the features of X, so that `RFE` and `SelectFromModel` cannot
        be used. Use `SequentialFeatureSelector` to select features.
    intercept_ : ndarray of shape (n_classes,)
        Intercept of each class.
    temperature_ : float
        Temperature by which the logits are divided, so that probabilities are calibrated. It is
        fitted by cross-validation, or, if no class has two labelled images or only one class has
        any, on predictions from the names alone.
    cv_accuracy_ : float
        Accuracy in a cross-validation: each fold is predicted from the names and from the
        labelled images of the other folds. NaN without cross-validation. If some classes have no
        labelled image, it is the expected accuracy if all classes are equally frequent. It is too
        high if there are near-duplicates, such as frames of a video, which are in different folds.
    cv_calibration_error_ : float
        Expected calibration error in this cross-validation.
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
    ZeroShotClassifier : Uses the names alone.
    sklearn.linear_model.LogisticRegression : Uses labelled images alone.

    Notes
    -----
    The logit of a class is the scaled cosine of the image with the names of the class, plus a
    linear function of the embedding and the features of the image. The linear function minimizes
    the cross entropy of the labelled images with an L2 penalty, similar to [1]_. Logits of classes
    with labelled images are reduced while other classes have none, similar to [2]_. The page
    "Classify with a few labelled images" of the user guide has the formulas.

    The names get a lower weight if they predict the labelled images badly. This weight and the
    temperature depend on the order of the images, because they are chosen by cross-validation.
    For a given weight, the linear function does not.

    The embeddings and features of the labelled images are stored, 4 bytes per component.

    Cross-validation and searches clone estimators, so that a fitted aligner is no longer fitted.
    Pass ``aligner=FrozenEstimator(aligner)`` to keep it.

    References
    ----------
    .. [1] Z. Lin, S. Yu, Z. Kuang, D. Pathak and D. Ramanan, "Multimodality Helps Unimodality:
       Cross-Modal Few-Shot Learning with Multimodal Models", CVPR 2023.
    .. [2] A. K. Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, which uses
       the logarithm of the frequency of a class.

    Examples
    --------
    >>> from sklearn_ape import FewShotClassifier
    >>> from sklearn_ape.datasets import load_openmoji
    >>> data = load_openmoji()
    >>> names = ["red apple", "pizza", "teapot"]
    >>> images = [data.images[data.captions.index(name)] for name in names]
    >>> classifier = FewShotClassifier(["food", "thing"]).fit(images[1:], ["food", "thing"])
    >>> classifier.predict(images[:1]).tolist()
    ['food']
    >>> classifier.partial_fit(images[:1], ["food"]).class_count_.tolist()
    [2, 1]
    """

    alpha: float = 0.006
    # The names are compared by plain cosines.
    standardize: bool = field(default=False, init=False)

    _purpose = (
        "Says which of the classes an image shows, by the classes' names and by labelled images."
    )

    @with_callbacks
    def fit(self, X: Any, y: Any, captions: Any = None, sample_weight: Any = None) -> Self:
        """Learn the classes from their names and from labelled images.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images, or features if the aligner takes features.
        y : sequence of length n_samples
            Label of each image, which must be one of `labels` unless that is None. Images with
            `unknown_label` are left out if the aligner is fitted.
        captions : sequence of length n_samples or None, default=None
            Captions to train an unfitted aligner on. None takes the prompts of the labels in y. A
            fitted aligner is kept.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images. None gives each image the weight 1.

        Returns
        -------
        self : object
            The fitted classifier.

        Raises
        ------
        ValueError
            If y holds values that are not labels, or different labels for the same image.

        Warns
        -----
        UserWarning
            If y has different labels for equal features, which may be those of different images.
        """
        return self._fit(X, y, sample_weight, captions=captions)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Add labelled images, such as corrections of wrong predictions.

        The result is that of `fit` with all labelled images. If an image has been passed before
        with another label, the new label replaces it. `labels`, `templates` and `logit_scale`
        keep the values of the first call.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.
        y : sequence of length n_samples
            Label of each image. In the first call, as in `fit`; later, a member of `classes_`.
        classes : sequence or None, default=None
            All classes, if `labels` is None. Otherwise, and in later calls, some of the classes.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the images. None gives each image the weight 1.

        Returns
        -------
        self : object
            The fitted classifier.

        Raises
        ------
        ValueError
            If y holds values that are not in `classes_`, or different labels for the same image.
        """
        check_classes(classes, self._resolve_names())
        if not hasattr(self, "coef_"):
            return self._fit(X, y, sample_weight, classes=classes)
        self._check_ready()
        values = validate_y(y)
        weights = validate_weights(sample_weight, len(values))
        check_same_length(X=X, y=values, sample_weight=sample_weight)
        new_classes = [label for label in dict.fromkeys(values) if label not in self._names]
        if new_classes:
            raise ValueError(
                f"y has labels that are not in classes_: {format_list(new_classes)}. partial_fit "
                "cannot add classes. Call fit with labels that include them; they need no images."
            )
        added = _embed_examples(self.aligner_, X, values, list(self._names), weights)
        examples = _drop_replaced(self._examples, added).extend(added)
        self._fit_probe(examples, self._text, self._scale)
        return self

    def was_fitted_on(self, X: Any) -> np.ndarray:
        """Return whether each image is one of the labelled images.

        Accuracies on labelled images are too high, so leave them out of a test set.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images, or features if the aligner takes features.

        Returns
        -------
        is_labelled : ndarray of bool, shape (n_samples,)
            False for images that could not be read.
        """
        self._check_ready()
        images = Examples.from_images(self._get_aligner_in_use(), X)
        is_labelled = np.zeros(len(images.codes), bool)
        if hasattr(self, "coef_"):
            readable = np.flatnonzero(~np.isnan(images.embeddings[:, 0]))
            all_groups = self._examples.extend(images.select(readable)).find_copies()
            groups, new_groups = np.split(all_groups, [len(self._examples.codes)])
            is_labelled[readable] = np.isin(new_groups, groups)
        return is_labelled

    @property
    def class_count_(self) -> np.ndarray:
        """Number of labelled images of each class."""
        if not hasattr(self, "_examples"):
            raise AttributeError(f"{type(self).__name__} has no class_count_ before fit.")
        return np.bincount(self._examples.codes, minlength=len(self._names))

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, *, captions: Any = None, classes: Any = None
    ) -> Self:
        self._check_fit_parameters()
        keeps_aligner = self._keeps_aligner()
        context = FitContext(self, 0 if keeps_aligner else 1, X, y)
        values = validate_y(y)
        weights = validate_weights(sample_weight, len(values))
        check_same_length(X=X, y=values, captions=captions, sample_weight=sample_weight)
        if self.labels is None and classes is not None:
            names = resolve_flat_names(classes)
            check_in_labels(values, names)
        else:
            class_values = values
            if self.labels is not None and keeps_aligner:
                # Images of no class are for searches that choose the threshold.
                class_values = [value for value in values if value != self.unknown_label]
            names = self._fit_names(class_values, learns_from_y=True)
        if self.labels is not None:
            warn_about_numbers("labels", names)
        names = {label: names[label] for label in sorted(names)}
        if captions is None and not keeps_aligner:
            warn(
                f"aligner is not fitted, so it is trained on the {len(values)} labelled images "
                "alone. Pass a fitted aligner; in cross-validation and searches, which clone "
                "estimators, pass sklearn.frozen.FrozenEstimator(aligner)."
            )
        aligner = self._make_aligner(X, values, names, captions, context)
        text = embed_labels(unwrap_aligner(aligner), names, self.templates)
        examples = _embed_examples(aligner, X, values, list(names), weights)
        self._fit_probe(examples, text, self._resolve_scale(aligner))
        self._names, self.aligner_, self._fitted_labels = names, aligner, self.labels
        self._note_fit()
        context.end()
        return self

    def _fit_probe(self, examples: Examples, text: np.ndarray, scale: float) -> None:
        center = examples.find_center()
        vectors = make_vectors(examples.embeddings, examples.features, center)
        self._set_probe(fit_probe(examples, vectors, text, scale, self.alpha))
        # The state for `partial_fit`.
        self._examples, self._center, self._text, self._scale = examples, center, text, scale

    def _set_probe(self, probe: Probe) -> None:
        self.coef_, self.intercept_ = probe.coef, probe.intercept
        self.temperature_ = probe.temperature
        self.cv_accuracy_, self.cv_calibration_error_ = probe.accuracy, probe.calibration_error

    def _make_class_logits(self) -> LogitTiles:
        if not hasattr(self, "coef_"):
            return super()._make_class_logits()
        return LogitTiles(
            _ImageVectors(self.aligner_, self._center),
            to_class_array(self._names),
            texts=self.coef_,
            scale=1 / self.temperature_,
            bank=None,
            offset=self.intercept_ / np.float32(self.temperature_),
        )

    def _get_examples(self) -> tuple[np.ndarray, np.ndarray] | None:
        if not hasattr(self, "coef_"):
            return None
        return self._examples.embeddings, self._examples.codes

    def _resolve_names(self) -> dict[Any, list[str]] | None:
        if hasattr(self, "coef_"):  # labels that are set later take effect in the next fit
            return self._names
        return super()._resolve_names()

    def _get_labels(self) -> Any:
        return getattr(self, "_fitted_labels", self.labels)

    def _check_parameters(self) -> None:
        check_number(self.alpha, "alpha", 0, closed="neither")
        super()._check_parameters()

    def _get_recorded_params(self) -> dict[str, Any]:
        # Labels that were set after fit have no embeddings yet.
        return super()._get_recorded_params() | {"labels": convert_labels(self._get_labels())}

    def _get_state(self) -> dict[str, Any]:
        state = super()._get_state()
        if hasattr(self, "coef_"):
            numbers = [self.temperature_, self.cv_accuracy_, self.cv_calibration_error_]
            state["few_shot"] = {
                "coef": self.coef_,
                "intercept": self.intercept_,
                "numbers": np.array(numbers),
                "text": self._text,
                "scale": float(self._scale),
                **self._examples._asdict(),
            }
        return state

    def _set_state(self, state: FittedState) -> None:
        super()._set_state(state)
        if "few_shot" not in state:
            return
        self._fitted_labels = self.labels
        part = state.part("few_shot")
        n_classes = len(self._names)
        self._text = part.array("text", (n_classes, None))
        n_components = self._text.shape[1]
        codes = part.array("codes", (None,), "i")
        if len(codes) and (codes.min() < 0 or codes.max() >= n_classes):
            raise ValueError(f"{part.where}.codes must be from 0 to {n_classes - 1}.")
        # Files of earlier versions have no features.
        features = part.array("features", (len(codes), None)) if "features" in part else None
        self._examples = Examples(
            part.array("embeddings", (len(codes), n_components)),
            codes,
            part.array("weights", (len(codes),)),
            features,
        )
        self._center = self._examples.find_center()
        self._scale = part.number("scale", above=0)
        n_features = 0 if features is None else features.shape[1]
        coef = part.array("coef", (n_classes, n_components + n_features))
        intercept = part.array("intercept", (n_classes,))
        numbers = part.array("numbers", (3,), finite=False).tolist()
        if not 0 < numbers[0] < np.inf:
            raise ValueError(f"{part.where}.numbers must begin with a positive temperature.")
        self._set_probe(Probe(coef, intercept, *numbers))

    def _get_card_facts(self) -> Facts:
        facts = super()._get_card_facts()
        if hasattr(self, "coef_"):
            facts.rows = {"labelled images": f"{self.class_count_.sum():,}"} | facts.rows
        return facts


@ignores_underflow
def _embed_examples(
    aligner: Any, X: Any, values: list[Any], classes: list[Any], weights: np.ndarray
) -> Examples:
    """Embed images with one of the classes and a weight; warn about unreadable ones."""
    code_of = {label: code for code, label in enumerate(classes)}
    codes = np.array([code_of.get(value, -1) for value in values], dtype=np.int64)
    images = Examples.from_images(aligner, X)._replace(codes=codes, weights=weights)
    is_readable = ~np.isnan(images.embeddings[:, 0])
    if not is_readable.any():
        raise ValueError(
            f"None of the {len(codes)} images could be read. Check the paths and files."
        )
    unreadable = np.flatnonzero(~is_readable)
    warn_unreadable(unreadable, len(codes), "are left out")
    rows = np.flatnonzero(is_readable & (weights > 0) & (codes >= 0))
    if not rows.size:
        raise ValueError(
            "No image that could be read has a class and a weight above 0. Pass at least one."
        )
    examples = images.select(rows)
    images_or_none = None if is_table(X) or not holds_images(X) else X
    _check_labels_agree(examples, rows, classes, images_or_none)
    return examples


def _check_labels_agree(
    examples: Examples, rows: np.ndarray, classes: list[Any], images: Any
) -> None:
    """Raise ValueError if the same image has different labels; warn about equal features."""
    conflicts = sorted(find_label_conflicts(examples.find_copies(), examples.codes.tolist()))
    if not conflicts:
        return

    def describe(pair: tuple[int, int]) -> str:
        return " and ".join(
            f"{classes[examples.codes[row]]!r} in row {rows[row]}{_name_file(images, rows[row])}"
            for row in pair
        )

    subject = "the same image" if len(conflicts) == 1 else f"each of {len(conflicts):,} images"
    message = (
        f"y has different labels for {subject}: {format_list(conflicts, describe)}. Correct y, or "
        "leave one of the rows out."
    )
    if images is not None:
        raise ValueError(message)
    warn(message)  # features of different images may be equal


def _name_file(images: Any, row: int) -> str:
    """Return the path of an image in parentheses; an empty text if it is not a file."""
    image = None if images is None else to_list(images)[row]
    return f" ({os.fspath(image)!r})" if isinstance(image, str | os.PathLike) else ""


def _drop_replaced(examples: Examples, added: Examples) -> Examples:
    """Return the examples without images that are added with another label."""
    groups, added_groups = np.split(examples.extend(added).find_copies(), [len(examples.codes)])
    new_codes = dict(zip(added_groups.tolist(), added.codes.tolist(), strict=True))
    pairs = zip(groups.tolist(), examples.codes, strict=True)
    is_kept = [new_codes.get(group, code) == code for group, code in pairs]
    return examples.select(np.array(is_kept, dtype=bool))
