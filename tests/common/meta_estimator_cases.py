"""Cases of meta-estimators, labels and y, and a reference classifier."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils.fixes import parse_version

from sklearn_ape import CCAAligner

WORDS = ["cat", "dog", "house", "tree", "zebra"]
N_FEATURES = 12


def text_encoder():
    return HashingVectorizer(n_features=24, analyzer="char", norm="l2")


def image_features(words, seed):
    """Return one row per word. Classes overlap, so that some predictions are wrong."""
    centers = np.random.default_rng(1).standard_normal((len(WORDS), N_FEATURES))
    noise = np.random.default_rng(seed).standard_normal((len(words), N_FEATURES))
    return centers[[WORDS.index(word) for word in words]] + 0.9 * noise


def fitted_aligner():
    words = WORDS * 30
    return CCAAligner(text_encoder=text_encoder()).fit(image_features(words, seed=9), words)


class Situation(NamedTuple):
    """Names of labels, values of y, and the names that these values stand for."""

    labels: dict[Any, str]
    y: Any
    words: list[str]


KINDS = {
    "text": dict(zip(WORDS, WORDS, strict=True)),
    "categorical": dict(zip(WORDS, WORDS, strict=True)),
    "numbers": dict(enumerate(WORDS)),
    "numbers from 1": dict(enumerate(WORDS, 1)),
    "negative numbers": dict(enumerate(WORDS, -1)),
    "booleans": {False: "dog", True: "zebra"},
}
# Positions of labels, and of the values of y.
RELATIONS = {
    "equal": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    "more": ([0, 1, 2, 3, 4], [1, 3, 4]),
    "more, y holds the first": ([0, 1, 2, 3, 4], [0, 1, 2]),
    "fewer": ([0, 1, 2, 3], [0, 1, 2, 3, 4]),
    "two equal": ([0, 1], [0, 1]),
    "two of five": ([0, 1], [0, 1, 2, 3, 4]),
}
SITUATIONS = [
    ("text", "equal"),
    ("text", "more"),
    ("text", "more, y holds the first"),
    ("text", "fewer"),
    ("text", "two equal"),
    ("categorical", "equal"),
    ("categorical", "more"),
    ("numbers", "equal"),
    ("numbers", "more"),
    ("numbers", "more, y holds the first"),
    ("numbers", "fewer"),
    ("numbers", "two equal"),
    ("numbers", "two of five"),
    ("numbers from 1", "equal"),
    ("numbers from 1", "more"),
    ("negative numbers", "equal"),
    ("negative numbers", "more, y holds the first"),
    ("booleans", "two equal"),
]


def make_situation(kind, relation):
    names = KINDS[kind]
    positions_of_labels, positions_of_y = RELATIONS[relation]
    labels = [list(names)[position] for position in positions_of_labels]
    classes_of_y = [list(names)[position] for position in positions_of_y]
    order = np.random.default_rng(3).permutation(12 * len(classes_of_y))
    values = [classes_of_y[row % len(classes_of_y)] for row in order]
    y = pd.Series(values, dtype="category") if kind == "categorical" else np.array(values)
    return Situation({label: names[label] for label in labels}, y, [names[v] for v in values])


class PlainReference(ClassifierMixin, BaseEstimator):
    """Reference classifier: softmax of scaled cosines with the names."""

    def __init__(self, names=None, aligner=None):
        self.names = names
        self.aligner = aligner

    def fit(self, X, y):
        self.classes_ = np.array(sorted(self.names))
        captions = [self.names[label] for label in np.asarray(y).tolist()]
        self.aligner_ = clone(self.aligner).fit(X, captions)
        return self

    def _logits(self, X):
        inner = getattr(self.aligner_, "estimator", self.aligner_)
        texts = inner.transform_text([self.names[label] for label in self.classes_.tolist()])
        return inner.logit_scale_ * inner.transform(X) @ texts.T

    def decision_function(self, X):
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X):
        logits = self._logits(X)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def _fit_and_predict(meta, X, y, X_new):
    meta.fit(X, y)
    answers = {"labels": meta.predict(X_new), "classes": meta.classes_}
    if hasattr(meta, "predict_proba"):
        answers["probabilities"] = meta.predict_proba(X_new)
    return answers


def _wrap(make):
    return lambda base, X, y, X_new: _fit_and_predict(make(base), X, y, X_new)


def _wrap_fitted(make):
    return lambda classifier, X, y, X_new: _fit_and_predict(
        make(classifier.fit(X, y)), X, y, X_new
    )


def _cross_val_predict(method):
    kind = "labels" if method == "predict" else "probabilities"
    return lambda classifier, X, y, X_new: {
        kind: cross_val_predict(classifier, X, y, cv=3, method=method)
    }


def _cross_val_score(scoring):
    return lambda classifier, X, y, X_new: {
        "scores": cross_val_score(classifier, X, y, cv=3, scoring=scoring)
    }


def _self_train(classifier, X, y, X_new):
    partial_y = np.array(y, dtype=object if np.asarray(y).dtype.kind in "UO" else int)
    partial_y[::3] = -1  # scikit-learn marks rows without a label by -1
    return _fit_and_predict(SelfTrainingClassifier(classifier), X, partial_y, X_new)


def _stack(classifier, **options):
    return StackingClassifier([("names", classifier)], LogisticRegression(), **options)


METHODS = ["sigmoid", "isotonic"]
if parse_version(sklearn.__version__) >= parse_version("1.8"):
    METHODS.append("temperature")

# Meta-estimators as functions of a classifier, X, y and new X, which return predictions.
DIRECT = {
    "the classifier alone": _fit_and_predict,
    "GridSearchCV": _wrap(lambda base: GridSearchCV(base, {}, cv=3)),
    "cross_val_predict": _cross_val_predict("predict"),
    "cross_val_score accuracy": _cross_val_score("accuracy"),
    "StackingClassifier prefit": _wrap_fitted(lambda base: _stack(base, cv="prefit")),
    "SelfTrainingClassifier": _self_train,
}
BY_COLUMN = {
    "cross_val_score roc_auc_ovr": _cross_val_score("roc_auc_ovr"),
    "cross_val_score neg_log_loss": _cross_val_score("neg_log_loss"),
    "cross_val_score top_k_accuracy": _cross_val_score("top_k_accuracy"),
    **{
        f"CalibratedClassifierCV {method}": _wrap(
            lambda base, method=method: CalibratedClassifierCV(base, method=method, cv=3)
        )
        for method in METHODS
    },
    **{
        f"CalibratedClassifierCV of FrozenEstimator {method}": _wrap_fitted(
            lambda base, method=method: CalibratedClassifierCV(
                FrozenEstimator(base), method=method
            )
        )
        for method in METHODS
    },
}
ENCODING = {
    "VotingClassifier soft": _wrap(lambda base: VotingClassifier([("a", base)], voting="soft")),
    "VotingClassifier hard": _wrap(lambda base: VotingClassifier([("a", base)], voting="hard")),
    "StackingClassifier": _wrap(lambda base: _stack(base, cv=3)),
    "StackingClassifier of labels": _wrap(lambda base: _stack(base, cv=3, stack_method="predict")),
    "BaggingClassifier": _wrap(
        lambda base: BaggingClassifier(base, n_estimators=3, random_state=0)
    ),
    "BaggingClassifier of features": _wrap(
        lambda base: BaggingClassifier(base, n_estimators=3, max_features=0.9, random_state=0)
    ),
    "cross_val_predict predict_proba": _cross_val_predict("predict_proba"),
    "cross_val_predict decision_function": _cross_val_predict("decision_function"),
    **{
        f"CalibratedClassifierCV ensemble=False {method}": _wrap(
            lambda base, method=method: CalibratedClassifierCV(
                base, method=method, ensemble=False, cv=3
            )
        )
        for method in METHODS
    },
}
BINARY_ONLY = {
    "TunedThresholdClassifierCV": _wrap(
        lambda base: TunedThresholdClassifierCV(base, cv=3, random_state=0)
    ),
    "FixedThresholdClassifier": _wrap(lambda base: FixedThresholdClassifier(base, threshold=0.7)),
}
REDUCTIONS = {
    "OneVsRestClassifier": _wrap(OneVsRestClassifier),
    "OneVsOneClassifier": _wrap(OneVsOneClassifier),
    "OutputCodeClassifier": _wrap(lambda base: OutputCodeClassifier(base, random_state=0)),
}
META = DIRECT | BY_COLUMN | ENCODING | BINARY_ONLY | REDUCTIONS
