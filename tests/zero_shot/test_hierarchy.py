"""Hierarchies of labels: probabilities of nodes, thresholds and accuracy per level."""

import warnings

import numpy as np
import pytest

from sklearn_ape import (
    FewShotClassifier,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.aligners.similarity import UNKNOWN
from sklearn_ape.prompts import flatten_labels
from sklearn_ape.zero_shot._base import Hierarchy

TREE = {
    "living": {"animal": ["an animal", "a bird"], "food": ["food", "a fruit", "a meal"]},
    "travel": ["a vehicle", "a building"],
}


@pytest.fixture
def classifier(aligner):
    return ZeroShotClassifier(TREE, aligner=aligner)


def test_several_labels_per_image_have_no_hierarchy():
    with pytest.raises(ValueError, match="labels is a hierarchy, which ZeroShotClassifier"):
        MultiLabelZeroShotClassifier(TREE).predict(np.ones((2, 3)))


class TestLabels:
    def test_classes_are_sorted_leaves(self, classifier):
        assert classifier.classes_.tolist() == ["animal", "food", "travel"]
        assert [level.tolist() for level in classifier.levels_] == [
            ["travel", "living"],
            ["animal", "food", "travel"],
        ]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ({"bird": {"crane": None}, "tool": {"crane": None}},
             "'crane' twice: bird > crane and tool > crane"),
            ({"a": {"a": None, "b": None}}, "'a' twice: a and a > a"),
            ({"a": {}, "b": {"c": None}}, "the empty group 'a'"),
            ({"a": {"b": [""]}}, "must be texts that are not empty"),
            ({"a": {"b": None, 3: ["x"]}}, "mixes texts and numbers"),
        ],
    )  # fmt: skip
    def test_invalid_hierarchies_raise(self, aligner, features, labels, message):
        classifier = ZeroShotClassifier(labels, aligner=aligner)
        with pytest.raises(ValueError, match=message):
            classifier.predict(features.image[:2])

    @pytest.mark.parametrize("cls", [ZeroShotClassifier, FewShotClassifier])
    def test_groups_in_y_of_fit_raise(self, aligner, features, cls):
        y = ["animal", "living", "living"]
        message = r"y has groups of labels, which are not classes: 'living' \(row 1\)\. Pass"
        with pytest.raises(ValueError, match=message):
            cls(TREE, aligner=aligner).fit(features.image[:3], y)

    def test_cycle_raises(self):
        labels = {"a": {"b": None}}
        labels["a"]["c"] = labels
        with pytest.raises(ValueError, match=r"'a' twice|may contain itself"):
            flatten_labels(labels)

    def test_flat_labels_have_no_levels(self, aligner, features):
        classifier = ZeroShotClassifier(["animal", "food"], aligner=aligner)
        assert not hasattr(classifier, "levels_")
        with pytest.raises(AttributeError, match="is not a hierarchy"):
            classifier.predict_proba_levels(features.image[:2])


class TestPredictions:
    def test_leaves_equal_flat_classifier(self, classifier, aligner, features):
        flat = ZeroShotClassifier({**TREE["living"], "travel": TREE["travel"]}, aligner=aligner)
        X = features.image[150:]
        np.testing.assert_array_equal(classifier.predict(X), flat.predict(X))
        np.testing.assert_array_equal(classifier.predict_proba(X), flat.predict_proba(X))

    def test_probabilities_add_up(self, classifier, features):
        X = features.image[150:170]
        leaves = classifier.predict_proba(X)
        top, bottom = classifier.predict_proba_levels(X)
        np.testing.assert_allclose(top[:, 1], leaves[:, 0] + leaves[:, 1], rtol=1e-5)
        np.testing.assert_allclose(top[:, 0], leaves[:, 2], rtol=1e-5)
        np.testing.assert_allclose(bottom, leaves, rtol=1e-5)
        assert top.dtype == bottom.dtype == leaves.dtype

    @pytest.mark.parametrize("method", ["predict", "predict_together"])
    def test_threshold_gives_deepest_probable_node(self, classifier, features, method):
        X = features.image[150:]
        low, middle, high = (
            getattr(classifier.set_params(threshold=threshold), method)(X)
            for threshold in (0.0, 0.65, 1.0)
        )
        assert set(low) <= {"animal", "food", "travel"}
        assert "living" in middle
        assert set(high) == {"unknown"}
        if method == "predict":
            top, bottom = classifier.predict_proba_levels(X)
            is_inner = middle == "living"
            assert (top[is_inner, 1] >= 0.65).all()
            assert (bottom[is_inner, :2].max(axis=1) < 0.65).all()

    def test_probabilities_of_chosen_labels(self, classifier, features):
        """For unknown it is the probability of the most probable class."""
        X = features.image[150:]
        leaves, groups = classifier.predict_proba(X), classifier.predict_proba_levels(X)[0]
        labels, probabilities = classifier.set_params(threshold=0.8)._choose_labels(leaves)
        assert {"living", "travel", "unknown"} <= set(labels)
        expected = np.where(labels == "living", groups[:, 1], leaves.max(axis=1))
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)

    def test_classes_that_reach_the_threshold_precede_groups(self):
        """A small threshold gives the most probable class, as no threshold does."""
        labels = {"x": {"a": None, "b": None, "c": None}, "d": None}
        hierarchy = Hierarchy.from_labels(labels, np.array(["a", "b", "c", "d"]))
        probabilities = np.array([[0.2, 0.2, 0.2, 0.4]], np.float32)
        assert hierarchy.nodes[hierarchy.choose(probabilities, 0.5)].tolist() == ["x"]
        for threshold in (0, 0.2, 0.4):
            assert hierarchy.nodes[hierarchy.choose(probabilities, threshold)].tolist() == ["d"]

    def test_deepest_group_that_reaches_the_threshold(self):
        """An outer group is at least as probable as its groups; no group gives unknown."""
        labels = {"x": {"y": {"a": None, "b": None}, "c": None}, "z": {"d": None, "e": None}}
        hierarchy = Hierarchy.from_labels(labels, np.array(list("abcde")))
        probabilities = np.array(
            [[0.4, 0.3, 0.1, 0.1, 0.1], [0.3, 0.2, 0.1, 0.2, 0.2]], np.float32
        )
        codes = hierarchy.choose(probabilities, 0.65)
        assert hierarchy.nodes[codes[0]] == "y"
        assert codes[1] == UNKNOWN

    def test_hierarchy_of_a_single_group(self, aligner, features):
        """Its first level has a single node."""
        classifier = ZeroShotClassifier({"thing": TREE}, aligner=aligner)
        assert classifier.score_levels(features.image[:2], ["thing", "thing"])[0] == 1

    def test_accuracy_per_level(self, classifier, features, captioned_images):
        X, y = features.image[150:], captioned_images.categories[150:]
        top, bottom = classifier.score_levels(X, y)
        assert bottom == pytest.approx(classifier.score(X, y))
        assert top > bottom
        coarse = np.where(y == "travel", "travel", "living")
        assert classifier.score_levels(X, coarse)[0] == top
        travel_only = classifier.score_levels(X, coarse)[1]
        is_travel = y == "travel"
        assert travel_only == pytest.approx(classifier.score(X[is_travel], y[is_travel]))
        with pytest.raises(ValueError, match=r"not in labels: 'rocket'.*or correct y\.$"):
            classifier.score_levels(X[:1], ["rocket"])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            classifier.score_levels(X, y[:-1])
        with warnings.catch_warnings(action="error"):
            assert np.isnan(classifier.score_levels(X[:1], ["living"])[1])

    def test_score_accepts_inner_nodes(self, classifier, features):
        classifier.set_params(threshold=0.65)
        X = features.image[150:]
        assert classifier.score(X, classifier.predict(X)) == 1

    def test_score_warns_of_groups_that_are_never_predicted(self, classifier, features):
        """Without a threshold, predictions are innermost classes."""
        y = classifier.predict(features.image[:20]).tolist()
        y[:5] = ["living"] * 5
        with pytest.warns(UserWarning, match="'living'. They count as errors. Call score_levels"):
            assert classifier.score(features.image[:20], y) == 0.75
        with warnings.catch_warnings(action="error"):
            classifier.set_params(threshold=0.5).score(features.image[:20], y)

    def test_few_shot_classifier(self, aligner, features, captioned_images, tmp_path):
        X, y = features.image[150:], captioned_images.categories[150:]
        few = FewShotClassifier(TREE, aligner=aligner, threshold=0.65).fit(X[:15], y[:15])
        assert "living" in few.predict(X)
        few.save_pretrained(tmp_path / "model")
        loaded = load_pretrained(tmp_path / "model")
        assert loaded.labels == TREE
        np.testing.assert_array_equal(loaded.predict(X), few.predict(X))


def test_unreadable_images_are_errors_at_every_level(classifier, features):
    X = features.image[150:152].copy()
    X[:] = np.nan
    with pytest.warns(UserWarning, match="could not be read"):
        assert classifier.score_levels(X, ["travel", "animal"]) == [0, 0]


def test_file_holds_the_labels_of_the_few_shot_fit(aligner, features, captioned_images, tmp_path):
    """Labels that are set after fit take effect in the next fit only."""
    X, y = features.image[150:180], captioned_images.categories[150:180]
    few = FewShotClassifier(["animal", "food", "travel"], aligner=aligner, threshold=0.3).fit(X, y)
    expected = few.predict(X)
    few.set_params(labels={"cat": {"lion": None, "lynx": None}, "dog": None})
    few.save_pretrained(tmp_path / "model")
    loaded = load_pretrained(tmp_path / "model")
    assert loaded.labels == ["animal", "food", "travel"]
    np.testing.assert_array_equal(loaded.predict(X), expected)
