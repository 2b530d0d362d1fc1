"""Meta-estimators of scikit-learn, situations of labels and y, and a plain reference."""

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
    """One row per word. Classes overlap, so that some rows are mistaken."""
    centers = np.random.default_rng(1).standard_normal((len(WORDS), N_FEATURES))
    noise = np.random.default_rng(seed).standard_normal((len(words), N_FEATURES))
    return centers[[WORDS.index(word) for word in words]] + 0.9 * noise


def fitted_aligner():
    words = WORDS * 30
    return CCAAligner(text_encoder=text_encoder()).fit(image_features(words, seed=9), words)


class Situation(NamedTuple):
    """Labels with their names, and y with the words that its labels stand for."""

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
# Labels, and the values of y, by position.
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


def situation(kind, relation):
    of = KINDS[kind]
    known, in_y = ([list(of)[place] for place in places] for places in RELATIONS[relation])
    order = np.random.default_rng(3).permutation(12 * len(in_y))
    y = [in_y[row % len(in_y)] for row in order]
    given = pd.Series(y, dtype="category") if kind == "categorical" else np.array(y)
    return Situation({label: of[label] for label in known}, given, [of[label] for label in y])


class PlainReference(ClassifierMixin, BaseEstimator):
    """Softmax of scaled cosines with the names, column by column in the order of labels."""

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


def _answers(meta, X, y, X_new):
    meta.fit(X, y)
    answers = {"labels": meta.predict(X_new), "classes": meta.classes_}
    if hasattr(meta, "predict_proba"):
        answers["probabilities"] = meta.predict_proba(X_new)
    return answers


def _around(make):
    return lambda classifier, X, y, X_new: _answers(make(classifier), X, y, X_new)


def _prefit(make):
    return lambda classifier, X, y, X_new: _answers(make(classifier.fit(X, y)), X, y, X_new)


def _predicted(method):
    kind = "labels" if method == "predict" else "probabilities"
    return lambda classifier, X, y, X_new: {
        kind: cross_val_predict(classifier, X, y, cv=3, method=method)
    }


def _scored(scoring):
    return lambda classifier, X, y, X_new: {
        "scores": cross_val_score(classifier, X, y, cv=3, scoring=scoring)
    }


def _self_trained(classifier, X, y, X_new):
    known = np.array(y, dtype=object if np.asarray(y).dtype.kind in "UO" else int)
    known[::3] = -1  # scikit-learn's sign of an unlabelled row
    return _answers(SelfTrainingClassifier(classifier), X, known, X_new)


def _stack(classifier, **options):
    return StackingClassifier([("names", classifier)], LogisticRegression(), **options)


METHODS = ["sigmoid", "isotonic"]
if parse_version(sklearn.__version__) >= parse_version("1.8"):
    METHODS.append("temperature")

# Every meta-estimator as a function of a classifier, X, y and other X, which returns answers.
DIRECT = {
    "the classifier alone": _answers,
    "GridSearchCV": _around(lambda one: GridSearchCV(one, {}, cv=3)),
    "cross_val_predict": _predicted("predict"),
    "cross_val_score accuracy": _scored("accuracy"),
    "StackingClassifier prefit": _prefit(lambda one: _stack(one, cv="prefit")),
    "SelfTrainingClassifier": _self_trained,
}
BY_COLUMN = {
    "cross_val_score roc_auc_ovr": _scored("roc_auc_ovr"),
    "cross_val_score neg_log_loss": _scored("neg_log_loss"),
    "cross_val_score top_k_accuracy": _scored("top_k_accuracy"),
    **{
        f"CalibratedClassifierCV {method}": _around(
            lambda one, method=method: CalibratedClassifierCV(one, method=method, cv=3)
        )
        for method in METHODS
    },
    **{
        f"CalibratedClassifierCV of FrozenEstimator {method}": _prefit(
            lambda one, method=method: CalibratedClassifierCV(FrozenEstimator(one), method=method)
        )
        for method in METHODS
    },
}
NUMBERING = {
    "VotingClassifier soft": _around(lambda one: VotingClassifier([("a", one)], voting="soft")),
    "VotingClassifier hard": _around(lambda one: VotingClassifier([("a", one)], voting="hard")),
    "StackingClassifier": _around(lambda one: _stack(one, cv=3)),
    "StackingClassifier of labels": _around(lambda one: _stack(one, cv=3, stack_method="predict")),
    "BaggingClassifier": _around(
        lambda one: BaggingClassifier(one, n_estimators=3, random_state=0)
    ),
    "BaggingClassifier of features": _around(
        lambda one: BaggingClassifier(one, n_estimators=3, max_features=0.9, random_state=0)
    ),
    "cross_val_predict predict_proba": _predicted("predict_proba"),
    "cross_val_predict decision_function": _predicted("decision_function"),
    **{
        f"CalibratedClassifierCV ensemble=False {method}": _around(
            lambda one, method=method: CalibratedClassifierCV(
                one, method=method, ensemble=False, cv=3
            )
        )
        for method in METHODS
    },
}
BINARY_ONLY = {
    "TunedThresholdClassifierCV": _around(
        lambda one: TunedThresholdClassifierCV(one, cv=3, random_state=0)
    ),
    "FixedThresholdClassifier": _around(lambda one: FixedThresholdClassifier(one, threshold=0.7)),
}
REDUCTIONS = {
    "OneVsRestClassifier": _around(OneVsRestClassifier),
    "OneVsOneClassifier": _around(OneVsOneClassifier),
    "OutputCodeClassifier": _around(lambda one: OutputCodeClassifier(one, random_state=0)),
}
META = DIRECT | BY_COLUMN | NUMBERING | BINARY_ONLY | REDUCTIONS
