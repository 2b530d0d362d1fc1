"""MultiLabelZeroShotClassifier on real images that have one to three labels each."""

import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import KFold, cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import CCAAligner, KernelAligner, MultiLabelZeroShotClassifier, load_pretrained
from sklearn_ape.aligners.kernel import load_starter
from sklearn_ape.zero_shot._multilabel_targets import best_f1_threshold, fit_thresholds

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
def truth(captioned_images):
    """What category says, and what words of the caption say."""
    columns = {
        name: [bool(re.search(WORDS[name], caption)) for caption in captioned_images.captions]
        if name in WORDS
        else captioned_images.categories == name
        for name in LABELS
    }
    return pd.DataFrame(columns).astype(int).to_numpy()


@pytest.fixture(scope="module")
def aligner(features, captioned_images, text_encoder):
    """Fitted on the first 150 captioned_images."""
    return KernelAligner(text_encoder=text_encoder).fit(
        features.image[:150], captioned_images.captions[:150]
    )


@pytest.fixture
def classifier(aligner):
    return MultiLabelZeroShotClassifier(LABELS, aligner=aligner)


def halves(seed):
    rows = 150 + np.random.default_rng(seed).permutation(150)
    return rows[:75], rows[75:]


class TestWithoutFit:
    def test_each_label_holds_for_its_share_of_the_bank(self, classifier, features):
        """The bank is what the aligner was fitted on: 150 images."""
        for share in (0.1, 0.3):
            found = classifier.set_params(prevalence=share).predict(features.image[:150])
            np.testing.assert_allclose(found.mean(axis=0), share, atol=0.02)
        classifier.set_params(prevalence={**dict.fromkeys(LABELS, 0.1), "animal": 0.5})
        found = classifier.predict(features.image[:150]).mean(axis=0)
        np.testing.assert_allclose(found[:3], [0.1, 0.5, 0.1], atol=0.02)

    def test_is_better_than_chance(self, classifier, features, truth):
        rows = slice(150, 300)
        precision = average_precision_score(
            truth[rows], classifier.decision_function(features.image[rows])
        )
        assert precision > 2 * truth[rows].mean()

    def test_columns_are_in_the_order_of_labels(self, classifier, aligner, features):
        assert classifier.labels_.tolist() == list(LABELS)
        turned = MultiLabelZeroShotClassifier(
            {name: LABELS[name] for name in reversed(LABELS)}, aligner=aligner
        )
        np.testing.assert_allclose(
            turned.decision_function(features.image[150:170])[:, ::-1],
            classifier.decision_function(features.image[150:170]),
            atol=1e-4,
        )

    def test_answers_agree(self, classifier, features):
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

    def test_features_that_could_not_be_read_have_no_label(self, classifier, features):
        X = features.image[150:155].copy()
        X[3] = np.nan
        with pytest.warns(UserWarning, match=r"1 images could not be read .*: rows 3\."):
            found = classifier.predict(X)
        assert not found[3].any()
        assert np.isnan(classifier.predict_proba(X)[3]).all()


class TestThresholds:
    def test_fitted_ones_beat_one_for_all(self, classifier, aligner, features, truth):
        """Labels are not equally frequent: measured 0.47 to 0.41 (macro), 0.50 to 0.34."""
        gains = []
        logits = classifier._logits_by(aligner, scale=1.0)
        for seed in range(4):
            known, new = halves(seed)
            scores = {
                name: logits.collect(features.image[rows], lambda some: (some,))[0]
                for name, rows in (("known", known), ("new", new))
            }
            common = best_f1_threshold(truth[known].ravel(), scores["known"].ravel())
            classifier.fit_thresholds(features.image[known], truth[known])
            each = classifier.predict(features.image[new])
            gains.append([
                f1_score(truth[new], each, average=average, zero_division=0)
                - f1_score(truth[new], scores["new"] > common, average=average, zero_division=0)
                for average in ("macro", "samples")
            ])  # fmt: skip
        assert np.mean(gains, axis=0)[0] > 0.03
        assert np.mean(gains, axis=0)[1] > 0.08

    def test_of_few_examples_are_drawn_to_the_common_one(self):
        rng = np.random.default_rng(0)
        truth = np.zeros((200, 3), int)
        truth[:100, 0] = truth[0, 1] = 1
        scores = rng.standard_normal((200, 3)) + 2 * truth
        own = fit_thresholds(truth, scores, shrinkage=0.0)
        common = best_f1_threshold(truth.ravel(), scores.ravel())
        found = fit_thresholds(truth, scores, shrinkage=5.0)
        np.testing.assert_allclose(found[0] - common, (own[0] - common) * 100 / 105)
        np.testing.assert_allclose(found[1] - common, (own[1] - common) * 1 / 6)
        assert found[2] == pytest.approx(common)
        np.testing.assert_array_equal(fit_thresholds(0 * truth, scores, 5.0), 0)

    def test_best_f1_is_that_of_all_cuts(self):
        rng = np.random.default_rng(1)
        for _ in range(20):
            truth = rng.integers(0, 2, 15)
            truth[0] = 1
            scores = rng.integers(0, 6, 15).astype(float)
            cuts = np.unique(scores) - 0.5
            best = max(f1_score(truth, scores > cut) for cut in cuts)
            assert f1_score(truth, scores > best_f1_threshold(truth, scores)) == best

    def test_do_not_depend_on_the_logit_scale(self, classifier, features, truth):
        known, new = halves(0)
        classifier.fit_thresholds(features.image[known], truth[known])
        before = classifier.predict(features.image[new])
        classifier.set_params(logit_scale=1.0)
        np.testing.assert_array_equal(classifier.predict(features.image[new]), before)

    def test_of_other_labels_are_refused(self, classifier, features, truth):
        classifier.fit_thresholds(features.image[150:], truth[150:])
        classifier.set_params(labels=["cat", "dog"])
        with pytest.raises(ValueError, match="labels has 'cat', 'dog', for which no threshold"):
            classifier.predict(features.image[:1])


def in_order(labels, order):
    return {label: labels[label] for label in order}


class TestThresholdsOfLabels:
    @pytest.fixture
    def fitted(self, numbered):
        classifier = MultiLabelZeroShotClassifier(numbered.labels, aligner=numbered.aligner)
        return classifier.fit(numbered.X, numbered.Y)

    def check(self, classifier, X, expected, order):
        """Compare with the answers and thresholds before labels were changed, by label."""
        thresholds, scores = expected
        assert classifier.labels_.tolist() == order
        assert classifier.thresholds_.tolist() == [thresholds[label] for label in order]
        np.testing.assert_allclose(
            classifier.decision_function(X),
            np.column_stack([scores[label] for label in order]),
            atol=1e-4,
        )

    @pytest.mark.parametrize("order", [[1, 20, 0, 10], [20, 1], [0]])
    def test_stay_with_their_labels(self, fitted, numbered, order, tmp_path):
        """In another order and for a part of the labels, saved and pickled as well."""
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

    def test_are_saved_in_the_order_of_the_labels(self, classifier, features, truth, tmp_path):
        X = features.image[:20]
        classifier.fit_thresholds(features.image[150:], truth[150:])
        before = classifier.decision_function(X)
        classifier.set_params(labels=in_order(LABELS, reversed(LABELS)))
        classifier.save_pretrained(tmp_path / "model")
        back = load_pretrained(tmp_path / "model")
        np.testing.assert_array_equal(back.thresholds_, classifier.thresholds_)
        np.testing.assert_allclose(back.decision_function(X)[:, ::-1], before, atol=1e-4)
        back.set_params(labels=LABELS)
        np.testing.assert_allclose(back.decision_function(X), before, atol=1e-4)

    def test_labels_without_one_are_refused_by_name(self, fitted, numbered, tmp_path):
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

    def test_do_not_fit_cosines_of_another_scale(self, fitted, numbered):
        fitted.set_params(standardize=False)
        with pytest.raises(ValueError, match="standardize is False, and thresholds were fitted w"):
            fitted.predict(numbered.X)
        fitted.set_params(standardize=numbered.X)
        assert fitted.predict(numbered.X).shape == (160, 4)

    def test_cannot_be_written_to(self, fitted):
        with pytest.raises(ValueError, match="read-only"):
            fitted.thresholds_[0] = 1.0
        unfitted = clone(fitted)
        assert not hasattr(unfitted, "thresholds_")


class TestStarter:
    def test_fit_keeps_it_and_learns_thresholds(self, captioned_images, tmp_path, monkeypatch):
        """Nothing is trained: the thresholds are those that fit_thresholds learns."""
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
        back = load_pretrained(tmp_path / "model")
        np.testing.assert_array_equal(back.thresholds_, fitted.thresholds_)
        np.testing.assert_array_equal(back.predict(images), predicted)


class TestFit:
    def test_in_every_form_of_Y(self, aligner, features, truth, captioned_images):
        """Table, sparse table, frame in any order of columns, and lists of labels."""
        frozen = MultiLabelZeroShotClassifier(LABELS, aligner=FrozenEstimator(aligner))
        X, Y = features.image[150:], truth[150:]
        names = np.array(list(LABELS))
        frame = pd.DataFrame(Y, columns=names)[names[::-1]]
        sets = [set(names[row == 1]) for row in Y]
        forms = [Y, Y.astype(bool), Y.astype(float), csr_array(Y), frame, sets]
        fitted = [clone(frozen).fit(X, form) for form in forms]
        for one in fitted:
            np.testing.assert_allclose(one.thresholds_, fitted[0].thresholds_)
            assert one.aligner_.estimator is aligner
        assert fitted[0].score(X, Y) == fitted[0].score(X, sets) == fitted[0].score(X, frame)

    def test_without_labels_takes_them_from_Y(self, aligner, features, truth):
        frozen = MultiLabelZeroShotClassifier(aligner=FrozenEstimator(aligner))
        X, Y = features.image[150:], truth[150:]
        with pytest.raises(NotFittedError, match="pass labels and a fitted aligner"):
            frozen.predict(X)
        frame = pd.DataFrame(Y, columns=list(LABELS))
        assert clone(frozen).fit(X, frame).labels_.tolist() == list(LABELS)
        sets = [[name for name, one in zip(LABELS, row, strict=True) if one] for row in Y]
        assert clone(frozen).fit(X, sets).labels_.tolist() == sorted(LABELS)
        with pytest.raises(ValueError, match="8 columns of Y have no names"):
            clone(frozen).fit(X, Y)

    def test_a_new_aligner_on_captions_or_on_the_labels(
        self, features, truth, captioned_images, text_encoder
    ):
        """Images without a label have nothing to align by."""
        new = MultiLabelZeroShotClassifier(LABELS, aligner=CCAAligner(text_encoder=text_encoder))
        X, Y = features.image[:200], truth[:200].copy()
        Y[:5] = 0
        for captions in (None, captioned_images.captions[:200]):
            fitted = clone(new).fit(X, Y, captions=captions)
            found = fitted.predict(features.image[200:])
            assert f1_score(truth[200:], found, average="micro") > 0.4

    def test_thresholds_come_from_images_that_the_aligner_did_not_see(
        self, features, truth, captioned_images, text_encoder
    ):
        seen = []

        class Spying(CCAAligner):
            def fit(self, X, y):
                seen.append(set(map(bytes, X)))
                return super().fit(X, y)

        new = MultiLabelZeroShotClassifier(LABELS, aligner=Spying(text_encoder=text_encoder))
        new.fit(features.image[:90], truth[:90], captions=captioned_images.captions[:90])
        everything = set(map(bytes, features.image[:90]))
        assert [len(rows) for rows in seen] == [60, 60, 60, 90]
        left_out = [everything - rows for rows in seen[:3]]
        assert set.union(*left_out) == everything

    def test_saved_and_loaded_with_its_thresholds(self, classifier, features, truth, tmp_path):
        classifier.fit_thresholds(features.image[150:], truth[150:])
        classifier.save_pretrained(tmp_path / "model")
        for back in (load_pretrained(tmp_path / "model"), pickle.loads(pickle.dumps(classifier))):
            np.testing.assert_array_equal(back.thresholds_, classifier.thresholds_)
            np.testing.assert_array_equal(
                back.predict(features.image[:20]), classifier.predict(features.image[:20])
            )


class TestWithScikitLearn:
    @pytest.mark.parametrize("n_labels", [2, 8])
    def test_scorers_of_several_labels(self, aligner, features, truth, n_labels):
        """Two labels, too, which scikit-learn could take for two classes."""
        some = dict(list(LABELS.items())[:n_labels])
        frozen = MultiLabelZeroShotClassifier(some, aligner=FrozenEstimator(aligner))
        X, Y = features.image[150:], truth[150:, :n_labels]
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

    def test_binarizer_gives_tables_of_lists(self, aligner, features, truth):
        names = list(LABELS)
        sets = [[names[column] for column in np.flatnonzero(row)] for row in truth[150:]]
        Y = MultiLabelBinarizer(classes=names).fit_transform(sets)
        frozen = MultiLabelZeroShotClassifier(names, aligner=FrozenEstimator(aligner))
        assert frozen.fit(features.image[150:], Y).score(features.image[150:], sets) > 0.1

    def test_sample_weight(self, classifier, features, truth):
        X, Y = features.image[150:], truth[150:]
        right = (classifier.fit_thresholds(X, Y).predict(X) == Y).all(axis=1)
        assert classifier.score(X, Y, sample_weight=right.astype(float)) == 1.0

    def test_estimator_checks(self):
        """All that do not pass one column of numbers as several labels."""
        passed = passed_checks(MultiLabelZeroShotClassifier, {})
        assert len(passed) >= 20
        for check in ("check_no_attributes_set_in_init", "check_get_params_invariance",
                      "check_set_params", "check_estimator_cloneable", "check_estimator_repr",
                      "check_do_not_raise_errors_in_init_or_set_params",
                      "check_classifiers_multilabel_representation_invariance",
                      "check_classifiers_multilabel_output_format_predict",
                      "check_classifiers_multilabel_output_format_predict_proba",
                      "check_classifiers_multilabel_output_format_decision_function"):  # fmt: skip
            assert check in passed

    @pytest.mark.parametrize(
        "settings",
        [{"prevalence": 0.3, "shrinkage": 0.0, "cv": 2},
         {"templates": "photo", "logit_scale": 5.0, "standardize": False},
         {"labels": {n: f"thing {n}" for n in range(5)},
          "prevalence": {n: 0.1 + n / 10 for n in range(5)}, "cv": 4}],
        ids=["thresholds", "cosines", "numbered"],
    )  # fmt: skip
    def test_estimator_checks_with_single_columns_encoded(self, settings):
        """The checks of X, parameters and state, with settings that are not the default."""
        passed = passed_checks(_Encoding, settings)
        assert len(passed) >= 49
        for check in ("check_estimators_nan_inf", "check_estimators_dtypes", "check_dtype_object",
                      "check_estimators_pickle", "check_fit_idempotent", "check_n_features_in",
                      "check_n_features_in_after_fitting", "check_methods_subset_invariance",
                      "check_methods_sample_order_invariance", "check_estimator_sparse_array",
                      "check_estimator_sparse_matrix", "check_dict_unchanged",
                      "check_f_contiguous_array_estimator"):  # fmt: skip
            assert check in passed


class _Encoding(MultiLabelZeroShotClassifier):
    """Takes the number of each class in binary as labels, where Y is one column."""

    def fit(self, X, Y, captions=None):
        return super().fit(X, self._encoded(Y), captions)

    def score(self, X, y, sample_weight=None):
        return super().score(X, self._encoded(y), sample_weight)

    def _encoded(self, Y):
        column = None if Y is None else np.asarray(Y)
        if column is None or column.size != len(column):
            return Y
        codes = np.unique(column.ravel(), return_inverse=True)[1]
        return (codes[:, None] >> np.arange(len(self.labels))) & 1


def passed_checks(kind, settings):
    texts = HashingVectorizer(n_features=32, analyzer="char")
    labels = [f"label {number}" for number in range(5)]
    estimator = kind(**{"labels": labels, "aligner": CCAAligner(text_encoder=texts), **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    return [result["check_name"] for result in results if result["status"] == "passed"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("Y", "said"),
        [(None, "Y is None: expected a table of zeros and ones"),
         ([["animal"], "food"], "Y has 'food' in row 1: .*also where it is one label"),
         ([["animal"], ["fodo"]], "Y has 'fodo' in row 1, which is none of the labels 'travel'"),
         (np.zeros((2, 3)), "Y has 3 columns, and there are 8 labels"),
         (np.full((2, 8), 2), "Y has .*2.* in row 0"),
         (np.full((2, 8), np.nan), "Y has .*nan.* in row 0"),
         (pd.DataFrame({"animal": [0, 1], "fodo": [1, 0]}), r"unexpected columns \['fodo'\]"),
         (np.zeros((3, 8)), "inconsistent numbers of samples")],
    )  # fmt: skip
    def test_bad_Y(self, classifier, features, Y, said):
        with pytest.raises(ValueError, match=said):
            classifier.fit_thresholds(features.image[:2], Y)

    @pytest.mark.parametrize(
        ("parameter", "value", "said"),
        [("prevalence", 0.0, "prevalence must be above 0 and below 1"),
         ("prevalence", {"animal": 2.0}, "prevalence must be above 0 and below 1, not 2.0"),
         ("prevalence", {"animal": 0.5}, r"no share for the labels \['travel'"),
         ("shrinkage", -1, "shrinkage must be at least 0"),
         ("cv", 1, "cv must be an integer of at least 2"),
         ("logit_scale", 0, "logit_scale must be None or a number from 1e-30")],
    )  # fmt: skip
    def test_bad_parameters(self, classifier, features, parameter, value, said):
        with pytest.raises(ValueError, match=said):
            classifier.set_params(**{parameter: value}).predict(features.image[:2])


def test_set_of_labels_is_refused():
    """The columns would be in another order in every process."""
    with pytest.raises(ValueError, match="labels is a set"):
        MultiLabelZeroShotClassifier({"cat", "dog"}).predict(np.ones((2, 3)))
