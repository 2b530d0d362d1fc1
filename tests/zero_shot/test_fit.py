"""`ZeroShotClassifier.fit`, and an aligner that changes after it."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import (
    APEAligner,
    CCAAligner,
    FewShotClassifier,
    KernelAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.aligners.starter import load_starter
from sklearn_ape.encoders import TransformersTextEncoder
from tests.conftest import LABELS

_TEXTS = HashingVectorizer(n_features=64, analyzer="char")
_APE = APEAligner(text_encoder=_TEXTS, head="glu", width=32, max_epochs=1, batch_size=64,
                  learning_rate=1e-2, random_state=0)  # fmt: skip
CHECKED = {
    "kernel, threshold": ZeroShotClassifier(
        aligner=KernelAligner(text_encoder=_TEXTS), templates="none", threshold=0.0,
        unknown_label=-1,
    ),
    "APE, templates and scale": ZeroShotClassifier(
        aligner=_APE, templates=["{}", "a {}"], logit_scale=5.0
    ),
    "CCA, standardized": ZeroShotClassifier(
        aligner=CCAAligner(text_encoder=_TEXTS), templates="none", standardize=True
    ),
}  # fmt: skip


class TestFit:
    def test_aligner_is_trained_on_prompts(self, features, captioned_images, text_encoder):
        """An aligner that is trained on three names distinguishes them."""
        aligner = APEAligner(text_encoder=text_encoder, width=64, max_epochs=10, batch_size=64,
                             random_state=0)  # fmt: skip
        classifier = ZeroShotClassifier(aligner=aligner)
        classifier.fit(features.image[:200], captioned_images.categories[:200])
        assert classifier.classes_.tolist() == ["animal", "food", "travel"]
        assert classifier.score(features.image[200:], captioned_images.categories[200:]) > 0.6

    def test_prompts_have_the_names_and_templates_of_each_label(self, numbered):
        labels = {"cat": ["kitten", "a {} of mine"], "dog": None}
        X, y = numbered.X[:20], ["cat", "dog"] * 10
        classifier = ZeroShotClassifier(labels, aligner=numbered.aligner, templates="photo")
        prompts = [["a photo of a kitten.", "a cat of mine"], ["a photo of a dog."]] * 10
        expected = clone(numbered.aligner).fit(X, prompts)
        assert classifier.fit(X, y).aligner_.fingerprint_ == expected.fingerprint_

    @pytest.mark.parametrize("is_frozen", [False, True])
    def test_values_of_y_that_are_not_labels_raise(
        self, features, captioned_images, aligner, is_frozen
    ):
        """Such as captions, or misspelt labels."""
        model = FrozenEstimator(aligner) if is_frozen else clone(aligner)
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        y = captioned_images.categories[:30].tolist()
        y[3] = y[5] = "anmial"
        y[7] = "foood"
        expected = r"not in labels: 'anmial' \(row 3\), 'foood' \(row 7\)\. .* captions=\.\.\."
        with pytest.raises(ValueError, match=expected):
            classifier.fit(features.image[:30], y)
        with pytest.raises(ValueError, match="not in labels"):
            classifier.fit(features.image[:30], y, captions=captioned_images.captions[:30])
        assert not hasattr(classifier, "aligner_")

    def test_search_chooses_the_threshold_with_images_of_no_class(
        self, features, captioned_images, aligner
    ):
        labels = {name: LABELS[name] for name in ("animal", "food")}
        y = np.where(captioned_images.categories == "travel", "none", captioned_images.categories)
        classifier = ZeroShotClassifier(
            labels, aligner=FrozenEstimator(aligner), unknown_label="none"
        )
        thresholds = [None, 0.7, 0.8, 0.9]
        search = GridSearchCV(classifier, {"threshold": thresholds}, cv=3, error_score="raise")
        search.fit(features.image[150:], y[150:])
        assert search.best_params_["threshold"] is not None
        assert search.best_estimator_.classes_.tolist() == ["animal", "food"]
        with pytest.raises(ValueError, match="not in labels: 'none'"):  # nothing to train on
            classifier.set_params(aligner=clone(aligner)).fit(features.image, y)

    def test_captions_take_precedence_over_y(self, features, captioned_images, text_encoder):
        aligner = APEAligner(text_encoder=text_encoder, width=64, max_epochs=2, random_state=0)
        classifier = ZeroShotClassifier(LABELS, aligner=aligner)
        X = features.image[:, :64]
        classifier.fit(X, captioned_images.categories, captions=captioned_images.captions)
        direct = clone(aligner).fit(X, captioned_images.captions)
        assert classifier.aligner_.fingerprint_ == direct.fingerprint_
        assert not hasattr(aligner, "module_")

    def test_clone_of_a_fitted_aligner_is_trained_with_a_warning(
        self, features, captioned_images, text_encoder
    ):
        """Cross-validation clones, so that its score is not that of the aligner passed."""
        images, y = features.image[:100, :64], captioned_images.categories[:100]
        captions = captioned_images.captions[:100]
        model = CCAAligner(text_encoder=text_encoder).fit(images, captions)
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        with pytest.warns(UserWarning, match="clone of a fitted aligner") as caught:
            cross_val_score(clone(classifier), images, y, cv=2)
        assert len([w for w in caught if "clone of a fitted" in str(w.message)]) == 2
        frozen = ZeroShotClassifier(LABELS, aligner=FrozenEstimator(model))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cross_val_score(frozen, images, y, cv=2)
            clone(classifier).fit(images, y, captions)  # training is what captions are for
            clone(classifier.fit(images, y)).set_params(aligner=model).fit(images, y)

    @pytest.mark.exhaustive
    def test_clone_of_the_starter_is_trained_with_a_warning(self, captioned_images):
        """As a step of a Pipeline within cross-validation, it would learn the class labels."""
        pipeline = make_pipeline(load_starter(), KNeighborsClassifier())
        images, y = captioned_images.images[:30], captioned_images.categories[:30]
        with pytest.warns(UserWarning, match="clone of the starter model"):
            clone(clone(pipeline)).set_params(apealigner__max_epochs=1).fit(images, y)
        classifier = ZeroShotClassifier(LABELS, aligner=clone(load_starter()))
        classifier.set_params(aligner__max_epochs=1)
        with pytest.warns(UserWarning, match="clone of") as caught:
            classifier.fit(images, y)
        assert len([w for w in caught if "clone of" in str(w.message)]) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frozen = make_pipeline(FrozenEstimator(load_starter()), KNeighborsClassifier())
            clone(frozen).fit(images, y)

    def test_frozen_aligner_is_kept(self, model, held_out):
        classifier = ZeroShotClassifier(LABELS, aligner=FrozenEstimator(model))
        fitted = clone(classifier).fit(held_out[0], held_out[1])
        assert fitted.aligner_.estimator is model
        np.testing.assert_array_equal(fitted.predict(held_out[0]), classifier.predict(held_out[0]))

    def test_classifier_is_last_step_of_pipeline(self, model, held_out, captioned_images):
        images, y, _ = held_out
        pipeline = make_pipeline(model[0], ZeroShotClassifier(LABELS, aligner=model[-1]))
        assert pipeline.score(images, y) > 0.5  # without fit
        pipeline.set_params(zeroshotclassifier__aligner=clone(model[-1])).fit(
            captioned_images.images[:200],
            captioned_images.categories[:200],
            zeroshotclassifier__captions=captioned_images.captions[:200],
        )
        np.testing.assert_array_equal(
            pipeline.predict(images), ZeroShotClassifier(LABELS, aligner=model).predict(images)
        )

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("routing", [False, True])
    def test_grid_search_with_captions_as_metadata(self, model, captioned_images, routing):
        with sklearn.config_context(enable_metadata_routing=routing):
            classifier = ZeroShotClassifier(LABELS, aligner=model)
            if routing:
                classifier.set_fit_request(captions=True)
            search = GridSearchCV(
                classifier,
                {"aligner__apealigner__depth": [1, 2], "aligner__apealigner__max_epochs": [5]},
                cv=2,
            )
            captions = [[caption, f"a {caption}"] for caption in captioned_images.captions[:120]]
            search.fit(
                captioned_images.images[:120], captioned_images.categories[:120], captions=captions
            )
        assert search.best_score_ > 0.4
        assert search.predict(captioned_images.images[:2]).shape == (2,)

    def test_aligner_can_be_a_search(self, features, captioned_images, text_encoder):
        search = GridSearchCV(
            APEAligner(text_encoder=text_encoder, max_epochs=2, width=32), {"depth": [1, 2]}, cv=2
        ).fit(features.image[:60, :64], captioned_images.captions[:60])
        classifier = ZeroShotClassifier(LABELS, aligner=search)
        assert classifier.predict(features.image[:4, :64]).shape == (4,)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("name", CHECKED)
    def test_passes_all_estimator_checks(self, name):
        results = check_estimator(CHECKED[name], on_skip=None, on_fail="raise")
        statuses = [result["status"] for result in results]
        assert statuses.count("passed") >= 54
        assert len(statuses) - statuses.count("passed") <= 1  # array API, unless it is set up

    @pytest.mark.exhaustive
    def test_classes_with_one_image_are_learned(self, features, captioned_images, text_encoder):
        """The validation split must not remove classes from the training set."""
        aligner = APEAligner(text_encoder=text_encoder, width=256, batch_size=64, random_state=0)
        names = captioned_images.captions[:80]
        classifier = ZeroShotClassifier(aligner=aligner).fit(features.image[:80], names)
        assert classifier.score(features.image[:80], names) > 0.95


@pytest.fixture(scope="module")
def aligner(features, captioned_images, text_encoder):
    return CCAAligner(text_encoder=text_encoder).fit(
        features.image[:150], captioned_images.captions[:150]
    )


class TestKeptAligner:
    """With an aligner that can embed already, `fit` only learns the classes."""

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("labels", [None, LABELS])
    def test_fitted_aligner_is_kept_and_a_clone_is_trained(
        self, aligner, labels, features, captioned_images
    ):
        X, y = features.image[:100], captioned_images.categories[:100]
        classifier = ZeroShotClassifier(labels, aligner=aligner)
        before = aligner.fingerprint_
        assert classifier.fit(X, y).aligner_ is aligner
        assert aligner.fingerprint_ == before
        assert classifier.classes_.tolist() == sorted(LABELS)
        trained = clone(classifier).fit(X, y)
        assert trained.aligner_.fingerprint_ != before

    @pytest.mark.parametrize("labels", [None, ["animal", "food", "travel", "a flag"]])
    def test_starter_model_is_kept(self, labels, captioned_images, tmp_path):
        images, y = captioned_images.images[:12], captioned_images.categories[:12]
        classifier = ZeroShotClassifier(labels).fit(images, y)
        assert classifier.aligner_ is load_starter()
        assert classifier.classes_.tolist() == sorted(labels or LABELS)
        expected = ZeroShotClassifier(classifier.classes_).predict_proba(images)
        pickled = pickle.dumps(classifier)
        assert len(pickled) < 10_000
        classifier.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 10_000
        for restored in (
            classifier,
            pickle.loads(pickled),
            copy.deepcopy(classifier),
            load_pretrained(tmp_path / "saved"),
        ):
            assert restored.aligner_ is load_starter()
            np.testing.assert_array_equal(restored.predict_proba(images), expected)

    def test_named_aligner_is_kept_without_labels(self, captioned_images, monkeypatch):
        from sklearn_ape.aligners import wrapper

        monkeypatch.setattr(wrapper, "_make_named_aligner", lambda name: load_starter())
        classifier = ZeroShotClassifier(aligner="open_clip:any")
        classifier.fit(captioned_images.images[:6], captioned_images.categories[:6])
        assert classifier.aligner_ is load_starter()

    def test_captions_with_kept_aligner_warn(self, aligner, features, captioned_images):
        X, y, captions = (values[:20] for values in (features.image, captioned_images.categories,
                                                     captioned_images.captions))  # fmt: skip
        for kept in (aligner, FrozenEstimator(aligner)):
            with pytest.warns(UserWarning, match="captions are not used: aligner is fitted"):
                ZeroShotClassifier(LABELS, aligner=kept).fit(X, y, captions=captions)
        with pytest.warns(UserWarning, match="captions are not used: aligner is None, the start"):
            ZeroShotClassifier(LABELS).fit(captioned_images.images[:20], y, captions=captions)

    def test_inconsistent_lengths_raise(self, aligner, features, captioned_images):
        classifier = ZeroShotClassifier(LABELS, aligner=aligner)
        message = "X and y have inconsistent numbers of samples: 9 in X, 8 in y. Pass one entry"
        with pytest.raises(ValueError, match=message):
            classifier.fit(features.image[:9], captioned_images.categories[:8])
        with pytest.raises(ValueError, match="samples: 9 in X, 9 in y, 8 in captions"):
            classifier.fit(features.image[:9], captioned_images.categories[:9], captions=["a"] * 8)

    def test_n_features_in_is_defined_if_aligner_takes_features(
        self, aligner, features, captioned_images
    ):
        assert ZeroShotClassifier(LABELS, aligner=aligner).n_features_in_ == 1280
        unfitted = ZeroShotClassifier(LABELS, aligner=clone(aligner))
        starter = ZeroShotClassifier(LABELS)
        fitted = clone(starter).fit(captioned_images.images[:6], captioned_images.categories[:6])
        named = ZeroShotClassifier(LABELS, aligner="open_clip:ViT-B-32/openai")
        for classifier in (unfitted, starter, fitted, named):
            for name in ("n_features_in_", "feature_names_in_"):
                with pytest.raises(AttributeError, match=f"object has no attribute '{name}'"):
                    getattr(classifier, name)

    def test_weights_in_place_of_captions_raise(self, aligner, features, captioned_images):
        """Classifiers of scikit-learn have sample_weight as the third argument of fit."""
        X, y = features.image[:30], captioned_images.categories[:30]
        with pytest.raises(ValueError, match=r"^captions holds no texts\. .* sample_weight="):
            FewShotClassifier(LABELS, aligner=aligner).fit(X, y, np.ones(len(y)))

    @pytest.mark.parametrize("kind", ["missing text", "table"])
    def test_unused_captions_that_are_not_weights_warn(
        self, aligner, features, captioned_images, kind
    ):
        """A missing text is NaN, and iterating over a table yields the names of its columns."""
        X, y = features.image[:30], captioned_images.categories[:30]
        captions = [np.nan, *["a cat"] * (len(y) - 1)]
        if kind == "table":
            captions = pd.DataFrame(np.ones((len(y), 2)))
        with pytest.warns(UserWarning, match="captions are not used"):
            FewShotClassifier(LABELS, aligner=aligner).fit(X, y, captions)


class TestEncodedLabels:
    """Numbers from 0, fewer than the labels, may come from a meta-estimator."""

    def test_encoded_labels_raise_with_kept_aligner(self, aligner, features):
        names = {0: "an animal", 1: "food", 2: "a vehicle", 3: "a flag"}
        classifier = ZeroShotClassifier(names, aligner=aligner)
        with pytest.raises(ValueError, match="numbers from 0 to 2 only, and labels has 4 classes"):
            classifier.fit(features.image[:30], np.arange(30) % 3)
        classifier.fit(features.image[:30], np.arange(30) % 4)  # all of them

    def test_encoded_labels_warn_with_unfitted_aligner(self, aligner, features):
        """A user may want to predict classes that are not in y."""
        names = {0: "an animal", 1: "food", 2: "a vehicle", 3: "a flag"}
        classifier = ZeroShotClassifier(names, aligner=clone(aligner))
        with pytest.warns(UserWarning, match="may stand for other labels"):
            classifier.fit(features.image[:30], np.arange(30) % 3)
        assert classifier.classes_.tolist() == [0, 1, 2, 3]

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("y", [[1, 2] * 9, [0, 3] * 9, [True] * 18, [0.0, 1.0] * 9])
    def test_labels_that_cannot_be_encoded_do_not_warn(self, aligner, features, y):
        names = {0: "an animal", 1: "food", 2: "a vehicle", 3: "a flag"}
        ZeroShotClassifier(names, aligner=aligner).fit(features.image[:18], y)


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
