"""Errors of classifiers whose aligner was changed after fit."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import (
    CCAAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.encoders import TransformersTextEncoder

WORDS = ("cat", "dog", "house")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.array(WORDS)[rng.integers(0, 3, 90)]
    means = {word: 2 * rng.standard_normal(8) for word in WORDS}
    X = np.array([means[word] for word in y]) + 0.3 * rng.standard_normal((90, 8))
    return X.astype(np.float32), y


@pytest.fixture
def pipeline(data):
    text_encoder = TransformersTextEncoder()
    return make_pipeline(StandardScaler(), CCAAligner(text_encoder=text_encoder)).fit(*data)


def make_classifiers(pipeline, data):
    X, y = data
    Y = [[label] for label in y]
    frozen = FrozenEstimator(pipeline)
    return [
        ZeroShotClassifier(WORDS, aligner=frozen).fit(X, y),
        ZeroShotClassifier(aligner=frozen).fit(X, y),
        MultiLabelZeroShotClassifier(WORDS, aligner=frozen).fit(X, Y),
        MultiLabelZeroShotClassifier(WORDS, aligner=pipeline).fit_thresholds(X, Y),
    ]


@pytest.mark.parametrize("index", range(4))
def test_changed_step_raises_until_it_is_restored(index, pipeline, data):
    X, _ = data
    classifier = make_classifiers(pipeline, data)[index]
    expected = classifier.predict(X)
    pipeline.set_params(standardscaler__with_mean=False)
    for method in (classifier.predict, classifier.predict_proba, classifier.decision_function):
        with pytest.raises(ValueError, match="aligner was changed since"):
            method(X)
    pipeline.set_params(standardscaler__with_mean=True, verbose=False)
    np.testing.assert_array_equal(classifier.predict(X), expected)


def test_changed_clone_of_fit_raises(pipeline, data):
    X, y = data
    classifier = ZeroShotClassifier(WORDS, aligner=clone(pipeline)).fit(X, y)
    classifier.set_params(aligner__standardscaler__with_mean=False)  # used by the next fit
    classifier.predict(X)
    classifier.aligner_[0].with_mean = False
    with pytest.raises(ValueError, match="aligner was changed since"):
        classifier.predict(X)
    classifier.fit(X, y)
    classifier.predict(X)


def test_aligner_set_after_fit_raises(pipeline, data):
    X, y = data
    classifier = ZeroShotClassifier(WORDS, aligner=FrozenEstimator(pipeline)).fit(X, y)
    classifier.set_params(aligner=clone(pipeline).fit(X[:50], y[:50]))
    with pytest.raises(ValueError, match=r"aligner=Pipeline\(\.\.\.\) was set after fit"):
        classifier.predict(X)


def test_changed_aligner_is_used_without_fit(pipeline, data):
    X, _ = data
    classifier = ZeroShotClassifier(WORDS, aligner=pipeline)
    classifier.predict(X)
    pipeline.set_params(standardscaler__with_mean=False)
    classifier.predict(X)


def test_thresholds_are_fitted_again_with_changed_aligner(pipeline, data):
    X, y = data
    Y = [[label] for label in y]
    classifier = MultiLabelZeroShotClassifier(WORDS, aligner=pipeline).fit_thresholds(X, Y)
    pipeline.fit(X[:60], y[:60])
    with pytest.raises(ValueError, match="aligner was changed since"):
        classifier.predict(X)
    fresh = MultiLabelZeroShotClassifier(WORDS, aligner=pipeline).fit_thresholds(X, Y)
    refitted = classifier.fit_thresholds(X, Y)
    np.testing.assert_array_equal(refitted.predict(X), fresh.predict(X))


@pytest.mark.parametrize("storage", ["pickle", "folder"])
def test_changed_aligner_of_loaded_classifier_raises(storage, data, tmp_path):
    X, y = data
    aligner = CCAAligner(text_encoder=TransformersTextEncoder())
    classifier = ZeroShotClassifier(WORDS, aligner=aligner).fit(X, y)
    if storage == "pickle":
        loaded = pickle.loads(pickle.dumps(classifier))
    else:
        classifier.save_pretrained(tmp_path / "model")
        loaded = load_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
    loaded.aligner_.text_encoder_.max_length = 4
    with pytest.raises(ValueError, match="aligner was changed since"):
        loaded.predict(X)
