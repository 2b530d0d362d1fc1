"""ZeroShotClassifier on many images: tiles, features in files, and peak memory."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from sklearn_ape import CCAAligner, ZeroShotClassifier
from sklearn_ape.aligners.similarity import Standardizer
from sklearn_ape.features import matrix

NAMES = [f"thing {number:03d}" for number in range(300)]


class LookupEncoder(BaseEstimator):
    """Text encoder that looks up features by the number in a text."""

    def __init__(self, features):
        self.features = features

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return self.features[[int(text[-3:]) for text in X]]


@pytest.fixture
def aligner(concepts):
    aligner = CCAAligner(ridge=0.01, text_encoder=LookupEncoder(concepts.text))
    return aligner.fit(concepts.image[:200], NAMES[:200])


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    if request.param == "many tiles":
        monkeypatch.setattr(matrix, "TILE_BYTES", 17 * 4 * 300)


def classifier_of(aligner, **options):
    return ZeroShotClassifier(NAMES, aligner=aligner, templates="none", **options)


@pytest.mark.usefixtures("tiles")
class TestTiles:
    @pytest.mark.parametrize("threshold", [None, "median"])
    @pytest.mark.parametrize("standardize", [False, True])
    def test_predictions_equal_those_of_the_full_matrix(
        self, aligner, concepts, threshold, standardize
    ):
        image, text = aligner.transform(concepts.image), aligner.transform_text(NAMES)
        logits = image @ text.T
        if standardize:
            Standardizer(text, aligner.bank_).apply(logits, image)
        logits = 5 * logits.astype(np.float64)
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected = np.array(NAMES)[logits.argmax(axis=1)].astype(object)
        if threshold:
            threshold = float(np.median(proba.max(axis=1)))
            expected[proba.max(axis=1) < threshold] = "unknown"
        classifier = classifier_of(
            aligner, threshold=threshold, standardize=standardize, logit_scale=5
        )
        np.testing.assert_array_equal(classifier.predict(concepts.image), expected)
        np.testing.assert_allclose(classifier.decision_function(concepts.image), logits, atol=1e-4)
        np.testing.assert_allclose(classifier.predict_proba(concepts.image), proba, rtol=1e-3)
        labels, best = classifier.predict_top_k(concepts.image, k=4)
        order = np.argsort(-proba, axis=1)[:, :4]
        np.testing.assert_allclose(best, np.take_along_axis(proba, order, axis=1), rtol=1e-3)
        assert np.mean(labels == np.array(NAMES)[order]) > 0.99  # ties may differ
        assert classifier.score(concepts.image, NAMES) == np.mean(expected == NAMES)

    def test_memory_map_of_half_precision_is_read(self, aligner, concepts, tmp_path):
        half = concepts.image.astype(np.float16)
        np.save(tmp_path / "X.npy", half)
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        classifier = classifier_of(aligner)
        np.testing.assert_array_equal(
            classifier.predict(mapped), classifier.predict(half.astype(np.float32))
        )

    def test_unreadable_images_warn_with_their_rows(self, aligner, concepts):
        X = concepts.image.copy()
        X[[3, 250]] = np.nan
        with pytest.warns(
            UserWarning, match=r"2 of \d+ images could not be read .*: rows 3, 250\."
        ):
            labels = classifier_of(aligner).predict(X)
        assert np.flatnonzero(labels == "unknown").tolist() == [3, 250]
        labels, proba = classifier_of(aligner).predict_top_k(X, k=2)
        assert (labels[[3, 250]] == "unknown").all()
        assert np.isnan(proba[[3, 250]]).all()


def test_unknown_label_in_y_counts_as_hit(aligner, concepts):
    # No probability reaches the threshold.
    classifier = classifier_of(aligner, threshold=1.0, logit_scale=1)
    assert classifier.score(concepts.image[:4], ["unknown"] * 4) == 1.0
    classifier.set_params(unknown_label=NAMES[0])  # is also a class
    assert classifier.score(concepts.image[:4], [NAMES[0]] * 3 + ["thing 001"]) == 0.75


@pytest.mark.parametrize("k", [0, 301, 1.5, "all"])
def test_invalid_k_raises(aligner, concepts, k):
    with pytest.raises(ValueError, match="from 1 to the number of classes, 300, not"):
        classifier_of(aligner).predict_top_k(concepts.image, k=k)


def test_top_k_returns_five_classes_by_default(aligner, concepts):
    labels, proba = classifier_of(aligner).predict_top_k(concepts.image[:3])
    assert labels.shape == proba.shape == (3, 5)


def test_single_class_has_probability_one(aligner, concepts):
    classifier = ZeroShotClassifier(NAMES[:1], aligner=aligner, templates="none")
    labels, proba = classifier.predict_top_k(concepts.image[:3], k=1)
    assert labels.tolist() == [[NAMES[0]]] * 3
    assert (proba == 1).all()


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads the system's count of pages")
def test_peak_memory_is_bounded(tmp_path):
    """The features of 200,000 images are 51 MB in a file; all logits would be 800 MB."""
    features = np.random.default_rng(0).standard_normal((200_000, 64), dtype=np.float32)
    np.save(tmp_path / "X.npy", features)
    completed = subprocess.run(
        [sys.executable, "-c", _CHILD_SCRIPT, str(tmp_path / "X.npy")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(completed.stdout) < 45


# The peak of getrusage would include that of the parent process.
_CHILD_SCRIPT = """
def peak():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) / 1024

import sys
import numpy as np
from sklearn.base import BaseEstimator
from sklearn_ape import CCAAligner, ZeroShotClassifier

class Texts(BaseEstimator):
    def fit(self, X, y=None):
        return self
    def transform(self, X):
        rows = [np.random.default_rng(int(text)).standard_normal(32) for text in X]
        return np.array(rows, dtype=np.float32)

rng = np.random.default_rng(0)
names = [str(number) for number in range(1000)]
aligner = CCAAligner(text_encoder=Texts()).fit(rng.standard_normal((1000, 64)), names)
classifier = ZeroShotClassifier(names, aligner=aligner, templates="none")
X = np.load(sys.argv[1], mmap_mode="r")
classifier.predict(X[:5000])
before = peak()
classifier.predict(X)
print(peak() - before)
"""
