"""Predictions of ZeroShotClassifier with a fitted aligner, on real images."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import classification_report, log_loss, top_k_accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_ape import APEAligner, CCAAligner, ZeroShotClassifier
from tests.conftest import LABELS


class TestFittedAligner:
    def test_predicts_without_fit_better_than_chance(self, model, held_out):
        images, y, _ = held_out
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        assert classifier.score(images, y) > 0.5  # chance is a third
        assert set(classifier.predict(images)) <= set(LABELS)

    def test_classes_are_sorted_and_columns_follow(self, model, held_out):
        """Otherwise scorers of probabilities would be wrong without an error."""
        images, y, _ = held_out
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        assert classifier.classes_.tolist() == ["animal", "food", "travel"]
        proba = classifier.predict_proba(images)
        np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
        predicted = classifier.predict(images)
        np.testing.assert_array_equal(classifier.classes_[proba.argmax(axis=1)], predicted)
        assert log_loss(y, proba) < np.log(3)
        assert top_k_accuracy_score(y, proba, k=2) > classifier.score(images, y)
        assert "weighted avg" in classification_report(y, predicted)

    def test_proba_is_the_softmax_of_scaled_cosines(self, model, held_out):
        images = held_out[0][:5]
        names = sorted(held_out[2][:7])
        classifier = ZeroShotClassifier(names, aligner=model, templates="none")
        image, text = model.transform(images), model[-1].transform_text(names)
        logits = model[-1].logit_scale_ * image @ text.T
        np.testing.assert_allclose(
            classifier.decision_function(images), logits, rtol=1e-4, atol=1e-6
        )
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = exponents / exponents.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            classifier.predict_proba(images), expected, rtol=1e-3, atol=1e-6
        )
        np.testing.assert_allclose(
            classifier.predict_log_proba(images), np.log(expected), rtol=1e-3, atol=1e-6
        )

    def test_log_proba_is_finite_for_probabilities_of_zero(self, model, held_out):
        classifier = ZeroShotClassifier(["cat", "bus", "egg"], aligner=model, logit_scale=1e5)
        assert classifier.predict_proba(held_out[0][:5]).min() == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isfinite(classifier.predict_log_proba(held_out[0][:5])).all()

    def test_templates_are_averaged(self, model, held_out):
        images = held_out[0][:5]
        classifier = ZeroShotClassifier(
            ["cat", "bus", "egg"], aligner=model, templates=["{}", "a {} or two"]
        )
        prompts = [["bus", "a bus or two"], ["cat", "a cat or two"], ["egg", "a egg or two"]]
        means = np.stack([model[-1].transform_text(texts).mean(axis=0) for texts in prompts])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        expected = model[-1].logit_scale_ * model.transform(images) @ means.T
        np.testing.assert_allclose(
            classifier.decision_function(images), expected, rtol=1e-4, atol=1e-6
        )

    def test_two_classes_give_one_score_per_image(self, model, held_out):
        images = held_out[0][:8]
        classifier = ZeroShotClassifier(["cat", "bus"], aligner=model)
        scores = classifier.decision_function(images)
        assert scores.shape == (8,)
        np.testing.assert_array_equal(classifier.classes_[(scores > 0).astype(int)],
                                      classifier.predict(images))  # fmt: skip

    def test_numbered_classes_score_like_named_classes(self, model, held_out):
        images, y, _ = held_out
        numbers = {"travel": 2, "animal": 0, "food": 1}
        classifier = ZeroShotClassifier(
            {number: LABELS[name] for name, number in numbers.items()}, aligner=model
        )
        by_name = ZeroShotClassifier(LABELS, aligner=model)
        y_number = np.array([numbers[name] for name in y])
        assert classifier.score(images, y_number) == by_name.score(images, y)

    def test_name_with_placeholder_is_template_of_its_class(self, model, held_out):
        images = held_out[0][:5]
        own = ZeroShotClassifier(
            {"bus": "a yellow {}", "cat": None}, aligner=model, templates="none"
        )
        plain = ZeroShotClassifier(
            {"bus": "a yellow bus", "cat": "cat"}, aligner=model, templates="none"
        )
        np.testing.assert_array_equal(own.predict_proba(images), plain.predict_proba(images))

    def test_features_and_images_give_equal_predictions(self, model, features, captioned_images):
        classifier = ZeroShotClassifier(LABELS, aligner=model[-1])
        around = ZeroShotClassifier(LABELS, aligner=model)
        np.testing.assert_array_equal(
            classifier.predict(features.image[200:220]),
            around.predict(captioned_images.images[200:220]),
        )

    def test_label_embeddings_are_computed_once(self, model, held_out, monkeypatch):
        calls = []
        transform_text = APEAligner.transform_text
        monkeypatch.setattr(
            APEAligner,
            "transform_text",
            lambda self, y: calls.append(len(y)) or transform_text(self, y),
        )
        images = held_out[0][:3]
        classifier = ZeroShotClassifier(["zebra", "yacht"], aligner=model, templates="clip")
        classifier.predict(images)
        classifier.predict_proba(images)
        classifier.score(images, ["zebra"] * 3)
        assert calls == [14]

    def test_refitted_aligner_gets_new_label_embeddings(
        self, features, captioned_images, text_encoder
    ):
        """Cached embeddings must not be used with other weights."""
        aligner = APEAligner(text_encoder=text_encoder, width=32, max_epochs=2, random_state=0)
        aligner.fit(features.image, captioned_images.captions)
        classifier = ZeroShotClassifier(LABELS, aligner=aligner)
        before = classifier.predict_proba(features.image[:5])
        aligner.fit(features.image[:200], captioned_images.captions[:200])
        after = classifier.predict_proba(features.image[:5])
        fresh = ZeroShotClassifier(LABELS, aligner=pickle.loads(pickle.dumps(aligner)))
        np.testing.assert_array_equal(after, fresh.predict_proba(features.image[:5]))
        assert not np.allclose(before, after)

    def test_images_below_threshold_are_unknown(self, model, held_out):
        images = held_out[0]
        sure = ZeroShotClassifier(LABELS, aligner=model).predict_proba(images).max(axis=1)
        classifier = ZeroShotClassifier(LABELS, aligner=model, threshold=float(np.median(sure)))
        unknown = classifier.predict(images) == "unknown"
        np.testing.assert_array_equal(unknown, sure < np.median(sure))
        assert 0 < unknown.sum() < len(images)

    def test_logit_scale_changes_confidence_only(self, model, held_out):
        images = held_out[0]
        soft = ZeroShotClassifier(LABELS, aligner=model, logit_scale=1.0)
        sharp = ZeroShotClassifier(LABELS, aligner=model, logit_scale=80.0)
        np.testing.assert_array_equal(soft.predict(images), sharp.predict(images))
        assert soft.predict_proba(images).max() < sharp.predict_proba(images).max()

    def test_standardization_by_bank_or_collection_keeps_accuracy(
        self, features, captioned_images, text_encoder
    ):
        """A name that is similar to every image is no longer predicted for all."""
        aligner = CCAAligner(text_encoder=text_encoder)
        aligner.fit(features.image[:200], captioned_images.captions[:200])
        image, y = features.image[200:], captioned_images.categories[200:]
        plain = ZeroShotClassifier(LABELS, aligner=aligner)
        for standardize in (True, image):
            classifier = clone(plain).set_params(aligner=aligner, standardize=standardize)
            proba = classifier.predict_proba(image)
            np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
            assert log_loss(y, proba) < np.log(3)
            assert classifier.score(image, y) > plain.score(image, y) - 0.05
            names = ["an animal", "food", "a vehicle"]
            by_name = ZeroShotClassifier(
                names, aligner=aligner, templates="none", standardize=standardize
            )
            expected = aligner.similarity(image, sorted(names), standardize=standardize)
            np.testing.assert_allclose(
                by_name.decision_function(image), aligner.logit_scale_ * expected, atol=1e-4
            )

    def test_collection_for_standardization_is_encoded_once(self, model, held_out, monkeypatch):
        """Attributes that an encoder sets in `transform` do not count as changes."""
        rows = []
        transform = type(model[0]).transform
        monkeypatch.setattr(
            type(model[0]),
            "transform",
            lambda self, X: rows.append(len(X)) or transform(self, X),
        )
        images = held_out[0]
        classifier = ZeroShotClassifier(LABELS, aligner=model, standardize=images)
        for image in images[:3]:
            classifier.predict([image])
        assert rows == [len(images), 1, 1, 1]

    def test_unreadable_images_are_unknown(self, model, held_out, tmp_path):
        torn = tmp_path / "torn.png"
        torn.write_bytes(b"not an image")
        lenient = make_pipeline(clone(model[0]).set_params(on_error="nan"), model[-1])
        images = [held_out[0][0], str(torn), held_out[0][1]]
        for standardize in (False, held_out[0]):
            classifier = ZeroShotClassifier(LABELS, aligner=lenient, standardize=standardize)
            with pytest.warns(
                UserWarning, match=r"could not be read and are predicted as 'unknown': rows 1"
            ):
                labels = classifier.predict(images)
            assert labels[1] == "unknown"
            assert set(labels[[0, 2]]) <= set(LABELS)

    def test_numbers_stay_numbers_with_unknown_label(self, model, held_out):
        images, y, _ = held_out
        numbers = {0: ["an animal"], 1: ["food"], 2: ["a vehicle"]}
        classifier = ZeroShotClassifier(numbers, aligner=model, threshold=0.5)
        predicted = classifier.predict(images)
        assert {type(label) for label in predicted} == {int, str}
        truth = [sorted(LABELS).index(name) for name in y]
        assert classifier.score(images, truth) == np.mean(
            [guess == label for guess, label in zip(predicted, truth, strict=True)]
        )

    def test_score_uses_sample_weight(self, model, held_out):
        images, y, _ = held_out
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        right = classifier.predict(images) == y
        assert classifier.score(images, y, sample_weight=right.astype(float)) == 1.0

    @pytest.mark.parametrize("scale", [1e-30, np.float32(1e-3), 1e30])
    @pytest.mark.parametrize("standardize", [False, True])
    def test_allowed_logit_scales_keep_predictions(self, model, held_out, scale, standardize):
        images = held_out[0][:20]
        plain = ZeroShotClassifier(LABELS, aligner=model, standardize=standardize)
        scaled = clone(plain).set_params(aligner=model, logit_scale=scale)
        np.testing.assert_array_equal(scaled.predict(images), plain.predict(images))
        proba = scaled.predict_proba(images)
        assert proba.dtype == np.float32
        np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([np.nan, 1, 1], r"sample_weight holds nan \(row 0\)"),
            ([1, np.inf, 1], r"sample_weight holds inf \(row 1\)"),
            ([1, 1, -1], r"sample_weight holds -1.0 \(row 2\)"),
            ([0, 0, 0], "sample_weight is zero for every image"),
            ([[1], [1], [1]], r"one number per image, not an array of shape \(3, 1\)"),
            (["1", "1", "1"], "one number per image"),
            ([None, 1, 1], "sample_weight holds nan"),
            ([object(), 1, 1], "one number per image"),
        ],
        ids=["nan", "inf", "negative", "zeros", "2-D", "texts", "none", "objects"],
    )
    def test_invalid_sample_weight_raises(self, model, held_out, weights, message):
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        with pytest.raises(ValueError, match=message):
            classifier.score(held_out[0][:3], held_out[1][:3], sample_weight=weights)

    def test_indistinguishable_names_warn(self, model, held_out):
        classifier = ZeroShotClassifier(
            ["\U0001fae8", "\U0001f9b7"], aligner=model, templates="none"
        )
        with pytest.warns(UserWarning, match=r"have the same embedding.* Describe them by other"):
            classifier.predict(held_out[0][:1])
        classifier.set_params(labels=["caf\u00e9", "cafe\u0301"])
        with pytest.warns(UserWarning, match=r"have the same embedding.* its Unicode characters"):
            classifier.predict(held_out[0][:1])


class TestBadInput:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [(["cat", "dog", "cat"], "labels repeat: 'cat'"),
         ([], "labels is empty"),
         ("cat", "labels must be a sequence of names"),
         (["cat", ""], "labels has the empty label ''"),
         ({"cat": []}, r"labels has the names \[\] for class 'cat'"),
         ({"cat": [3]}, r"labels has the names \[3\] for class 'cat'"),
         ({"cat": 0, "dog": 1}, r"If the classes are numbers, pass \{0: 'cat', \.\.\.\}"),
         ([None, "cat"], "labels holds None, which is a missing value"),
         ({0: "cat", "dog": "dog"}, "mixes texts and numbers")],
    )  # fmt: skip
    def test_invalid_labels_raise(self, model, held_out, labels, message):
        with pytest.raises(ValueError, match=message):
            ZeroShotClassifier(labels, aligner=model).predict(held_out[0][:1])

    @pytest.mark.parametrize(
        ("parameter", "value", "message"),
        [("templates", "simpel", "'simpel' is not a set of"),
         ("templates", ["a photo"], "exactly one place"),
         ("threshold", 1.5, r"threshold must be None or a number in \[0, 1\], not 1.5"),
         ("threshold", float("nan"), "threshold must be None or a number"),
         ("threshold", True, "threshold must be None or a number"),
         ("threshold", "0.5", "threshold must be None or a number"),
         ("logit_scale", 0, r"logit_scale must be None or a number in \[1e-30, 1e\+30\], not 0"),
         ("logit_scale", -1.0, "logit_scale must be None or a number"),
         ("logit_scale", 1e39, "logit_scale must be None or a number"),
         ("logit_scale", float("inf"), "logit_scale must be None or a number"),
         ("logit_scale", float("nan"), "logit_scale must be None or a number"),
         ("logit_scale", True, "logit_scale must be None or a number"),
         ("logit_scale", "10", "logit_scale must be None or a number"),
         ("standardize", "own", "standardize must be True, False or a collection")],
    )  # fmt: skip
    def test_invalid_parameter_raises_before_images_are_read(
        self, model, parameter, value, message
    ):
        classifier = ZeroShotClassifier(LABELS, aligner=model, **{parameter: value})
        with pytest.raises(ValueError, match=message):
            classifier.predict(["no such file"])
        with pytest.raises(ValueError, match=message):
            classifier.fit(["no such file"], ["animal"])

    def test_predict_before_fit_raises(self, model):
        for classifier in (
            ZeroShotClassifier(LABELS, aligner=clone(model)),
            ZeroShotClassifier(aligner=model),
        ):
            with pytest.raises(NotFittedError, match="pass labels and a fitted aligner"):
                classifier.predict([[0.0]])

    def test_invalid_aligner_raises(self, model):
        with pytest.raises(TypeError, match="must be an aligner such as APEAligner"):
            ZeroShotClassifier(LABELS, aligner=HashingVectorizer()).fit([[0.0]], ["animal"])
        with pytest.raises(ValueError, match="is not the name of an aligner"):
            ZeroShotClassifier(LABELS, aligner="clip").fit([[0.0]], ["animal"])
        with pytest.raises(ValueError, match=r"pass load_starter\(\)"):
            ZeroShotClassifier(LABELS, aligner="starter").predict([[0.0]])
        other = ZeroShotClassifier(LABELS)
        other.aligner_ = model  # as after fit
        with pytest.raises(TypeError, match=r"not ZeroShotClassifier\. Pass its aligner_\."):
            ZeroShotClassifier(LABELS, aligner=other).predict([[0.0]])
        with pytest.raises(ValueError, match=r"aligner=load_pretrained\('me/saved'\)"):
            ZeroShotClassifier(LABELS, aligner="me/saved").fit([[0.0]], ["animal"])

    def test_search_with_refit_false_raises(self, model):
        search = GridSearchCV(model[-1], {}, refit=False)
        search.cv_results_ = {}  # as after fit
        classifier = ZeroShotClassifier(LABELS, aligner=search)
        with pytest.raises(TypeError, match="aligner is a GridSearchCV with refit=False"):
            classifier.predict([[0.0]])
        with pytest.raises(TypeError, match="aligner is a GridSearchCV with refit=False"):
            classifier.fit([[0.0]], ["animal"])

    def test_labels_of_y_that_are_not_classes_warn(self, model, held_out):
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        with pytest.warns(UserWarning, match="not in classes_: 'anmial'. They count as errors"):
            assert classifier.score(held_out[0][:2], ["anmial", "anmial"]) == 0.0
        match = r"'Animal ' differs from the label 'animal' only in .* Correct y\."
        with pytest.warns(UserWarning, match=match):
            classifier.score(held_out[0][:2], ["Animal ", "animal"])

    def test_single_class_warns(self, model, held_out):
        """Every image is predicted as a dog, with probability 1."""
        classifier = ZeroShotClassifier(["dog"], aligner=model, threshold=0.5)
        for method in (
            classifier.predict,
            classifier.predict_proba,
            classifier.predict_together,
            classifier.decision_function,
        ):
            with pytest.warns(UserWarning, match="only one class, dog, so every image"):
                method(held_out[0][:1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ZeroShotClassifier(["dog", "other"], aligner=model).predict(held_out[0][:1])

    def test_inconsistent_lengths_raise(self, model, held_out):
        """NumPy would compare a single label with each prediction."""
        classifier = ZeroShotClassifier(LABELS, aligner=model)
        for y, weights in ((held_out[1][:1], None), (held_out[1][:3], [1.0])):
            with pytest.raises(ValueError, match="inconsistent numbers of samples"):
                classifier.score(held_out[0][:3], y, sample_weight=weights)
        with pytest.raises(ValueError, match="y is empty"):
            classifier.score(held_out[0][:3], [])

    def test_missing_image_raises_with_its_row(self, model, held_out):
        with pytest.raises(ValueError, match=r"row 1: '/no/such.png' does not exist"):
            ZeroShotClassifier(LABELS, aligner=model).predict([held_out[0][0], "/no/such.png"])
