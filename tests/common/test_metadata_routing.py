"""Metadata routing of captions, sample weights and groups."""

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.fixes import parse_version

from sklearn_ape import CCAAligner, KernelAligner, ZeroShotClassifier
from sklearn_ape.encoders import TimmImageEncoder
from tests.conftest import LABELS

pytestmark = pytest.mark.usefixtures("routing")


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.fixture
def recording_aligner():
    """Return an aligner class that records the y of each fit, and the list of these."""
    fitted = []

    class RecordingAligner(CCAAligner):
        def fit(self, X, y):
            fitted.append(list(y))
            return super().fit(X, y)

    return RecordingAligner, fitted


def test_captions_reach_the_aligner_through_all_meta_estimators(
    recording_aligner, features, captioned_images, text_encoder
):
    """The aligner in a Pipeline in a search in `cross_validate` gets captions, not labels."""
    RecordingAligner, fitted = recording_aligner
    classifier = ZeroShotClassifier(LABELS, aligner=RecordingAligner(text_encoder=text_encoder))
    pipeline = make_pipeline(FunctionTransformer(), classifier.set_fit_request(captions=True))
    search = GridSearchCV(pipeline, {"zeroshotclassifier__templates": ["none"]}, cv=2)
    results = cross_validate(
        search,
        features.image[:80, :256],
        captioned_images.categories[:80],
        cv=2,
        params={"captions": captioned_images.captions[:80]},
        error_score="raise",
    )
    assert results["test_score"].mean() > 0.4
    assert {caption for captions in fitted for caption in captions} == set(
        captioned_images.captions[:80]
    )
    assert sorted({len(captions) for captions in fitted}) == [20, 40]


def test_captions_without_metadata_request_raise(features, captioned_images, text_encoder):
    classifier = ZeroShotClassifier(LABELS, aligner=CCAAligner(text_encoder=text_encoder))
    search = GridSearchCV(classifier, {"templates": ["none"]}, cv=2)
    X, y = features.image[:20], captioned_images.categories[:20]
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match="captions"):
        search.fit(X, y, captions=captioned_images.captions[:20])


def test_score_uses_sample_weight(features, captioned_images, text_encoder):
    """The accuracy is 1 if only images with correct predictions have a weight."""
    aligner = KernelAligner(text_encoder=text_encoder)
    aligner.fit(features.image[:150], captioned_images.captions[:150])
    X, y = features.image[150:], captioned_images.categories[150:]
    classifier = ZeroShotClassifier(LABELS, aligner=FrozenEstimator(aligner))
    classifier = classifier.set_score_request(sample_weight=True)
    hits = (classifier.fit(X, y).predict(X) == y).astype(float)
    assert 0 < hits.mean() < 1
    results = cross_validate(classifier, X, y, cv=KFold(2), params={"sample_weight": hits})
    assert results["test_score"].tolist() == [1.0, 1.0]


@pytest.mark.exhaustive
def test_captions_of_one_group_are_in_one_fold(
    recording_aligner, features, captioned_images, text_encoder
):
    """Metadata routing passes the groups to the splitter."""
    RecordingAligner, fitted = recording_aligner
    groups = np.arange(80) // 2
    cross_validate(
        RecordingAligner(text_encoder=text_encoder),
        features.image[:80],
        [f"{number} {caption}" for number, caption in enumerate(captioned_images.captions[:80])],
        cv=GroupKFold(2),
        params={"groups": groups},
        error_score="raise",
    )
    assert len(fitted) == 2
    for captions in fitted:
        rows = np.array([int(caption.split()[0]) for caption in captions])
        assert np.bincount(groups[rows], minlength=40).tolist().count(1) == 0


def test_frozen_encoder_can_be_used_and_cloned(captioned_images, image_encoder, features):
    encoded = FrozenEstimator(image_encoder).transform(captioned_images.images[:3])
    np.testing.assert_allclose(encoded, features.image[:3], atol=1e-5)
    assert isinstance(clone(FrozenEstimator(image_encoder)).estimator, TimmImageEncoder)


@pytest.mark.filterwarnings("ignore:.*have the same features:UserWarning")
def test_groups_reach_score_of_aligner_within_pipeline_and_search(concepts):
    """Any caption of the three rows of an image counts as a match."""
    X = np.repeat(concepts.image[:100], 3, axis=0)
    y = np.repeat(concepts.text[:100], 3, axis=0)
    y += 0.5 * np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    groups = np.repeat(np.arange(100), 3)
    aligner = CCAAligner().set_score_request(groups=True)
    pipeline = make_pipeline(StandardScaler(), aligner)
    search = GridSearchCV(pipeline, {"ccaaligner__ridge": [1.0]}, cv=GroupKFold(2))
    search.fit(X, y, groups=groups)
    expected = []
    for train, test in GroupKFold(2).split(X, groups=groups):
        pipeline.fit(X[train], y[train])
        inner = pipeline[-1], pipeline[:-1].transform(X[test])
        expected.append(inner[0].score(inner[1], y[test], groups=groups[test]))
        assert pipeline.score(X[test], y[test], groups=groups[test]) == expected[-1]
        assert pipeline.score(X[test], y[test]) < expected[-1]
    # Searches of scikit-learn 1.6 do not ask the estimator what its score requests.
    if parse_version(sklearn.__version__) >= parse_version("1.9"):
        assert search.best_score_ == np.mean(expected)
