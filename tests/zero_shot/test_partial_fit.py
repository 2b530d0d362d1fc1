"""FewShotClassifier.partial_fit: equal to fit, corrections, and invalid input."""

import numpy as np
import pytest

from sklearn_ape import (
    FewShotClassifier,
    KernelAligner,
)
from tests.conftest import LABELS


@pytest.fixture(scope="module")
def pool(features, captioned_images):
    """Return images and labels that the aligner was not fitted on."""
    return features.image[150:], captioned_images.categories[150:]


class TestPartialFit:
    def test_equals_fit_on_all(self, aligner, pool):
        X, y = pool
        complete = FewShotClassifier(LABELS, aligner=aligner).fit(X[:30], y[:30])
        stepwise = FewShotClassifier(LABELS, aligner=aligner)
        for rows in (slice(0, 12), slice(12, 13), slice(13, 30)):
            stepwise.partial_fit(X[rows], y[rows])
        assert stepwise.class_count_.tolist() == complete.class_count_.tolist()
        np.testing.assert_allclose(stepwise.predict_proba(X), complete.predict_proba(X), atol=2e-3)

    def test_corrects_a_wrong_prediction(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[:30], y[:30])
        wrong = 30 + np.flatnonzero(few.predict(X[30:]) != y[30:])[:1]
        few.partial_fit(X[wrong], y[wrong])
        assert few.predict(X[wrong]).tolist() == y[wrong].tolist()

    def test_new_label_replaces_old_one(self, aligner, pool):
        """The result is that of fit with the new label only."""
        X, y = pool
        first = y[:20].copy()
        first[3] = "food" if y[3] != "food" else "animal"
        corrected = FewShotClassifier(LABELS, aligner=aligner).fit(X[:20], first)
        corrected.partial_fit(X[3:4], y[3:4])
        others = np.delete(np.arange(20), 3)
        rows = [*others, 3]
        expected = FewShotClassifier(LABELS, aligner=aligner).fit(X[rows], y[rows])
        assert corrected.class_count_.sum() == 20
        np.testing.assert_allclose(
            corrected.predict_proba(X), expected.predict_proba(X), atol=5e-3
        )

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("n_pairs", [30, 150])
    def test_new_labels_replace_old_ones_one_by_one(
        self, features, captioned_images, text_encoder, n_pairs
    ):
        """Embeddings of one image differ by rounding between batches, and may have few columns."""
        aligner = KernelAligner(text_encoder=text_encoder).fit(
            features.image[:n_pairs], captioned_images.captions[:n_pairs]
        )
        X, y = features.image[150:170], captioned_images.categories[150:170]
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X, y)
        assert few.was_fitted_on(X[3:4]).tolist() == [True]
        assert not few.was_fitted_on(features.image[170:180]).any()
        other = {"animal": "food", "food": "travel", "travel": "animal"}
        for row in range(20):
            few.partial_fit(X[row : row + 1], [other[y[row]]])
        assert few.class_count_.sum() == 20
        again = FewShotClassifier(LABELS, aligner=aligner).fit(X, [other[label] for label in y])
        assert few.class_count_.tolist() == again.class_count_.tolist()

    def test_copies_of_one_image_are_replaced(self, aligner, pool):
        """Without another image, only rounding is left after features are centered."""
        X, _ = pool
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[:1], ["food"])
        few.partial_fit(X[[0, 0]], ["animal", "animal"])
        assert few.class_count_.tolist() == [2, 0, 0]

    def test_classes_are_passed_in_first_call(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(aligner=aligner).partial_fit(X[:2], y[:2], classes=list(LABELS))
        assert few.classes_.tolist() == sorted(LABELS)
        with pytest.raises(ValueError, match="not in labels"):
            FewShotClassifier(aligner=aligner).partial_fit(X[:9], y[:9], classes=["food"])

    def test_classes_that_are_not_in_labels_or_of_the_first_call_raise(self, aligner, pool):
        """The classifier would not have them; the argument was ignored."""
        X, y = pool
        fitted = FewShotClassifier(aligner=aligner).partial_fit(X[:2], y[:2], list(LABELS))
        fitted.partial_fit(X[2:4], y[2:4], np.array(list(LABELS)[:2]))
        for few in (fitted, FewShotClassifier(LABELS, aligner=aligner)):
            with pytest.raises(ValueError, match=r"^classes holds values .* call: 'rocket'\."):
                few.partial_fit(X[:2], y[:2], [*LABELS, "rocket"])
        assert fitted.class_count_.sum() == 4

    @pytest.mark.parametrize("labels", [None, LABELS])
    @pytest.mark.parametrize(
        ("classes", "message"),
        [("cat", "must be a sequence of names"), ([], "is empty"), (["cat", "cat"], "repeat")],
    )
    def test_error_about_classes_names_them(self, aligner, pool, labels, classes, message):
        """The conditions are those of labels, whose errors name labels."""
        X, y = pool
        with pytest.raises(ValueError, match=f"^classes must be as labels may be, .*{message}"):
            FewShotClassifier(labels, aligner=aligner).partial_fit(X[:2], y[:2], classes)

    def test_hierarchy_as_classes_raises(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(aligner=aligner)
        with pytest.raises(ValueError, match=r"^classes is a hierarchy\. Pass it as labels"):
            few.partial_fit(X[:2], y[:2], {"animal": {"cat": None, "dog": None}})

    def test_new_class_raises(self, aligner, pool):
        X, y = pool
        few = FewShotClassifier(aligner=aligner).fit(X[:20], y[:20])
        with pytest.raises(
            ValueError, match=r"not in classes_: 'rocket'\. partial_fit cannot add"
        ):
            few.partial_fit(X[:1], ["rocket"])
        assert few.class_count_.sum() == 20
