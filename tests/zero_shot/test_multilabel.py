"""MultiLabelZeroShotClassifier on real images with one to three labels each."""

import pickle
import re

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import KFold, cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import CCAAligner, MultiLabelZeroShotClassifier, load_pretrained
from sklearn_ape.aligners.starter import load_starter
from sklearn_ape.encoders.items import EncodingError
from sklearn_ape.zero_shot._multilabel_targets import find_best_f1_threshold, find_f1_thresholds

LABELS = {
    "travel": ["a vehicle", "a building", "a landscape", "a clock"],
    "animal": ["an animal", "a bird", "a plant"],
    "food": ["food", "a fruit", "a meal"],
    "clock": ["a clock", "a watch"],
    "building": ["a building", "a house"],
    "vehicle": ["a vehicle", "a car", "a train"],
    "bird": ["a bird"],
    "drink": ["a drink", "a bottle"],
}
WORDS = {
    "clock": "clock|thirty|watch|hourglass",
    "building": "castle|office|bank|building|house|hut|school|station|temple|shrine|hotel|tower",
    "vehicle": "bus$|car$|truck|taxi|boat|train|rail$|metro|engine|scooter|cycle|mobile|airplane",
    "bird": "bird|chick|eagle|goose|owl|parrot|swan|phoenix",
    "drink": "beer|glass|drink|bottle|sake|teacup|milk",
}


@pytest.fixture(scope="module")
def true_labels(captioned_images):
    """Return the labels that follow from the category and from words of the caption."""
    columns = {
        name: [bool(re.search(WORDS[name], caption)) for caption in captioned_images.captions]
        if name in WORDS
        else captioned_images.categories == name
        for name in LABELS
    }
    return pd.DataFrame(columns).astype(int).to_numpy()


@pytest.fixture
def classifier(aligner):
    return MultiLabelZeroShotClassifier(LABELS, aligner=aligner)


def halves(seed):
    rows = 150 + np.random.default_rng(seed).permutation(150)
    return rows[:75], rows[75:]


class TestWithoutFit:
    def test_labels_hold_for_their_prevalence_in_the_bank(self, classifier, features):
        """The bank holds the 150 images that the aligner was fitted on."""
        for prevalence in (0.1, 0.3):
            predicted = classifier.set_params(prevalence=prevalence).predict(features.image[:150])
            np.testing.assert_allclose(predicted.mean(axis=0), prevalence, atol=0.02)
        classifier.set_params(prevalence={**dict.fromkeys(LABELS, 0.1), "animal": 0.5})
        frequency = classifier.predict(features.image[:150]).mean(axis=0)
        np.testing.assert_allclose(frequency[:3], [0.1, 0.5, 0.1], atol=0.02)

    def test_precision_is_better_than_chance(self, classifier, features, true_labels):
        rows = slice(150, 300)
        precision = average_precision_score(
            true_labels[rows], classifier.decision_function(features.image[rows])
        )
        assert precision > 2 * true_labels[rows].mean()

    def test_columns_are_in_the_order_of_labels(self, classifier, aligner, features):
        assert classifier.labels_.tolist() == list(LABELS)
        reverse = MultiLabelZeroShotClassifier(
            {name: LABELS[name] for name in reversed(LABELS)}, aligner=aligner
        )
        np.testing.assert_allclose(
            reverse.decision_function(features.image[150:170])[:, ::-1],
            classifier.decision_function(features.image[150:170]),
            atol=1e-4,
        )

    def test_prediction_methods_agree(self, classifier, features):
        X = features.image[150:200]
        scores, table = classifier.decision_function(X), classifier.predict(X)
        proba = classifier.predict_proba(X)
        np.testing.assert_array_equal(table, scores > 0)
        np.testing.assert_array_equal(table, proba > 0.5)
        assert set(np.unique(table)) == {0, 1}
        names = list(LABELS)
        assert classifier.predict_sets(X) == [
            tuple(names[column] for column in np.flatnonzero(row)) for row in table
        ]

    def test_unreadable_images_get_no_label(self, classifier, features):
        X = features.image[150:155].copy()
        X[3] = np.nan
        with pytest.warns(UserWarning, match=r"1 of 5 images could not be read .*: rows 3\."):
            table = classifier.predict(X)
        assert not table[3].any()
        assert classifier.score(X[3:4], table[3:4]) == 0
        assert np.isnan(classifier.predict_proba(X)[3]).all()


class TestThresholds:
    def test_fitted_thresholds_beat_a_common_threshold(
        self, classifier, aligner, features, true_labels
    ):
        """Measured F1: 0.47 and 0.41 (macro), 0.50 and 0.34 (samples)."""
        gains = []
        logits = classifier._make_logits(aligner, scale=1.0)
        for seed in range(4):
            train, test = halves(seed)
            scores = {
                name: logits.collect(features.image[rows])
                for name, rows in (("train", train), ("test", test))
            }
            common = find_best_f1_threshold(true_labels[train].ravel(), scores["train"].ravel())
            classifier.fit_thresholds(features.image[train], true_labels[train])
            predicted = classifier.predict(features.image[test])
            gains.append([
                f1_score(true_labels[test], predicted, average=average, zero_division=0)
                - f1_score(
                    true_labels[test], scores["test"] > common, average=average, zero_division=0
                )
                for average in ("macro", "samples")
            ])  # fmt: skip
        assert np.mean(gains, axis=0)[0] > 0.03
        assert np.mean(gains, axis=0)[1] > 0.08

    def test_thresholds_of_few_examples_shrink_to_the_common_one(self):
        rng = np.random.default_rng(0)
        true_labels = np.zeros((200, 3), int)
        true_labels[:100, 0] = true_labels[0, 1] = 1
        scores = rng.standard_normal((200, 3)) + 2 * true_labels
        own = find_f1_thresholds(true_labels, scores, shrinkage=0.0)
        common = find_best_f1_threshold(true_labels.ravel(), scores.ravel())
        shrunk = find_f1_thresholds(true_labels, scores, shrinkage=5.0)
        np.testing.assert_allclose(shrunk[0] - common, (own[0] - common) * 100 / 105)
        np.testing.assert_allclose(shrunk[1] - common, (own[1] - common) * 1 / 6)
        assert shrunk[2] == pytest.approx(common)
        np.testing.assert_array_equal(find_f1_thresholds(0 * true_labels, scores, 5.0), 0)

    def test_best_f1_threshold_is_best_of_all_cuts(self):
        rng = np.random.default_rng(1)
        for _ in range(20):
            true_labels = rng.integers(0, 2, 15)
            true_labels[0] = 1
            scores = rng.integers(0, 6, 15).astype(float)
            cuts = np.unique(scores) - 0.5
            best = max(f1_score(true_labels, scores > cut) for cut in cuts)
            assert (
                f1_score(true_labels, scores > find_best_f1_threshold(true_labels, scores)) == best
            )

    def test_predictions_do_not_depend_on_the_logit_scale(self, classifier, features, true_labels):
        train, test = halves(0)
        classifier.fit_thresholds(features.image[train], true_labels[train])
        before = classifier.predict(features.image[test])
        classifier.set_params(logit_scale=1.0)
        np.testing.assert_array_equal(classifier.predict(features.image[test]), before)


def in_order(labels, order):
    return {label: labels[label] for label in order}


class TestThresholdsOfLabels:
    @pytest.fixture
    def fitted(self, numbered):
        classifier = MultiLabelZeroShotClassifier(numbered.labels, aligner=numbered.aligner)
        return classifier.fit(numbered.X, numbered.Y)

    def check(self, classifier, X, expected, order):
        """Compare scores and thresholds with those before labels were changed, by label."""
        thresholds, scores = expected
        assert classifier.labels_.tolist() == order
        assert classifier.thresholds_.tolist() == [thresholds[label] for label in order]
        np.testing.assert_allclose(
            classifier.decision_function(X),
            np.column_stack([scores[label] for label in order]),
            atol=1e-4,
        )

    @pytest.mark.parametrize("order", [[1, 20, 0, 10], [20, 1], [0]])
    def test_thresholds_follow_reordered_labels(self, fitted, numbered, order, tmp_path):
        """For another order and for a subset of the labels, also after pickling."""
        names = fitted.labels_.tolist()
        expected = (
            dict(zip(names, fitted.thresholds_.tolist(), strict=True)),
            dict(zip(names, fitted.decision_function(numbered.X).T, strict=True)),
        )
        fitted.set_params(labels=in_order(numbered.labels, order))
        self.check(fitted, numbered.X, expected, order)
        self.check(pickle.loads(pickle.dumps(fitted)), numbered.X, expected, order)
        fitted.set_params(labels=numbered.labels)
        self.check(fitted, numbered.X, expected, names)

    def test_thresholds_are_saved_in_label_order(
        self, classifier, features, true_labels, tmp_path
    ):
        X = features.image[:20]
        classifier.fit_thresholds(features.image[150:], true_labels[150:])
        before = classifier.decision_function(X)
        classifier.set_params(labels=in_order(LABELS, reversed(LABELS)))
        classifier.save_pretrained(tmp_path / "model")
        restored = load_pretrained(tmp_path / "model")
        np.testing.assert_array_equal(restored.thresholds_, classifier.thresholds_)
        np.testing.assert_allclose(restored.decision_function(X)[:, ::-1], before, atol=1e-4)
        restored.set_params(labels=LABELS)
        np.testing.assert_allclose(restored.decision_function(X), before, atol=1e-4)

    def test_labels_without_positive_image_warn(self, fitted, numbered):
        with pytest.warns(UserWarning, match="Y has no label for any image"):
            fitted.fit_thresholds(numbered.X, np.zeros((160, 4)))

    def test_unfitted_aligner_needs_images_with_labels(self, text_encoder):
        new = MultiLabelZeroShotClassifier(LABELS, aligner=CCAAligner(text_encoder=text_encoder))
        with pytest.raises(ValueError, match="Y has no label for any of 6 images"):
            new.fit(np.eye(6), np.zeros((6, len(LABELS))))

    def test_labels_without_threshold_raise_with_their_names(self, fitted, numbered, tmp_path):
        fitted.set_params(labels={**numbered.labels, 7: "a car", 8: "the sun"})
        for method in (
            lambda: fitted.predict(numbered.X),
            lambda: fitted.score(numbered.X, np.zeros((160, 6))),
            lambda: fitted.thresholds_,
            lambda: fitted.save_pretrained(tmp_path / "model"),
        ):
            with pytest.raises(ValueError, match=r"labels has 7, 8, for which no .*again"):
                method()
        Y = np.column_stack([numbered.Y, numbered.Y[:, :2]])
        assert fitted.fit_thresholds(numbered.X, Y).thresholds_.shape == (6,)

    def test_changed_standardize_raises(self, fitted, numbered, tmp_path):
        """With other images, the F1 score of emoji fell from 0.62 to 0.47, in silence."""
        before = fitted.predict(numbered.X)
        for value in (False, numbered.X):
            fitted.set_params(standardize=value)
            with pytest.raises(ValueError, match=r"standardize=.* was set after fit"):
                fitted.predict(numbered.X)
            with pytest.raises(ValueError, match=r"standardize=.* was set after fit"):
                fitted.save_pretrained(tmp_path / "model")
        fitted.fit_thresholds(numbered.X, numbered.Y)
        for classifier in (fitted, pickle.loads(pickle.dumps(fitted))):
            assert classifier.predict(numbered.X).shape == (160, 4)
        fitted.set_params(standardize=True).fit(numbered.X, numbered.Y)
        np.testing.assert_array_equal(fitted.predict(numbered.X), before)

    def test_joblib_file_with_array_to_standardize_by_is_current(self, fitted, numbered, tmp_path):
        """joblib stores an array that a pickle would store once as often as it occurs."""
        fitted.set_params(standardize=numbered.X[:50]).fit(numbered.X, numbered.Y)
        joblib.dump(fitted, tmp_path / "current")
        np.testing.assert_array_equal(
            joblib.load(tmp_path / "current").predict(numbered.X), fitted.predict(numbered.X)
        )
        joblib.dump(fitted.set_params(standardize=numbered.X[:60]), tmp_path / "changed")
        with pytest.raises(ValueError, match=r"standardize=.* was set after fit"):
            joblib.load(tmp_path / "changed").predict(numbered.X)

    def test_thresholds_are_read_only(self, fitted):
        with pytest.raises(ValueError, match="read-only"):
            fitted.thresholds_[0] = 1.0
        unfitted = clone(fitted)
        assert not hasattr(unfitted, "thresholds_")


class TestStarter:
    def test_fit_keeps_starter_and_learns_thresholds(
        self, captioned_images, tmp_path, monkeypatch
    ):
        """Nothing is trained, so the thresholds are equal to those of `fit_thresholds`."""
        monkeypatch.setattr(
            MultiLabelZeroShotClassifier, "_fit_aligner", lambda *_: pytest.fail("was trained")
        )
        names = ["animal", "food", "travel"]
        images = captioned_images.images[:60]
        Y = pd.DataFrame({name: captioned_images.categories[:60] == name for name in names})
        fitted = MultiLabelZeroShotClassifier().fit(images, Y)
        assert fitted.aligner_ is load_starter()
        assert fitted.labels_.tolist() == names
        alone = MultiLabelZeroShotClassifier(names).fit_thresholds(images, Y)
        np.testing.assert_array_equal(fitted.thresholds_, alone.thresholds_)
        predicted = fitted.predict(images)
        assert f1_score(Y, predicted, average="macro") > 0.6
        fitted.save_pretrained(tmp_path / "model")
        restored = load_pretrained(tmp_path / "model")
        np.testing.assert_array_equal(restored.thresholds_, fitted.thresholds_)
        np.testing.assert_array_equal(restored.predict(images), predicted)


class TestFit:
    def test_forms_of_Y_give_equal_thresholds(
        self, aligner, features, true_labels, captioned_images
    ):
        """Arrays, a sparse matrix, a DataFrame in any order of columns, and sets of labels."""
        frozen = MultiLabelZeroShotClassifier(LABELS, aligner=FrozenEstimator(aligner))
        X, Y = features.image[150:], true_labels[150:]
        names = np.array(list(LABELS))
        frame = pd.DataFrame(Y, columns=names)[names[::-1]]
        sets = [set(names[row == 1]) for row in Y]
        forms = [Y, Y.astype(bool), Y.astype(float), csr_array(Y), frame, sets]
        fitted = [clone(frozen).fit(X, form) for form in forms]
        for classifier in fitted:
            np.testing.assert_allclose(classifier.thresholds_, fitted[0].thresholds_)
            assert classifier.aligner_.estimator is aligner
        assert fitted[0].score(X, Y) == fitted[0].score(X, sets) == fitted[0].score(X, frame)

    def test_labels_are_taken_from_Y(self, aligner, features, true_labels):
        frozen = MultiLabelZeroShotClassifier(aligner=FrozenEstimator(aligner))
        X, Y = features.image[150:], true_labels[150:]
        with pytest.raises(NotFittedError, match="pass labels and a fitted aligner"):
            frozen.predict(X)
        frame = pd.DataFrame(Y, columns=list(LABELS))
        assert clone(frozen).fit(X, frame).labels_.tolist() == list(LABELS)
        sets = [[name for name, one in zip(LABELS, row, strict=True) if one] for row in Y]
        assert clone(frozen).fit(X, sets).labels_.tolist() == sorted(LABELS)
        with pytest.raises(ValueError, match="8 columns of Y have no names"):
            clone(frozen).fit(X, Y)

    @pytest.mark.exhaustive
    def test_unfitted_aligner_is_trained_on_captions_or_labels(
        self, features, true_labels, captioned_images, text_encoder
    ):
        """Images without a label are left out of the training."""
        new = MultiLabelZeroShotClassifier(LABELS, aligner=CCAAligner(text_encoder=text_encoder))
        X, Y = features.image[:200], true_labels[:200].copy()
        Y[:5] = 0
        for captions in (None, captioned_images.captions[:200]):
            fitted = clone(new).fit(X, Y, captions=captions)
            predicted = fitted.predict(features.image[200:])
            assert f1_score(true_labels[200:], predicted, average="micro") > 0.4

    @pytest.mark.parametrize("n_unlabelled", [0, 5])
    def test_unreadable_images_are_named_by_their_rows(
        self, captioned_images, image_encoder, text_encoder, n_unlabelled
    ):
        """They were named by rows of a fold of the cross-validation."""
        images = [*captioned_images.images[:20], b"no image", *captioned_images.images[20:23]]
        Y = ([[]] * n_unlabelled + [["animal"], ["food"]] * 12)[: len(images)]
        encoder = clone(image_encoder)
        aligner = CCAAligner(image_encoder=encoder, text_encoder=text_encoder)
        new = MultiLabelZeroShotClassifier(["animal", "food"], aligner=aligner)
        with pytest.raises(EncodingError, match="row 20: the bytes object") as caught:
            new.fit(images, Y)
        assert list(caught.value.errors) == [20]
        if n_unlabelled == 0:
            encoder.set_params(on_error="nan")
            with pytest.warns(UserWarning, match="row 20: the bytes object") as warned:
                new.fit(images, Y)
            texts = [str(warning.message) for warning in warned]
            assert [text for text in texts if re.search(r"row \d", text)] == [texts[0]]
            assert [text for text in texts if "left out" in text] == [texts[1]]
            assert texts[1].endswith("could not be encoded: 20.")

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize("to_column", [pa.array, pl.Series])
    @pytest.mark.parametrize("n_captions", [1, 2])
    def test_captions_may_be_a_column_of_pyarrow_or_polars(
        self, features, true_labels, captioned_images, text_encoder, to_column, n_captions
    ):
        new = MultiLabelZeroShotClassifier(LABELS, aligner=CCAAligner(text_encoder=text_encoder))
        X, Y = features.image[:60], true_labels[:60].copy()
        Y[:5] = 0
        captions = captioned_images.captions[:60]
        if n_captions == 2:
            captions = [[caption, f"a drawing of {caption}"] for caption in captions]
        expected = clone(new).fit(X, Y, captions=captions).decision_function(X)
        actual = clone(new).fit(X, Y, captions=to_column(captions)).decision_function(X)
        np.testing.assert_array_equal(actual, expected)

    def test_captions_may_not_be_a_table(self, features, true_labels, text_encoder):
        new = MultiLabelZeroShotClassifier(LABELS, aligner=CCAAligner(text_encoder=text_encoder))
        captions = pd.DataFrame({"first": ["a cat"] * 60, "second": ["a pet"] * 60})
        with pytest.raises(ValueError, match="captions is a table with the columns"):
            new.fit(features.image[:60], true_labels[:60], captions=captions)


class TestWithScikitLearn:
    @pytest.mark.parametrize("n_labels", [2, 8])
    def test_multi_label_scorers_work(self, aligner, features, true_labels, n_labels):
        """Also for two labels, which scikit-learn could take for two classes."""
        labels = dict(list(LABELS.items())[:n_labels])
        frozen = MultiLabelZeroShotClassifier(labels, aligner=FrozenEstimator(aligner))
        X, Y = features.image[150:], true_labels[150:, :n_labels]
        scores = cross_validate(
            make_pipeline(StandardScaler(with_mean=False, with_std=False), frozen),
            X,
            Y,
            cv=3,
            scoring=["f1_samples", "f1_macro", "average_precision", "roc_auc", "accuracy"],
            error_score="raise",
        )
        assert all(np.isfinite(values).all() for values in scores.values())
        assert scores["test_roc_auc"].mean() > 0.6
        proba = cross_val_predict(frozen, X, Y, cv=KFold(3), method="predict_proba")
        assert proba.shape == Y.shape
        fitted = clone(frozen).fit(X, Y)
        direct = average_precision_score(Y, fitted.decision_function(X))
        from sklearn.metrics import get_scorer

        assert get_scorer("average_precision")(fitted, X, Y) == pytest.approx(direct)

    def test_score_uses_sample_weight(self, classifier, features, true_labels):
        X, Y = features.image[150:], true_labels[150:]
        right = (classifier.fit_thresholds(X, Y).predict(X) == Y).all(axis=1)
        assert classifier.score(X, Y, sample_weight=right.astype(float)) == 1.0


class TestBadInput:
    def test_inconsistent_lengths_raise(self, classifier, features):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            classifier.fit_thresholds(features.image[:2], np.zeros((3, 8)))

    @pytest.mark.parametrize(
        ("parameter", "value", "message"),
        [("prevalence", 0.0, r"prevalence must be a number in \(0, 1\), not 0.0"),
         ("prevalence", {"animal": 2.0}, r"prevalence\['animal'\] must be a number in \(0, 1\)"),
         ("prevalence", {"animal": 0.5}, r"no fraction for the labels 'travel'"),
         ("shrinkage", -1, r"shrinkage must be a number in \[0, inf\], not -1"),
         ("cv", 1, "cv must be an integer >= 2, not 1"),
         ("cv", "3", "cv must be an integer >= 2, a splitter of scikit-learn or an iterable"),
         ("cv", None, "an iterable of splits, not None"),
         ("logit_scale", 0, "logit_scale must be None or a number in")],
    )  # fmt: skip
    def test_invalid_parameter_raises(self, classifier, features, parameter, value, message):
        with pytest.raises(ValueError, match=message):
            classifier.set_params(**{parameter: value}).predict(features.image[:2])


@pytest.mark.parametrize("labels", [{"cat", "dog"}, {"pet": {"cat": None, "dog": None}}])
def test_set_or_hierarchy_of_labels_raises(labels):
    with pytest.raises(ValueError, match=r"labels is a (set, whose|hierarchy, which)"):
        MultiLabelZeroShotClassifier(labels).predict_sets(np.ones((2, 3)))
