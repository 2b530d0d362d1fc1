"""Random workflows of scikit-learn, compared with a reference computation.

Each case draws an aligner, labels, containers for X and y, and a meta-estimator. The result must
be equal to that of the reference, which uses only NumPy and the embeddings of the aligner, or an
error must be raised.
"""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CrossModalRetriever,
    KernelAligner,
    ZeroShotClassifier,
)

NAMES = ["cat", "dog", "house", "tree", "apple", "zebra"]
TEXTS = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=64)
ALIGNERS = {
    "CCA": CCAAligner(text_encoder=TEXTS),
    "Kernel": KernelAligner(text_encoder=TEXTS),
    "ASIF": ASIFAligner(text_encoder=TEXTS, k=20),
    "APE": APEAligner(text_encoder=TEXTS, width=16, max_epochs=2, random_state=0),
}

CASES = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def drawn_data(seed, n_classes, n=90):
    """Return features around the center of each class, and the class index of each row."""
    rng = np.random.default_rng(seed)
    centers = 2 * rng.standard_normal((len(NAMES), 12))
    codes = rng.permutation(np.arange(n) % n_classes)
    return centers[codes] + rng.standard_normal((n, 12)), codes


LABEL_KINDS = {
    "str": lambda n: NAMES[:n],
    "int": lambda n: list(range(n)),
    "sparse int": lambda n: [10 * (i + 1) for i in range(n)],
    "negative int": lambda n: [i - 2 for i in range(n)],
    "np.str_": lambda n: list(np.array(NAMES[:n])),
    "np.int64": lambda n: list(np.arange(n)),
    "float": lambda n: [float(i) for i in range(n)],
    "bool": lambda n: [False, True],
}

X_CONTAINERS = {
    "float64": lambda X: X,
    "float32": lambda X: X.astype(np.float32),
    "fortran": np.asfortranarray,
    "lists": lambda X: X.tolist(),
    "DataFrame": lambda X: pd.DataFrame(X, index=np.arange(len(X))[::-1] + 7),
}

Y_CONTAINERS = {
    "list": list,
    "array": np.array,
    "objects": lambda y: np.array(y, dtype=object),
    "Series": lambda y: pd.Series(y, index=np.arange(len(y))[::-1] + 3),
    "categorical": lambda y: pd.Series(pd.Categorical(y), index=np.arange(len(y)) + 5),
    "polars": lambda y: pl.Series([getattr(v, "item", lambda v=v: v)() for v in y]),
    "pyarrow": lambda y: pa.array([getattr(v, "item", lambda v=v: v)() for v in y]),
}


def name_labels(labels):
    """Return the parameter `labels`: a mapping from labels to names."""
    return {label: NAMES[i] for i, label in enumerate(labels)}


def reference_proba(aligner, labels, X, templates=("{}",)):
    """Return the sorted labels, and probabilities computed from embeddings."""
    names = name_labels(labels)
    order = sorted(labels)
    classes = []
    for label in order:
        prompts = [template.format(names[label]) for template in templates]
        mean = np.asarray(aligner.transform_text(prompts), dtype=np.float64).sum(axis=0)
        classes.append(mean / max(np.linalg.norm(mean), 1e-300))
    inner = aligner[-1] if hasattr(aligner, "steps") else aligner
    logits = inner.logit_scale_ * np.asarray(aligner.transform(X), float) @ np.array(classes).T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return order, odds / odds.sum(axis=1, keepdims=True)


def fitted_aligner(name, X, codes):
    captions = [f"a {NAMES[code]} number {row}" for row, code in enumerate(codes)]
    return clone(ALIGNERS[name]).fit(X, captions)


aligners = st.sampled_from(sorted(ALIGNERS))
kinds = st.sampled_from(sorted(LABEL_KINDS))
x_kinds = st.sampled_from(sorted(X_CONTAINERS))
y_kinds = st.sampled_from(sorted(Y_CONTAINERS))
seeds = st.integers(0, 5)
n_labels = st.integers(2, 6)


@CASES
@given(aligners, kinds, x_kinds, y_kinds, seeds, n_labels, st.booleans())
def test_classifier_equals_reference(name, kind, x_kind, y_kind, seed, n, fits):
    """Predictions, score and classes_ with a fitted aligner are those of the reference."""
    labels = LABEL_KINDS[kind](n)
    X, codes = drawn_data(seed, len(labels))
    y = [labels[code] for code in codes]
    aligner = fitted_aligner(name, X, codes)
    order, expected = reference_proba(aligner, labels, X)
    classifier = ZeroShotClassifier(
        name_labels(labels), aligner=FrozenEstimator(aligner), templates="none"
    )
    X_in_container, y_in_container = X_CONTAINERS[x_kind](X), Y_CONTAINERS[y_kind](y)
    if fits:
        classifier.fit(X_in_container, y_in_container)
    assert classifier.classes_.tolist() == order
    proba = classifier.predict_proba(X_in_container)
    np.testing.assert_allclose(proba, expected, atol=1e-4)
    is_clear = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 1e-4
    best = np.array([order[i] for i in expected.argmax(axis=1)])
    np.testing.assert_array_equal(classifier.predict(X_in_container)[is_clear], best[is_clear])
    accuracy = np.mean(best == np.array(y))
    assert (
        abs(classifier.score(X_in_container, y_in_container) - accuracy)
        <= np.mean(~is_clear) + 1e-9
    )


@pytest.mark.exhaustive
@CASES
@given(aligners, kinds, y_kinds, seeds, n_labels)
def test_cross_validation_trains_only_on_training_folds(name, kind, y_kind, seed, n):
    """cross_val_score with an unfitted aligner is equal to a loop over the folds."""
    labels = LABEL_KINDS[kind](n)
    X, codes = drawn_data(seed, len(labels))
    y = [labels[code] for code in codes]
    classifier = ZeroShotClassifier(name_labels(labels), aligner=ALIGNERS[name], templates="none")
    # scikit-learn's splitters raise an error for booleans in an array of objects.
    folds = list(StratifiedKFold(3).split(X, codes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scores = cross_val_score(classifier, X, Y_CONTAINERS[y_kind](y), cv=folds)
        expected = []
        for train, test in folds:
            captions = [NAMES[code] for code in codes[train]]
            aligner = clone(ALIGNERS[name]).fit(X[train], captions)
            order, proba = reference_proba(aligner, labels, X[test])
            best = [order[i] for i in proba.argmax(axis=1)]
            expected.append(np.mean(np.array(best) == np.array(y)[test]))
    np.testing.assert_allclose(scores, expected, atol=0.04)


def meta_estimators(classifier, labels):
    """Return meta-estimators of a classifier by name."""
    other = LogisticRegression(max_iter=200)
    return {
        "voting": VotingClassifier([("a", classifier), ("b", other)], voting="soft"),
        "voting alone": VotingClassifier([("a", classifier)], voting="soft"),
        "hard voting": VotingClassifier([("a", classifier)], voting="hard"),
        "stacking": StackingClassifier([("a", classifier)], cv=3),
        "bagging": BaggingClassifier(classifier, n_estimators=2, random_state=0),
        "calibration": CalibratedClassifierCV(classifier, cv=3),
        "one calibration": CalibratedClassifierCV(classifier, cv=3, ensemble=False),
        "one vs rest": OneVsRestClassifier(classifier),
        "one vs one": OneVsOneClassifier(classifier),
        "grid": GridSearchCV(classifier, {"templates": ["none", "photo"]}, cv=2),
        "pipeline": make_pipeline(StandardScaler(with_mean=False, with_std=False), classifier),
    }


META = sorted(meta_estimators(None, None))


def run_case(meta, kind, y_kind, seed, n, situation, frozen):
    """Fit and predict; return "right", "wrong", "raised" (an error) or "warned".

    The classes are so far apart that nearly all predictions are correct, unless columns are read
    in a wrong order.
    """
    labels = LABEL_KINDS[kind](n)
    rng = np.random.default_rng(seed)
    present = list(range(len(labels)))
    if situation == "more":
        present = present[:-1]
    elif situation == "gap":
        present = [0, *present[2:]]
    centers = 6 * rng.standard_normal((len(NAMES), 12))
    codes = rng.permutation(np.resize(present, 30 * len(present)))
    X = centers[codes] + 0.3 * rng.standard_normal((len(codes), 12))
    y = np.array([labels[code] for code in codes])
    classifier_labels = labels[:-1] if situation == "fewer" else labels
    all_codes = np.resize(np.arange(len(labels)), 30 * len(labels))
    training = centers[all_codes] + 0.3 * rng.standard_normal((len(all_codes), 12))
    aligner = ALIGNERS["CCA"]
    if frozen:
        aligner = FrozenEstimator(
            clone(aligner).fit(training, [NAMES[code] for code in all_codes])
        )
    classifier = ZeroShotClassifier(
        name_labels(classifier_labels), aligner=aligner, templates="none"
    )
    estimator = meta_estimators(classifier, classifier_labels)[meta]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator.fit(X, Y_CONTAINERS[y_kind](list(y)))
            predicted = np.asarray(estimator.predict(X))
        except (ValueError, IndexError, TypeError):
            return "raised"
    if np.mean(predicted == y) > 0.9:
        return "right"
    is_warned = any("which number the labels of y" in str(entry.message) for entry in caught)
    return "warned" if is_warned else "wrong"


@pytest.mark.exhaustive
@settings(CASES, max_examples=200)
@given(
    st.sampled_from(META),
    kinds,
    st.sampled_from(["list", "array", "Series", "categorical"]),
    seeds,
    n_labels,
    st.sampled_from(["equal", "more", "fewer", "gap"]),
    st.booleans(),
)
def test_meta_estimators_predict_correctly_or_raise(
    meta, kind, y_kind, seed, n, situation, frozen
):
    """Predictions are right, or an error or a warning is raised, for any labels."""
    assume(situation == "equal" or len(LABEL_KINDS[kind](n)) > 2)
    assert run_case(meta, kind, y_kind, seed, n, situation, frozen) != "wrong"


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "unfitted"])
@pytest.mark.parametrize("meta", META)
def test_meta_estimators_predict_if_labels_are_their_numbers(meta, frozen):
    """The previous test would also pass if every combination raised an error."""
    expected = "raised" if meta in ("one vs rest", "one vs one") else "right"
    assert run_case(meta, "int", "array", 0, 4, "equal", frozen) == expected


@CASES
@given(aligners, seeds, x_kinds, st.integers(1, 8), st.booleans())
def test_retriever_finds_what_sorted_cosines_give(name, seed, x_kind, k, by_text):
    """Results of `fit`, `add` and `search` are those of sorted cosines."""
    X, codes = drawn_data(seed, 6)
    aligner = fitted_aligner(name, X, codes)
    X_in_container = X_CONTAINERS[x_kind](X)
    retriever = CrossModalRetriever(aligner).fit(X_in_container)
    embeddings = np.asarray(aligner.transform(X), dtype=np.float64)
    if by_text:
        queries = [f"a {word}" for word in NAMES]
        found = retriever.search(queries, k)
        asked = np.asarray(aligner.transform_text(queries), dtype=np.float64)
    else:
        found = retriever.search(X[:4], k, modality="image")
        asked = embeddings[:4]
    cosines = asked @ embeddings.T
    expected = -np.sort(-cosines, axis=1)[:, :k]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(cosines, found.indices, axis=1), expected, atol=1e-5
    )


@pytest.mark.exhaustive
@CASES
@given(aligners, seeds, x_kinds, st.integers(1, 3), st.booleans())
def test_score_of_aligner_equals_recall_of_cosines(name, seed, x_kind, per_image, in_pipeline):
    """The score is recall@1 in both directions, with ties counted as errors."""
    X, codes = drawn_data(seed, 6, n=40)
    captions = [
        [f"a {NAMES[code]} of kind {(row + i) % 11}" for i in range(per_image)]
        for row, code in enumerate(codes)
    ]
    model = clone(ALIGNERS[name])
    if in_pipeline:
        model = make_pipeline(StandardScaler(with_mean=False, with_std=False), model)
    model.fit(X, captions)
    texts = sorted({text for row in captions for text in row})
    inner = model[-1] if in_pipeline else model
    cosines = np.asarray(model.transform(X)) @ np.asarray(inner.transform_text(texts)).T
    belongs = np.array([[text in row for text in texts] for row in captions])

    def recall(cosines, belongs):
        best = np.where(belongs, cosines, -np.inf).max(axis=1)
        others = np.where(belongs, -np.inf, cosines).max(axis=1)
        return np.mean(best > others + 3e-6), np.mean(best > others - 3e-6)

    sides = [recall(cosines, belongs), recall(cosines.T, belongs.T)]
    low, high = (np.mean([side[i] for side in sides]) for i in (0, 1))
    assert low - 1e-9 <= model.score(X_CONTAINERS[x_kind](X), captions) <= high + 1e-9


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", sorted(ALIGNERS))
def test_cross_val_predict_equals_loop_over_folds(name):
    """cross_val_predict with numbered labels is equal to a loop over the folds."""
    X, codes = drawn_data(0, 4)
    classifier = ZeroShotClassifier(
        dict(enumerate(NAMES[:4])), aligner=ALIGNERS[name], templates="none"
    )
    folds = KFold(3, shuffle=True, random_state=0)
    found = cross_val_predict(classifier, X, codes, cv=folds, method="predict_proba")
    for train, test in folds.split(X):
        aligner = clone(ALIGNERS[name]).fit(X[train], [NAMES[code] for code in codes[train]])
        np.testing.assert_allclose(
            found[test], reference_proba(aligner, range(4), X[test])[1], atol=1e-4
        )
