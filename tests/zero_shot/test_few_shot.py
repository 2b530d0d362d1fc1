"""FewShotClassifier: accuracy beside names and labels, exact updates, contradictory labels."""

import copy
import pickle
import re

import numpy as np
import pytest
import sklearn
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import (
    CCAAligner,
    FewShotClassifier,
    KernelAligner,
    ZeroShotClassifier,
    load_pretrained,
    load_starter,
)
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.features import matrix
from sklearn_ape.zero_shot import _probe
from tests.conftest import LABELS


@pytest.fixture(scope="module")
def pool(features, captioned_images):
    """Return images and labels that the aligner was not fitted on."""
    return features.image[150:], captioned_images.categories[150:]


def choose_examples(y, k, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(y == label))[:k] for label in np.unique(y)]
    return np.isin(np.arange(len(y)), np.concatenate(rows))


SUBCATEGORIES = (
    *("animal-mammal", "animal-bird", "clothing", "drink", "food-prepared", "household"),
    *("place-building", "sky & weather", "tool", "transport-ground"),
)


class TestAccuracy:
    def test_is_higher_than_names_alone_and_labels_alone(self):
        """The starter model with four of 20 images for each of ten subcategories of emoji."""
        data = load_openmoji()
        subcategories = np.array(data.subcategories)
        rows = np.ravel([np.flatnonzero(subcategories == name)[:20] for name in SUBCATEGORIES])
        y = np.array([re.split("[- ]", name)[-1] for name in subcategories[rows]])
        starter = copy.copy(load_starter())
        X = starter.image_encoder_.transform([data.images[row] for row in rows])
        starter.image_encoder_ = None
        scores = []
        for seed in range(3):
            m = choose_examples(y, 4, seed)
            models = [
                FewShotClassifier(aligner=starter).fit(X[m], y[m]),
                ZeroShotClassifier(np.unique(y), aligner=starter),
                LogisticRegression(max_iter=300).fit(X[m], y[m]),
            ]
            scores.append([model.score(X[~m], y[~m]) for model in models])
        few, names, labels = np.mean(scores, axis=0)
        assert few > names + 0.05
        assert few > labels + 0.02

    def test_without_examples_equals_names_alone(self, aligner, pool):
        X, _ = pool
        few = FewShotClassifier(LABELS, aligner=aligner)
        names = ZeroShotClassifier(LABELS, aligner=aligner)
        np.testing.assert_array_equal(few.predict_proba(X), names.predict_proba(X))

    def test_class_without_example_is_predicted_from_its_name(self, aligner, pool):
        X, y = pool
        m = choose_examples(y, 5) & (y != "food")
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[m], y[m])
        assert few.class_count_.tolist() == [5, 0, 5]
        assert max(few.intercept_[[0, 2]]) < few.intercept_[1]
        is_food = (y == "food") & ~m
        assert (few.predict(X[is_food]) == "food").mean() > 0.4
        assert few.score(X[~m], y[~m]) > 0.55

    def test_high_alpha_equals_names_alone(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner, alpha=1e6).fit(X[:20], y[:20])
        few.temperature_ = 1.0
        names = ZeroShotClassifier(LABELS, aligner=aligner)
        np.testing.assert_allclose(few.predict_proba(X), names.predict_proba(X), atol=1e-3)

    @pytest.mark.parametrize(("alpha", "weight"), [(6e-5, 1.0), (6e-3, 20.0)])
    def test_solution_is_precise_with_little_penalty(
        self, aligner, pool, monkeypatch, alpha, weight
    ):
        """A search over alpha must not compare solutions that were stopped too early."""
        X, y = pool
        m = choose_examples(y, 8)
        weights = np.full(m.sum(), weight)

        def predict():
            few = FewShotClassifier(LABELS, aligner=aligner, alpha=alpha)
            return few.fit(X[m], y[m], sample_weight=weights).predict_proba(X[~m])

        probabilities = predict()
        monkeypatch.setattr(_probe, "_MAX_TOLERANCE", 1e-6)
        monkeypatch.setattr(_probe, "_MIN_TOLERANCE", 1e-6)
        assert np.abs(probabilities - predict()).max() < 0.05

    def test_weights_and_alpha_have_a_common_scale(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[:40], y[:40])
        other = FewShotClassifier(LABELS, aligner=aligner, alpha=10 * few.alpha)
        other.fit(X[:40], y[:40], sample_weight=np.full(40, 10.0))
        np.testing.assert_allclose(other.coef_, few.coef_, atol=1e-3)

    @pytest.mark.parametrize("factor", [1e-7, 1e-9, 1e-30])
    def test_cross_validation_is_precise_with_hardly_any_penalty(
        self, aligner, pool, monkeypatch, factor
    ):
        """Fewer held-out examples were predicted correctly, and probabilities were wrong, too."""
        monkeypatch.setattr(_probe, "_PENALTY_FACTORS", ())  # to compare weak penalties alone
        X, y = pool
        expected = FewShotClassifier(LABELS, aligner=aligner, alpha=1e-4).fit(X, y)
        few = FewShotClassifier(LABELS, aligner=aligner, alpha=factor).fit(X, y)
        weighted = FewShotClassifier(LABELS, aligner=aligner, alpha=1.0)
        weighted.fit(X, y, sample_weight=np.full(len(y), 1 / factor))
        for model in (few, weighted):
            assert model.cv_accuracy_ > expected.cv_accuracy_ - 0.03

    def test_probabilities_are_calibrated_by_cross_validation(self, aligner, pool):
        """The temperature reduces the loss of images that were not used."""
        X, y = pool
        losses = []
        for seed in range(3):
            m = choose_examples(y, 20, seed)
            few = FewShotClassifier(LABELS, aligner=aligner).fit(X[m], y[m])
            assert 0 <= few.cv_calibration_error_ < 0.3
            assert abs(few.cv_accuracy_ - few.score(X[~m], y[~m])) < 0.25
            calibrated = log_loss(y[~m], few.predict_proba(X[~m]))
            logits = few.decision_function(X[~m]) * few.temperature_
            losses.append([calibrated, log_loss(y[~m], softmax(logits, axis=1))])
        calibrated, plain = np.mean(losses, axis=0)
        assert calibrated < plain - 0.02

    def test_copies_are_not_predicted_from_each_other(self, aligner, pool):
        """Labelling the same images again must not make the classifier look better."""
        X, y = pool
        weighted = FewShotClassifier(LABELS, aligner=aligner)
        weighted.fit(X[:30], y[:30], sample_weight=np.full(30, 2.0))
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[:30], y[:30])
        few.partial_fit(X[:30], y[:30])
        assert few.class_count_.sum() == 60
        assert few.cv_accuracy_ == pytest.approx(weighted.cv_accuracy_, abs=0.05)
        assert few.temperature_ == pytest.approx(weighted.temperature_, rel=0.1)
        single = FewShotClassifier(LABELS, aligner=aligner).fit(X[[0, 0, 0]], y[[0, 0, 0]])
        assert np.isnan(single.cv_accuracy_)

    def test_weights_apply_to_calibration_error(self, aligner, pool):
        X, y = pool
        short = FewShotClassifier(LABELS, aligner=aligner).fit(X[:30], y[:30])
        # Three more images of each class, so that the folds of the others stay the same.
        rest = np.arange(30, len(y))
        more = np.concatenate([rest[y[rest] == label][:3] for label in np.unique(y[:30])])
        rows, weights = np.r_[:30, more], np.repeat([1, 1e-6], [30, len(more)])
        weighted = FewShotClassifier(LABELS, aligner=aligner).fit(X[rows], y[rows], None, weights)
        assert weighted.cv_accuracy_ == pytest.approx(short.cv_accuracy_, abs=1e-4)
        difference = weighted.cv_calibration_error_ - short.cv_calibration_error_
        assert abs(difference) < 0.02

    def test_one_example_per_class_has_no_cross_validation(self, aligner, pool):
        X, y = pool
        m = choose_examples(y, 1)
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[m], y[m])
        assert few.temperature_ == pytest.approx(1, abs=0.1)  # the names are well calibrated
        assert np.isnan(few.cv_accuracy_)
        assert np.isnan(few.cv_calibration_error_)

    def test_solution_minimizes_documented_objective(self, aligner, pool):
        """Random changes of the vectors of the classes increase the objective."""
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner, alpha=0.05).fit(X[:40], y[:40])
        text = np.stack(
            [
                softmax_free_mean(aligner, names)
                for names in (LABELS[label] for label in few.classes_)
            ]
        )
        scale, codes = aligner.logit_scale_, np.searchsorted(few.classes_, y[:40])
        embeddings = aligner.transform(X[:40])
        features = X[:40] - X[:40].mean(axis=0)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        constant = np.full((40, 1), _probe._INTERCEPT_FEATURE)
        inputs = np.hstack([embeddings, features, constant])

        def objective(residual):
            logits = scale * embeddings @ text.T + inputs @ residual.T
            losses = -log_softmax(logits, axis=1)[np.arange(40), codes]
            return losses.sum() + 0.05 / 2 * np.sum(residual**2)

        residual = np.hstack([few.coef_, few.intercept_[:, None] / _probe._INTERCEPT_FEATURE])
        residual[:, : text.shape[1]] -= scale * text
        best = objective(residual)
        rng = np.random.default_rng(0)
        for size in (0.01, 0.1, 1.0):
            change = rng.standard_normal(residual.shape)
            change *= size * np.linalg.norm(residual) / np.linalg.norm(change)
            assert objective(residual + change) > best
            assert objective(residual - change) > best


def softmax_free_mean(aligner, names):
    """Return the mean embedding of the prompts of names, L2-normalized."""
    templates = ("{}", "a photo of a {}", "a picture of {}", "an illustration of a {}")
    prompts = dict.fromkeys(text.replace("{}", name) for name in names for text in templates)
    mean = aligner.transform_text(list(prompts)).mean(axis=0)
    return mean / np.linalg.norm(mean)


class TestInput:
    def test_different_labels_for_same_image_raise(
        self, captioned_images, image_encoder, text_encoder
    ):
        aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
        aligner.fit(captioned_images.images[:40], captioned_images.captions[:40])
        images = [captioned_images.images[row] for row in (4, 5, 4)]
        few = FewShotClassifier(LABELS, aligner=aligner)
        path = re.escape(repr(images[0]))
        message = rf"'food' in row 0 \({path}\) and 'animal' in row 2 \({path}\)"
        with pytest.raises(ValueError, match=message):
            few.fit(images, ["food", "animal", "animal"])
        assert not hasattr(few, "coef_")
        few.fit(images, ["food", "animal", "food"])
        assert few.class_count_.tolist() == [1, 2, 0]
        with pytest.raises(ValueError, match=r"'animal' in row 0 .* and 'food' in row 1"):
            few.partial_fit(images[1:2] * 2, ["animal", "food"])
        grey = np.zeros((2, 8, 8), dtype=np.uint8)
        with pytest.raises(ValueError, match="'food' in row 0 and 'animal' in row 1"):
            few.partial_fit(grey, ["food", "animal"])

    def test_different_labels_raise_if_the_first_image_is_missing(
        self, captioned_images, image_encoder, text_encoder
    ):
        """The images were taken for features, so that this was only a warning."""
        forgiving = clone(image_encoder).set_params(on_error="nan")
        aligner = KernelAligner(image_encoder=forgiving, text_encoder=text_encoder)
        aligner.fit(captioned_images.images[:40], captioned_images.captions[:40])
        images = [None, *captioned_images.images[:2], captioned_images.images[0]]
        few = FewShotClassifier(LABELS, aligner=aligner)
        with (
            pytest.warns(UserWarning, match="could not be read"),
            pytest.raises(ValueError, match=r"'food' in row 1 .* and 'animal' in row 3 "),
        ):
            few.fit(images, ["food", "food", "food", "animal"])

    def test_different_labels_for_equal_features_warn(self, aligner, pool):
        X, _ = pool
        few = FewShotClassifier(LABELS, aligner=aligner)
        with pytest.warns(UserWarning, match="'food' in row 0 and 'animal' in row 2"):
            few.fit(X[[4, 5, 4]], ["food", "animal", "animal"])

    def test_error_for_different_labels_counts_and_lists_images(self):
        """It named one of them, so that each had to be corrected before the next was found."""
        images = [np.full((8, 8, 3), shade, dtype=np.uint8) for shade in range(7)]
        few = FewShotClassifier(LABELS)
        listed = [f"'food' in row {row} and 'animal' in row {row + 7}, " for row in range(5)]
        message = f"y has different labels for each of 6 images: {''.join(listed)}..."
        with pytest.raises(ValueError, match=re.escape(message)):
            few.fit(images * 2, ["food"] * 7 + ["animal"] * 6 + ["food"])

    def test_error_for_different_labels_names_the_first_row_of_each_label(self):
        images = [np.full((8, 8, 3), 7, dtype=np.uint8)] * 3
        with pytest.raises(ValueError, match="'food' in row 0 and 'animal' in row 2"):
            FewShotClassifier(LABELS).fit(images, ["food", "food", "animal"])

    def test_different_labels_for_all_features_leave_the_names(self, aligner, pool):
        """Examples that nothing distinguishes change the logits of all images equally."""
        X, _ = pool
        with pytest.warns(UserWarning, match="different labels for the same image"):
            few = FewShotClassifier(LABELS, aligner=aligner).fit(X[[4, 4]], ["food", "animal"])
        names = ZeroShotClassifier(LABELS, aligner=aligner)
        changes = few.decision_function(X) - names.decision_function(X)
        np.testing.assert_allclose(changes, changes[[0] * len(X)], atol=1e-3)

    @pytest.mark.parametrize("alpha", [0, -1.0, "high", None])
    def test_invalid_alpha_raises(self, aligner, pool, alpha):
        X, y = pool
        with pytest.raises(ValueError, match="alpha must be a number in"):
            FewShotClassifier(LABELS, aligner=aligner, alpha=alpha).fit(X[:9], y[:9])

    def test_hierarchy_set_after_fit_takes_effect_in_next_fit(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner, threshold=0.3).fit(X[:30], y[:30])
        expected = few.predict(X)
        few.set_params(labels={"cat": {"lion": None, "lynx": None}, "dog": None})
        assert few.predict(X).tolist() == expected.tolist()
        with pytest.raises(AttributeError, match="is not a hierarchy"):
            few.predict_proba_levels(X)

    def test_unknown_label_of_several_values_raises(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner, threshold=0.5, unknown_label=("a", "b"))
        with pytest.raises(ValueError, match="unknown_label must be one text or number"):
            few.fit(X[:30], y[:30])

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_large_memory_map_is_read(self, aligner, pool, tmp_path, monkeypatch, dtype):
        """`fit`, `was_fitted_on` and `predict_together` failed with more than 128 MiB."""
        X, y = pool[0].astype(dtype), pool[1]
        np.save(tmp_path / "X.npy", X)
        in_memory = FewShotClassifier(LABELS, aligner=aligner).fit(X[:60], y[:60])
        expected = in_memory.predict_proba_together(X)
        monkeypatch.setattr(matrix, "_MIN_STORED_BYTES", 0)
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        classifier = FewShotClassifier(LABELS, aligner=aligner).fit(mapped[:60], y[:60])
        assert classifier.was_fitted_on(mapped).tolist() == in_memory.was_fitted_on(X).tolist()
        np.testing.assert_allclose(classifier.predict_proba_together(mapped), expected, atol=1e-4)

    def test_search_chooses_threshold_with_images_of_no_class(self, aligner, pool):
        X, y = pool
        labels = {name: LABELS[name] for name in ("animal", "food")}
        y = np.where(np.isin(y, list(labels)), y, "unknown")
        few = FewShotClassifier(labels, aligner=FrozenEstimator(aligner))
        search = GridSearchCV(few, {"threshold": [None, 0.9]}, cv=3).fit(X, y)
        assert search.best_params_ == {"threshold": 0.9}
        is_class = y != "unknown"
        expected = few.fit(X[is_class], y[is_class])
        np.testing.assert_allclose(
            search.best_estimator_.predict_proba(X), expected.predict_proba(X), atol=5e-3
        )
        with pytest.raises(ValueError, match="a class and a weight above 0"):
            few.fit(X[~is_class], y[~is_class])

    def test_labels_and_shares_change_together(self, aligner, pool):
        """The shares are those of the new labels, not those of the last fit."""
        X, y = pool
        shares = {"animal": 0.5, "food": 0.2, "travel": 0.3}
        few = FewShotClassifier(LABELS, aligner=aligner, class_prior=shares).fit(X[:20], y[:20])
        labels = {name: LABELS[name] for name in ("animal", "food")}
        few.set_params(labels=labels, class_prior={"animal": 0.5, "food": 0.5})
        rows = np.flatnonzero(y[:20] != "travel")
        assert few.fit(X[rows], y[rows]).predict_proba(X[:2]).shape == (2, 2)

    def test_unfitted_aligner_warns(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=clone(aligner))
        with pytest.warns(UserWarning, match="trained on the 20 labelled images alone"):
            few.fit(X[:20], y[:20])

    def test_sample_weight_zero_equals_leaving_out(self, aligner, pool):
        X, y = pool
        weights = np.ones(30)
        weights[10:] = 0
        weighted = FewShotClassifier(LABELS, aligner=aligner).fit(
            X[:30], y[:30], sample_weight=weights
        )
        short = FewShotClassifier(LABELS, aligner=aligner).fit(X[:10], y[:10])
        every = FewShotClassifier(LABELS, aligner=aligner).fit(X[:30], y[:30])
        weighted, short, every = (model.predict_proba(X) for model in (weighted, short, every))
        assert np.abs(weighted - short).max() < 5e-3
        assert np.abs(every - short).max() > 0.1

    @pytest.mark.exhaustive
    def test_unreadable_images_are_left_out(self, captioned_images, text_encoder, features):
        encoder = TimmImageEncoder("efficientnet_lite0", on_error="nan", cache="memory")
        aligner = KernelAligner(image_encoder=encoder, text_encoder=text_encoder)
        aligner.fit(captioned_images.images[:40], captioned_images.captions[:40])
        few = FewShotClassifier(LABELS, aligner=aligner)
        images = [*captioned_images.images[40:44], "missing.png"]
        labels = [*captioned_images.categories[40:44], "food"]
        with pytest.warns(
            UserWarning, match="1 of 5 images could not be read and are left out: rows 4"
        ):
            few.fit(images, labels)
        assert few.class_count_.sum() == 4
        with pytest.raises(ValueError, match="None of the 1 images could be read"):
            few.fit(["missing.png"], ["food"])
        with pytest.raises(ValueError, match="a class and a weight above 0"):
            few.fit(images, labels, sample_weight=[0, 0, 0, 0, 1])


class TestConventions:
    def test_passes_all_estimator_checks(self):
        texts = HashingVectorizer(n_features=64, analyzer="char")
        # With the default of alpha, the checks take twice as long.
        estimator = FewShotClassifier(
            aligner=CCAAligner(text_encoder=texts), templates="none", alpha=0.1
        )
        reason = "the aligner is trained without weights, and folds of repeated images differ"
        results = check_estimator(
            estimator,
            expected_failed_checks={"check_sample_weight_equivalence_on_dense_data": reason},
            on_skip=None,
            on_fail=None,
        )
        failed = [result for result in results if result["status"] == "failed"]
        assert not failed, [(r["check_name"], r["exception"]) for r in failed]

    def test_search_over_alpha_keeps_frozen_aligner(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=FrozenEstimator(aligner))
        search = GridSearchCV(few, {"alpha": [0.006, 0.1]}, cv=3, error_score="raise")
        assert search.fit(X, y).best_score_ > 0.65
        results = cross_validate(clone(few), X, y, cv=3, error_score="raise")
        assert results["test_score"].mean() > 0.65

    def test_sample_weight_is_routed(self, aligner, pool):
        X, y = pool
        weights = np.linspace(0.1, 2, len(y))
        few = FewShotClassifier(LABELS, aligner=FrozenEstimator(aligner))
        with sklearn.config_context(enable_metadata_routing=True):
            few.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
            results = cross_validate(
                few, X, y, cv=2, params={"sample_weight": weights}, return_estimator=True
            )
        used = np.concatenate([model._examples.weights for model in results["estimator"]])
        assert sorted(used) == pytest.approx(sorted(weights))

    def test_pickle_and_copy_keep_predictions_and_examples(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[:20], y[:20])
        for other in (pickle.loads(pickle.dumps(few)), copy.deepcopy(few)):
            np.testing.assert_array_equal(other.predict_proba(X), few.predict_proba(X))
            assert other.partial_fit(X[20:22], y[20:22]).class_count_.sum() == 22
        assert few.class_count_.sum() == 20

    def test_saved_model_can_be_corrected(self, aligner, pool, tmp_path):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[:20], y[:20])
        few.save_pretrained(tmp_path / "model")
        loaded = load_pretrained(tmp_path / "model")
        assert type(loaded) is FewShotClassifier
        np.testing.assert_array_equal(loaded.predict_proba(X), few.predict_proba(X))
        assert loaded.cv_accuracy_ == few.cv_accuracy_
        for model in (loaded, few):
            model.partial_fit(X[20:25], y[20:25])
        np.testing.assert_array_equal(loaded.coef_, few.coef_)
        assert "labelled images | 20" in (tmp_path / "model" / "README.md").read_text()

    def test_unfitted_model_with_labels_is_saved(self, aligner, pool, tmp_path):
        FewShotClassifier(LABELS, aligner=aligner).save_pretrained(tmp_path / "model")
        loaded = load_pretrained(tmp_path / "model")
        X, y = pool
        assert loaded.fit(X[:20], y[:20]).class_count_.sum() == 20

    def test_does_not_change_global_random_state(self, aligner, pool):
        X, y = pool
        np.random.seed(0)  # noqa: NPY002
        expected = np.random.random()  # noqa: NPY002
        np.random.seed(0)  # noqa: NPY002
        FewShotClassifier(LABELS, aligner=aligner).fit(X[:20], y[:20])
        assert np.random.random() == expected  # noqa: NPY002
