"""ZeroShotClassifier.fit on real pictures: names, captions, Pipelines, searches."""

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import APEAligner, ZeroShotClassifier
from tests.zero_shot.labels import LABELS


class TestFit:
    def test_labels_go_through_the_templates(self, features, pictures, text_encoder):
        """Fitted on nothing but three names, it learns to tell the three."""
        aligner = APEAligner(text_encoder=text_encoder, width=64, max_epochs=40, batch_size=64,
                             random_state=0)  # fmt: skip
        classifier = ZeroShotClassifier(aligner=aligner)
        classifier.fit(features.image[:200], pictures.categories[:200])
        assert classifier.classes_.tolist() == ["animal", "food", "travel"]
        assert classifier.score(features.image[200:], pictures.categories[200:]) > 0.6

    def test_other_values_of_y_are_captions(self, features, pictures, text_encoder):
        aligner = APEAligner(text_encoder=text_encoder, width=64, max_epochs=2, random_state=0)
        classifier = ZeroShotClassifier(LABELS, aligner=aligner)
        classifier.fit(features.image, pictures.captions)
        direct = clone(aligner).fit(features.image, pictures.captions)
        assert classifier.aligner_.fingerprint_ == direct.fingerprint_

    def test_captions_are_taken_before_y(self, features, pictures, text_encoder):
        aligner = APEAligner(text_encoder=text_encoder, width=64, max_epochs=2, random_state=0)
        classifier = ZeroShotClassifier(LABELS, aligner=aligner)
        classifier.fit(features.image, pictures.categories, captions=pictures.captions)
        direct = clone(aligner).fit(features.image, pictures.captions)
        assert classifier.aligner_.fingerprint_ == direct.fingerprint_
        assert not hasattr(aligner, "module_")

    def test_frozen_aligner_is_kept(self, model, held_out):
        classifier = ZeroShotClassifier(LABELS, aligner=FrozenEstimator(model))
        fitted = clone(classifier).fit(held_out[0], held_out[1])
        assert fitted.aligner_.estimator is model
        np.testing.assert_array_equal(fitted.predict(held_out[0]), classifier.predict(held_out[0]))

    def test_last_step_of_a_pipeline(self, model, held_out, pictures):
        images, y, _ = held_out
        pipeline = make_pipeline(model[0], ZeroShotClassifier(LABELS, aligner=model[-1]))
        assert pipeline.score(images, y) > 0.5  # ready at once
        pipeline.fit(
            pictures.images[:200],
            pictures.categories[:200],
            zeroshotclassifier__captions=pictures.captions[:200],
        )
        np.testing.assert_array_equal(
            pipeline.predict(images), ZeroShotClassifier(LABELS, aligner=model).predict(images)
        )

    def test_calibration_and_cross_validation(self, model, held_out):
        images, y, _ = held_out
        frozen = ZeroShotClassifier(LABELS, aligner=FrozenEstimator(model))
        calibrated = CalibratedClassifierCV(FrozenEstimator(frozen), method="sigmoid", cv=3)
        proba = calibrated.fit(images, y).predict_proba(images)
        assert log_loss(y, proba) < log_loss(y, frozen.predict_proba(images)) + 0.05
        predicted = cross_val_predict(frozen, images, y, cv=3)
        np.testing.assert_array_equal(predicted, frozen.predict(images))

    @pytest.mark.parametrize("routing", [False, True])
    def test_grid_search_with_captions_as_metadata(self, model, pictures, routing):
        with sklearn.config_context(enable_metadata_routing=routing):
            classifier = ZeroShotClassifier(LABELS, aligner=model)
            if routing:
                classifier.set_fit_request(captions=True)
            search = GridSearchCV(
                classifier,
                {"aligner__apealigner__depth": [1, 2], "aligner__apealigner__max_epochs": [5]},
                cv=2,
            )
            captions = [[caption, f"a {caption}"] for caption in pictures.captions[:120]]
            search.fit(pictures.images[:120], pictures.categories[:120], captions=captions)
        assert search.best_score_ > 0.4
        assert search.predict(pictures.images[:2]).shape == (2,)

    def test_a_search_may_be_the_aligner(self, features, pictures, text_encoder):
        search = GridSearchCV(
            APEAligner(text_encoder=text_encoder, max_epochs=2, width=32), {"depth": [1, 2]}, cv=2
        ).fit(features.image[:60], pictures.captions[:60])
        classifier = ZeroShotClassifier(LABELS, aligner=search)
        assert classifier.predict(features.image[:4]).shape == (4,)

    def test_passes_all_estimator_checks(self):
        text_encoder = HashingVectorizer(n_features=64, analyzer="char")
        aligner = APEAligner(text_encoder=text_encoder, width=32, max_epochs=10, batch_size=64,
                             learning_rate=1e-2, random_state=0)  # fmt: skip
        results = check_estimator(
            ZeroShotClassifier(aligner=aligner, templates="none"), on_skip=None, on_fail="raise"
        )
        statuses = [result["status"] for result in results]
        assert statuses.count("passed") >= 54
        assert len(statuses) - statuses.count("passed") <= 1  # array API, unless it is set up

    def test_many_classes_are_all_learned(self, features, pictures, text_encoder):
        """Validation must not keep whole classes out of the training set."""
        aligner = APEAligner(text_encoder=text_encoder, width=256, batch_size=64, random_state=0)
        names = pictures.captions[:80]
        classifier = ZeroShotClassifier(aligner=aligner).fit(features.image[:80], names)
        assert classifier.score(features.image[:80], names) > 0.95


class TestBadInput:
    def test_labels_that_scikit_learn_has_numbered(self, features, pictures, text_encoder):
        """cross_val_predict numbers the classes for probabilities: numbers are no names."""
        aligner = APEAligner(text_encoder=text_encoder, width=32, max_epochs=2)
        with pytest.raises(ValueError, match="neither one of the labels nor a caption"):
            cross_val_predict(
                ZeroShotClassifier(LABELS, aligner=aligner),
                features.image,
                pictures.categories,
                method="predict_proba",
                cv=2,
            )

    def test_numbers_without_names_are_warned_of(self, features, text_encoder):
        aligner = APEAligner(text_encoder=text_encoder, width=32, max_epochs=1)
        with pytest.warns(UserWarning, match="the classes are named by them"):
            ZeroShotClassifier(aligner=aligner).fit(features.image[:4], [0, 1, 0, 1])

    def test_unequal_lengths_and_missing_labels(self, model, features, pictures):
        frozen = ZeroShotClassifier(LABELS, aligner=FrozenEstimator(model[-1]))
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            frozen.fit(features.image, pictures.categories[:5])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            frozen.fit(features.image, pictures.categories, captions=pictures.captions[:5])
        with pytest.raises(ValueError, match="1 missing labels, the first in row 1"):
            ZeroShotClassifier(aligner=model[-1]).fit(features.image[:3], ["a", np.nan, "b"])
