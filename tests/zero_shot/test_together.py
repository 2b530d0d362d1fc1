"""Predictions for a whole collection, and known shares of the classes."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.special import softmax

from sklearn_ape import FewShotClassifier, KernelAligner, ZeroShotClassifier, load_pretrained
from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.zero_shot import _transduction
from sklearn_ape.zero_shot._transduction import (
    _apply_frequencies,
    _compute_confidence,
    _compute_modularity,
    _find_neighbors_with_faiss,
    _is_biased,
    _make_graph,
    _propagate,
    _set_confidence,
    match_shares,
    propagate_labels,
    resolve_class_prior,
)
from tests.conftest import LABELS

N_CLASSES = 20


def normalize(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_collection(n, n_present=N_CLASSES, noise=1.6, seed=0):
    """Return embeddings in clusters, logits of noisy names, and the classes."""
    rng = np.random.default_rng(seed)
    centers = normalize(rng.standard_normal((N_CLASSES, 64)))
    y = rng.integers(n_present, size=n)
    embeddings = normalize(centers[y] + noise * normalize(rng.standard_normal((n, 64))))
    texts = normalize(centers + 0.15 * rng.standard_normal((N_CLASSES, 64)))
    return embeddings, 20 * embeddings @ texts.T, y


class TestPropagation:
    @pytest.mark.parametrize("n_present", [3, N_CLASSES])
    def test_improves_accuracy_in_clusters(self, n_present):
        embeddings, logits, y = make_collection(600, n_present)
        plain = (logits.argmax(axis=1) == y).mean()
        together = (propagate_labels(embeddings, logits).argmax(axis=1) == y).mean()
        assert 0.6 < plain < 0.95
        assert together > plain + 0.03

    def test_examples_are_nodes_of_the_graph(self):
        """Labelled images that are not in the collection improve the accuracy."""
        embeddings, logits, y = make_collection(600, noise=2.0)
        rest, examples = slice(0, 400), (embeddings[400:], y[400:])
        plain = propagate_labels(embeddings[rest], logits[rest])
        informed = propagate_labels(embeddings[rest], logits[rest], examples=examples)
        assert informed.shape == plain.shape
        accuracies = [(p.argmax(axis=1) == y[rest]).mean() for p in (plain, informed)]
        assert accuracies[1] > accuracies[0] + 0.01

    def test_uninformative_names_are_not_propagated(self):
        embeddings, logits, _ = make_collection(300)
        logits /= 100
        probabilities = propagate_labels(embeddings, logits)
        np.testing.assert_allclose(probabilities, softmax(logits, axis=1), atol=1e-6)

    def test_names_similar_to_all_images_are_not_propagated(self):
        """Most predictions are one class, and neighbours would confirm them."""
        embeddings, logits, _ = make_collection(300)
        logits = logits / 4
        assert (propagate_labels(embeddings, logits) != softmax(logits, axis=1)).any()
        logits[:, 0] += 20
        probabilities = propagate_labels(embeddings, logits)
        np.testing.assert_array_equal(probabilities, softmax(logits, axis=1))

    def test_bias_is_relative_to_what_differs_between_images(self):
        logits = np.random.default_rng(0).normal(0, 5, (200, 10)) + np.linspace(0, 10, 10)
        assert not _is_biased(logits)
        assert _is_biased(logits / 20 + np.linspace(0, 10, 10))

    def test_confidence_is_zero_at_chance(self):
        rows = [[0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.4, 0.2], [0.25, 0.25, 0.25, 0.25]]
        for n_rows, confidence in ((1, 0.6), (2, 0.4), (3, 0.8 / 3)):
            assert _compute_confidence(np.array(rows[:n_rows])) == pytest.approx(confidence)
        assert _compute_confidence(np.array(rows[2:])) == 0

    def test_few_classes_are_found_more_often(self):
        """Images of missing classes become those of classes that occur, and only if few occur."""
        embeddings, logits, y = make_collection(400, 3, noise=3.0)
        plain = (logits.argmax(axis=1) == y).mean()
        initial = softmax(logits, axis=1)
        raised = _apply_frequencies(logits, initial, 1.0, 1)
        assert (raised.argmax(axis=1) == y).mean() > plain + 0.1
        np.testing.assert_allclose(raised.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(_apply_frequencies(logits, initial, 0.0, 1), initial)
        assert (propagate_labels(embeddings, logits).argmax(axis=1) == y).mean() > plain + 0.1

    @pytest.mark.parametrize("seed", range(3))
    def test_classes_are_not_absorbed_by_a_name_that_fits_their_images(self, seed):
        """Class 0, such as "people", is frequent because of images of "job" and "sport"."""
        embeddings, logits, y = make_collection(400, 6, seed=seed)
        logits[(y > 0) & (y < 5), 0] += 6
        plain = (logits.argmax(axis=1) == y).mean()
        together = (propagate_labels(embeddings, logits).argmax(axis=1) == y).mean()
        assert together > plain + 0.1

    def test_modularity_of_a_partition_equals_formula(self):
        """The definition of Newman: sum of A - outer(d, d) / sum(d) over pairs of a class."""
        embeddings, logits, _ = make_collection(50)
        graph = _make_graph(embeddings, 0.0)
        codes = logits.argmax(axis=1)
        adjacency = graph.toarray()
        degrees = adjacency.sum(axis=1)
        excess = adjacency - np.outer(degrees, degrees) / degrees.sum()
        expected = excess[codes[:, None] == codes].sum() / degrees.sum()
        assert 0.1 < expected < 1
        modularity = _compute_modularity(graph, np.eye(N_CLASSES)[codes])
        assert modularity == pytest.approx(expected, abs=1e-5)

    def test_about_one_image_per_class_is_not_propagated(self):
        """The neighbours are of other classes, so that they would only blur the names."""
        embeddings, logits, y = make_collection(600)
        rows = np.unique(y, return_index=True)[1]
        probabilities = propagate_labels(embeddings[rows], logits[rows])
        np.testing.assert_array_equal(probabilities, softmax(logits[rows], axis=1))
        # Labelled images of the classes are likely neighbours of the same class.
        examples = np.delete(embeddings, rows, axis=0), np.delete(y, rows)
        informed = propagate_labels(embeddings[rows], logits[rows], examples=examples)
        assert (informed.argmax(axis=1) == y[rows]).sum() > (logits.argmax(axis=1) == y)[
            rows
        ].sum()

    def test_confidence_is_kept(self):
        embeddings, logits, _ = make_collection(300)
        probabilities = propagate_labels(embeddings, logits)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        expected = softmax(logits, axis=1).max(axis=1).mean()
        assert abs(probabilities.max(axis=1).mean() - expected) < 0.01

    def test_constant_part_of_embeddings_has_no_effect(self):
        """All images of a collection may have something in common, such as their style."""
        embeddings, logits, _ = make_collection(300)
        shifted = embeddings + np.linspace(0, 1, 64, dtype=np.float32)
        expected = propagate_labels(embeddings, logits)
        np.testing.assert_allclose(propagate_labels(shifted, logits), expected, atol=1e-4)

    @pytest.mark.parametrize("n", [5, 9])
    @pytest.mark.parametrize("damping", [0.0, 0.3])
    def test_graph_equals_formula(self, n, damping):
        """The last image is opposite to all others, so that its degree is 0 without damping."""
        embeddings, _, _ = make_collection(n)
        embeddings = np.vstack([embeddings, -2 * embeddings.sum(axis=0)])
        centered = embeddings - embeddings.mean(axis=0)
        cosines = normalize(centered) @ normalize(centered).T
        np.fill_diagonal(cosines, -np.inf)
        is_neighbor = cosines >= np.sort(cosines, axis=1)[:, -5:-4]
        weights = np.where(is_neighbor, np.maximum(cosines, 0), 0) ** 3
        weights = np.maximum(weights, weights.T)
        degrees = weights.sum(axis=1) + damping
        assert degrees[-1] == damping
        degrees[degrees == 0] = 1
        with np.errstate(divide="raise"):
            graph = _make_graph(embeddings, damping)
        expected = weights / np.sqrt(np.outer(degrees, degrees))
        np.testing.assert_allclose(graph.toarray(), expected, atol=1e-6)
        assert graph.dtype == np.float32

    def test_propagated_labels_are_a_fixed_point(self):
        embeddings, logits, _ = make_collection(200)
        graph, initial = _make_graph(embeddings, 0.0), softmax(logits, axis=1)
        expected = np.linalg.solve(np.eye(200) - 0.8 * graph.toarray(), initial)
        np.testing.assert_allclose(_propagate(graph, initial, 0.8), expected, atol=0.01)

    def test_confidence_that_no_scale_has(self):
        """Two classes with equal logits have probabilities of at most one half."""
        logits = np.array([[0.0, 0.0, -1.0]])
        np.testing.assert_array_equal(_set_confidence(logits, 0.9), softmax(logits, axis=1))

    def test_faiss_and_exact_neighbours_agree(self, monkeypatch):
        pytest.importorskip("faiss")
        embeddings, logits, _ = make_collection(2000)
        exact = propagate_labels(embeddings, logits)
        monkeypatch.setattr(_transduction, "_MAX_EXACT", 1000)
        approximate = propagate_labels(embeddings, logits)
        assert (exact.argmax(axis=1) == approximate.argmax(axis=1)).mean() > 0.97

    @pytest.mark.parametrize("n", [2000, pytest.param(30_000, marks=pytest.mark.exhaustive)])
    def test_faiss_finds_most_neighbours(self, n):
        """The cells of more than 25,600 images are computed from a part of the images."""
        pytest.importorskip("faiss")
        embeddings = normalize(np.random.default_rng(0).standard_normal((n, 4)))
        neighbors = _find_neighbors_with_faiss(embeddings, 5)
        expected = np.argsort(-embeddings[:100] @ embeddings.T, axis=1)[:, :6]
        assert neighbors.shape == (n, 6)
        is_found = [np.isin(*rows) for rows in zip(expected, neighbors[:100], strict=True)]
        assert np.mean(is_found) > 0.97

    @pytest.mark.parametrize("n", [1, 2, 5, 6])
    def test_small_collections(self, n):
        embeddings, logits, _ = make_collection(n)
        assert propagate_labels(embeddings, logits).shape == (n, N_CLASSES)

    def test_equal_images(self):
        embeddings, logits, _ = make_collection(1)
        repeated = np.repeat(embeddings, 30, axis=0), np.repeat(logits, 30, axis=0)
        assert len(np.unique(propagate_labels(*repeated).argmax(axis=1))) == 1

    @pytest.mark.parametrize("scale", [1, 1e4])
    def test_equal_images_keep_their_probabilities(self, scale):
        """Rounding errors were scaled up, so that all but the best class were equally probable."""
        embeddings, logits, _ = make_collection(1)
        embeddings, logits = (np.repeat(rows[:1], 9, axis=0) for rows in (embeddings, logits))
        expected = softmax(logits * scale, axis=1)
        np.testing.assert_allclose(propagate_labels(embeddings, logits * scale), expected, 1e-4)
        shares = np.where(np.arange(N_CLASSES) == logits[0].argmax(), 0, 1 / (N_CLASSES - 1))
        probabilities = propagate_labels(embeddings, logits * scale, np.maximum(shares, 1e-9))
        assert probabilities[:, logits[0].argmax()].max() < 1e-6


class TestShares:
    def test_mean_probabilities_match_shares(self):
        _, logits, y = make_collection(500, n_present=5)
        shares = np.maximum(np.bincount(y, minlength=N_CLASSES) / 500, 1e-9)
        offsets = match_shares(logits, shares)
        means = softmax(logits + offsets, axis=1).mean(axis=0)
        np.testing.assert_allclose(means, shares, atol=2e-3)

    def test_shares_improve_accuracy(self):
        embeddings, logits, y = make_collection(500, n_present=5, noise=2.5)
        shares = np.maximum(np.bincount(y, minlength=N_CLASSES) / 500, 1e-9)
        plain = (propagate_labels(embeddings, logits).argmax(axis=1) == y).mean()
        informed = (propagate_labels(embeddings, logits, shares).argmax(axis=1) == y).mean()
        assert informed > plain + 0.05

    def test_one_image_does_not_get_the_shares_as_probabilities(self, aligner, features):
        classifier = ZeroShotClassifier(LABELS, aligner=aligner, class_prior=[0.2, 0.5, 0.3])
        for image in features.image[150:153]:
            np.testing.assert_allclose(
                classifier.predict_proba_together([image]),
                classifier.predict_proba([image]),
                atol=1e-6,
            )

    @pytest.mark.parametrize("method", ["predict", "predict_together"])
    def test_class_of_share_zero_is_not_predicted(self, aligner, features, method):
        classifier = ZeroShotClassifier(
            LABELS, aligner=aligner, class_prior={"animal": 0.5, "food": 0.5, "travel": 0}
        )
        labels = getattr(classifier, method)(features.image[150:])
        assert set(labels) == {"animal", "food"}

    @pytest.mark.parametrize("method", ["predict", "predict_together"])
    @pytest.mark.parametrize("n_images", [4, 100])
    def test_share_zero_outweighs_any_logit_scale(self, aligner, features, method, n_images):
        """The logarithm of a small share was less than cosines times a scale of some hundreds."""
        shares = {"animal": 0.5, "food": 0.5, "travel": 0}
        classifier = ZeroShotClassifier(LABELS, aligner=aligner, logit_scale=1000)
        X = features.image[150:]
        X = X[classifier.predict(X) == "travel"][:n_images]
        classifier.set_params(class_prior=shares)
        assert set(getattr(classifier, method)(X)) <= {"animal", "food"}
        for scores in (classifier.decision_function(X), classifier.predict_log_proba(X)):
            assert np.isfinite(scores).all()

    def test_labelled_images_of_a_class_of_share_zero(self, aligner, features, captioned_images):
        """Images near to labelled ones were predicted as this class."""
        shares = {"animal": 0.5, "food": 0.5, "travel": 0}
        X, y = features.image[100:], captioned_images.categories[100:]
        few = FewShotClassifier(LABELS, aligner=aligner, class_prior=shares).fit(X, y)
        assert set(few.predict_together(X)) == {"animal", "food"}

    @pytest.mark.parametrize("cls", [ZeroShotClassifier, FewShotClassifier])
    def test_sequence_for_changed_labels_raises(self, aligner, features, captioned_images, cls):
        """Shares of the labels at fit would become those of other labels."""
        X, y = features.image[100:], captioned_images.categories[100:]
        classifier = cls(LABELS, aligner=aligner, class_prior=[0.2, 0.5, 0.3]).fit(X, y)
        expected = classifier.predict(X)
        changed = {**LABELS, "city": LABELS["travel"]}
        del changed["travel"]
        for method in ("predict", "predict_together"):
            with pytest.raises(ValueError, match="labels was changed after fit"):
                getattr(classifier.set_params(labels=changed), method)(X)
        classifier.set_params(labels=dict(reversed(LABELS.items())))  # the same classes
        np.testing.assert_array_equal(classifier.predict(X), expected)

    def test_mapping_and_sequence_agree_with_bayes_rule(self, aligner, features, tmp_path):
        X, shares = features.image[150:160], [0.2, 0.5, 0.3]
        plain = ZeroShotClassifier(LABELS, aligner=aligner).predict_proba(X)
        expected = plain * shares
        expected /= expected.sum(axis=1, keepdims=True)
        named = dict(zip(sorted(LABELS), shares, strict=True))
        columns = (np.array(shares), pd.Series(named), pl.Series(shares), pa.array(shares))
        for class_prior in (shares, named, *columns):
            classifier = ZeroShotClassifier(LABELS, aligner=aligner, class_prior=class_prior)
            probabilities = classifier.predict_proba(X)
            np.testing.assert_allclose(probabilities, expected, atol=1e-5)
            assert probabilities.dtype == plain.dtype
            classifier.save_pretrained(tmp_path)
            loaded = load_pretrained(tmp_path)
            np.testing.assert_array_equal(loaded.predict_proba(X), classifier.predict_proba(X))

    def test_sum_of_rounded_shares_is_1(self):
        shares = resolve_class_prior([0.333, 0.333, 0.3333], np.array(["a", "b", "c"]))
        assert shares.sum() == pytest.approx(1, abs=1e-12)

    @pytest.mark.parametrize(
        ("class_prior", "message"),
        [
            ({"animal": 0.5, "food": 0.5}, "no share for the classes 'travel'"),
            ({"animal": 0.5, "food": 0.3, "travel": 0.1, "fish": 0.1}, "unknown classes 'fish'"),
            ({"animal": 0.5, "food": 0.3, "Travel": 0.2}, r"in case,.* Correct class_prior"),
            ([0.5, 0.5], r"shape \(2,\), and there are 3 classes"),
            ([0.5, 0.5, 0.5], r"their sum is 1\.5. Divide each share by the sum"),
            ([60, 30, 10], "their sum is 100. Divide each share by the sum"),
            ([1.5, -0.25, -0.25], r"the share -0\.25 for the class 'food'"),
            ([np.nan, 0.5, 0.5], "the share nan for the class 'animal'"),
            ({"animal": 0.5, "food": 0.5, "travel": None}, "share nan for the class 'travel'"),
            ("uniform", "must be a mapping from classes to shares"),
            (0.5, "must be a mapping from classes to shares"),
            (["a", "b", "c"], "must be numbers"),
        ],
    )
    def test_invalid_shares_raise(self, aligner, features, class_prior, message):
        classifier = ZeroShotClassifier(LABELS, aligner=aligner, class_prior=class_prior)
        with pytest.raises(ValueError, match=message):
            classifier.predict(features.image[:2])
        with pytest.raises(ValueError, match=message):
            resolve_class_prior(class_prior, classifier.classes_)


class TestClassifiers:
    @pytest.mark.parametrize("cls", [ZeroShotClassifier, FewShotClassifier])
    def test_predictions_agree_with_probabilities(self, aligner, features, captioned_images, cls):
        X, y = features.image[150:], captioned_images.categories[150:]
        classifier = cls(LABELS, aligner=aligner)
        if cls is FewShotClassifier:
            classifier.fit(X[:30], y[:30])
        probabilities = classifier.predict_proba_together(X)
        assert probabilities.dtype == classifier.predict_proba(X).dtype
        labels = classifier.predict_together(X)
        np.testing.assert_array_equal(labels, classifier.classes_[probabilities.argmax(axis=1)])
        assert (labels == y).mean() > classifier.score(X, y) - 0.02
        np.testing.assert_array_equal(labels, classifier.predict_together(X))

    def test_labelled_images_are_neighbours(self, aligner, features, captioned_images):
        X, y = features.image[150:], captioned_images.categories[150:]
        few = FewShotClassifier(LABELS, aligner=aligner).fit(X[:50], y[:50])
        examples = aligner.transform(X[:50]), few.classes_.searchsorted(y[:50])
        expected = propagate_labels(
            aligner.transform(X[50:]), few.decision_function(X[50:]), examples=examples
        )
        np.testing.assert_allclose(few.predict_proba_together(X[50:]), expected, atol=1e-5)

    def test_threshold_gives_unknown(self, aligner, features):
        classifier = ZeroShotClassifier(LABELS, aligner=aligner, threshold=1.0)
        assert set(classifier.predict_together(features.image[150:])) == {"unknown"}

    def test_unreadable_image_is_unknown(self, captioned_images, text_encoder):
        encoder = TimmImageEncoder("efficientnet_lite0", on_error="nan", cache="memory")
        aligner = KernelAligner(image_encoder=encoder, text_encoder=text_encoder)
        aligner.fit(captioned_images.images[:40], captioned_images.captions[:40])
        classifier = ZeroShotClassifier(LABELS, aligner=aligner)
        images = [*captioned_images.images[:30], "missing.png"]
        with pytest.warns(UserWarning, match="1 of 31 images could not be read"):
            labels = classifier.predict_together(images)
        assert labels[-1] == "unknown"
        assert "unknown" not in labels[:-1]
