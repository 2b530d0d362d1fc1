"""Similarities, their standardization by a bank of embeddings, and computation in tiles."""

import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_ape import ASIFAligner, CCAAligner, CLIPAligner, ZeroShotClassifier
from sklearn_ape.aligners.similarity import (
    UNKNOWN,
    UNREADABLE,
    Bank,
    LogitTiles,
    Standardizer,
    _select_rows,
    choose_texts,
    choose_top_texts,
    resolve_bank,
    to_probabilities,
)
from sklearn_ape.encoders import HeadPairs
from sklearn_ape.features import matrix
from sklearn_ape.utils.linalg import choose_evenly_spaced


def standardized(cosines, image, text, bank):
    """Return a standardized copy of cosines of shape (n_images, n_texts)."""
    result = np.array(cosines)
    Standardizer(text, bank).apply(result, image)
    return result


def normalize(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_units(rng, *shape):
    return normalize(rng.standard_normal(shape) + 0.5).astype(np.float32)


@pytest.fixture
def fitted(concepts):
    return CCAAligner(ridge=0.01).fit(concepts.image[:200], concepts.text[:200])


@pytest.fixture
def held_out(concepts):
    return concepts.image[200:], concepts.text[200:]


class TestStandardized:
    def test_standardized_similarity_equals_loop(self):
        """Without captions only the first term is used."""
        rng = np.random.default_rng(0)
        image, text = random_units(rng, 7, 6), random_units(rng, 5, 6)
        bank = Bank.from_embeddings(random_units(rng, 30, 6), random_units(rng, 20, 6))
        of_texts = [np.std([b @ t for b in bank.image]) for t in bank.text]
        of_images = [np.std([x @ b for b in bank.text]) for x in bank.image]
        std = (np.mean(of_texts) + np.mean(of_images)) / 2
        expected, first = np.empty((7, 5)), np.empty((7, 5))
        for i, x in enumerate(image):
            for j, t in enumerate(text):
                s = x @ t
                to_images = [b @ t for b in bank.image]
                to_captions = [x @ b for b in bank.text]
                first[i, j] = (s - np.mean(to_images)) / np.std(to_images)
                second = (s - np.mean(to_captions)) / np.std(to_captions)
                expected[i, j] = (first[i, j] + second) / 2 * std
        similarity = standardized(image @ text.T, image, text, bank)
        assert similarity.dtype == np.float32
        np.testing.assert_allclose(similarity, expected, atol=1e-6)
        std = np.mean([np.std([b @ t for b in bank.image]) for t in text])
        without_captions = standardized(
            image @ text.T, image, text, Bank.from_embeddings(bank.image, None)
        )
        np.testing.assert_allclose(without_captions, first * std, atol=1e-6)

    def test_hub_does_not_rank_first_for_all_images(self):
        """A text near the mean of all images must not be the first result for each of them."""
        rng = np.random.default_rng(0)
        common, own = 2 * np.eye(1, 21, 0), np.eye(20, 21, 1)
        concept = rng.integers(20, size=400)
        image = normalize(common + own[concept] + 0.05 * rng.standard_normal((400, 21)))
        text = np.vstack(
            [normalize(common / 4 + own), normalize(common)]
        )  # the last one is the hub
        bank = Bank.from_embeddings(image[:200], text)
        plain = image[200:] @ text.T
        assert np.mean(plain.argmax(axis=1) == 20) == 1
        best = standardized(plain, image[200:], text, bank).argmax(axis=1)
        assert np.mean(best == concept[200:]) > 0.95

    def test_equal_cosines_are_finite(self):
        """Equal cosines give neither infinity nor NaN, and unreadable images give NaN."""
        rng = np.random.default_rng(0)
        image, text = random_units(rng, 4, 6), random_units(rng, 3, 6)
        image[1], text[2] = np.nan, 0
        bank = Bank.from_embeddings(random_units(rng, 30, 6), random_units(rng, 20, 6))
        similarity = standardized(image @ text.T, image, text, bank)
        assert np.isnan(similarity[1]).all()
        assert np.isfinite(np.delete(similarity, 1, axis=0)).all()
        same = Bank.from_embeddings(np.tile(image[:1], (9, 1)), np.tile(text[:1], (9, 1)))
        np.testing.assert_array_equal(standardized(image[:1] @ text.T, image[:1], text, same), 0)

    def test_tile_size_does_not_change_result(self, monkeypatch):
        rng = np.random.default_rng(0)
        image, text = random_units(rng, 50, 6), random_units(rng, 20, 6)
        expected = standardized(image @ text.T, image, text, Bank.from_embeddings(image, text))
        monkeypatch.setattr(matrix, "TILE_BYTES", 17 * 4 * 20)
        tiled = standardized(image @ text.T, image, text, Bank.from_embeddings(image, text))
        np.testing.assert_allclose(tiled, expected, atol=1e-6)


class TestOwnBank:
    @pytest.mark.parametrize("aligner", [CCAAligner(), ASIFAligner(k=20)])
    def test_bank_contains_training_embeddings(self, aligner, concepts, held_out):
        """Banks of sparse and dense embeddings give equal results."""
        aligner = clone(aligner).fit(concepts.image[:200], concepts.text[:200])
        bank = Bank.from_embeddings(
            aligner.transform(concepts.image[:200]), aligner.transform_text(concepts.text[:200])
        )
        image, text = aligner.transform(held_out[0]), aligner.transform_text(held_out[1])
        similarity = aligner.similarity(*held_out, standardize=True)
        np.testing.assert_allclose(
            similarity, standardized(image @ text.T, image, text, bank), atol=1e-5
        )
        restored = pickle.loads(pickle.dumps(aligner))
        np.testing.assert_array_equal(restored.similarity(*held_out, standardize=True), similarity)

    def test_bank_excludes_prototypes_of_head_pairs(self, concepts):
        """Prototypes of classes are not images."""
        rng = np.random.default_rng(0)
        head = HeadPairs(rng.standard_normal((40, 32)), rng.standard_normal((40, 16)))
        aligner = CCAAligner(head_pairs=head).fit(concepts.image, concepts.text)
        np.testing.assert_allclose(aligner.bank_.image, aligner.transform(concepts.image))
        np.testing.assert_allclose(aligner.bank_.text, aligner.transform_text(concepts.text))

    def test_bank_of_many_pairs_is_evenly_spaced_sample(self):
        rng = np.random.default_rng(0)
        image, text = rng.standard_normal((2, 2500, 4)).astype(np.float32)
        aligner = CCAAligner().fit(image, text)
        assert len(aligner.bank_.image) == len(aligner.bank_.text) == 1000
        np.testing.assert_array_equal(choose_evenly_spaced(1999)[[0, 1, -1]], [0, 2, 1998])
        np.testing.assert_allclose(aligner.bank_.image[-1], aligner.transform(image)[-1])

    def test_result_of_image_does_not_depend_on_other_images(self, fitted, held_out):
        image, text = held_out
        every = fitted.similarity(image, text, standardize=True)
        np.testing.assert_allclose(
            fitted.similarity(image[3:4], text[5:7], standardize=True), every[3:4, 5:7], atol=1e-6
        )

    def test_standardized_values_have_scale_of_cosines(self, fitted, held_out):
        """Logit scales and thresholds keep their meaning."""
        plain, similarity = (fitted.similarity(*held_out, standardize=by) for by in (False, True))
        assert similarity.std() == pytest.approx(plain.std(), rel=0.3)
        assert abs(similarity.mean()) < 0.1 * similarity.std()

    def test_rows_that_failed_to_encode_are_nan(self, fitted, held_out):
        image, text = held_out[0].copy(), held_out[1].copy()
        image[2], text[4] = np.nan, np.nan
        for collection in (True, held_out[0]):
            similarity = fitted.similarity(image, text, standardize=collection)
            assert np.isnan(similarity[2]).all()
            assert np.isnan(similarity[:, 4]).all()
            assert np.isfinite(np.delete(np.delete(similarity, 2, axis=0), 4, axis=1)).all()

    def test_recall_on_real_images_does_not_drop(self, features):
        """On images like the training images it must not lower recall."""
        aligner = ASIFAligner().fit(features.image[:200], features.text[:200])
        image, text = features.image[200:], features.text[200:]

        def reciprocal_rank(standardize):
            similarity = aligner.similarity(image, text, standardize=standardize)
            own = np.diagonal(similarity)
            ranks = [1 + (similarity > own[:, None]).sum(axis=1), 1 + (similarity > own).sum(0)]
            return np.mean(1 / np.array(ranks))

        assert reciprocal_rank(True) > reciprocal_rank(False) - 0.01
        assert reciprocal_rank(image) > reciprocal_rank(False) - 0.01
        assert reciprocal_rank(False) > 0.2


class TestCollection:
    def test_select_rows_of_array_list_and_table(self, tmp_path):
        X = np.arange(20.0).reshape(10, 2)
        np.save(tmp_path / "X.npy", X)
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        rows = np.array([0, 4, 9])
        for table in (X, mapped, pd.DataFrame(X), csr_array(X), X.tolist(), list(X)):
            selected = _select_rows(table, rows)
            selected = selected.toarray() if hasattr(selected, "toarray") else np.asarray(selected)
            np.testing.assert_array_equal(selected, X[rows])
        names = [f"{number}.png" for number in range(10)]
        series = pd.Series(names, index=range(5, 15))
        for column in (names, tuple(names), np.array(names), series, pd.Index(names)):
            assert list(_select_rows(column, rows)) == ["0.png", "4.png", "9.png"]

    @pytest.mark.parametrize("library", ["pyarrow", "polars"])
    def test_select_rows_of_pyarrow_and_polars_columns(self, library):
        names = [f"{number}.png" for number in range(10)]
        module = pytest.importorskip(library)
        column = module.array(names) if library == "pyarrow" else module.Series(names)
        selected = _select_rows(column, np.array([0, 4, 9]))
        as_list = selected.to_pylist if library == "pyarrow" else selected.to_list
        assert as_list() == ["0.png", "4.png", "9.png"]

    def test_collection_replaces_training_images(self, fitted, held_out):
        image, text = fitted.transform(held_out[0]), fitted.transform_text(held_out[1])
        expected = standardized(
            image @ text.T, image, text, Bank.from_embeddings(image, fitted.bank_.text)
        )
        for collection in (held_out[0], held_out[0].tolist()):
            similarity = fitted.similarity(*held_out, standardize=collection)
            np.testing.assert_allclose(similarity, expected, atol=1e-5)

    def test_collection_is_embedded_once(self, fitted, concepts, held_out, monkeypatch):
        """It is embedded again after a fit of the aligner or a change of a step before it."""
        rows = []
        transform = CCAAligner.transform
        monkeypatch.setattr(
            CCAAligner, "transform", lambda self, X: rows.append(len(X)) or transform(self, X)
        )
        scaler = StandardScaler().fit(concepts.image[:200])
        pipeline = make_pipeline(scaler, fitted)
        classifier = ZeroShotClassifier(
            {0: "zero", 1: "one"}, aligner=pipeline, standardize=held_out[0], templates="none"
        )
        monkeypatch.setattr(
            CCAAligner, "transform_text", lambda self, y: np.eye(2, self.n_components_)
        )
        before = classifier.decision_function(held_out[0][:3])
        clone(classifier).set_params(aligner=pipeline).decision_function(held_out[0][:3])
        assert rows == [100, 3, 3]
        scaler.fit(concepts.image[:50])
        assert not np.allclose(classifier.decision_function(held_out[0][:3]), before)
        fitted.fit(concepts.image[:150], concepts.text[:150])
        classifier.decision_function(held_out[0][:3])
        assert rows == [100, 3, 3, 100, 3, 100, 3]

    def test_collection_is_embedded_each_time_if_step_cannot_be_pickled(self, fitted, held_out):
        """A change of the step cannot be detected, so nothing is cached."""
        pipeline = make_pipeline(FunctionTransformer(lambda rows: rows), fitted)
        banks = [resolve_bank(held_out[0], pipeline) for _ in range(2)]
        assert banks[0] is not banks[1]
        np.testing.assert_array_equal(banks[1].image, fitted.transform(held_out[0]))

    def test_unreadable_images_of_collection_are_left_out(self, fitted, held_out):
        images = held_out[0].copy()
        images[1:3] = np.nan
        similarity = fitted.similarity(*held_out, standardize=images)
        expected = fitted.similarity(*held_out, standardize=np.delete(images, [1, 2], axis=0))
        np.testing.assert_allclose(similarity, expected, atol=1e-6)

    def test_collection_works_without_captions(self, fitted, held_out):
        """CLIPAligner has no bank."""
        del fitted.bank_
        image, text = fitted.transform(held_out[0]), fitted.transform_text(held_out[1])
        expected = standardized(image @ text.T, image, text, Bank.from_embeddings(image, None))
        similarity = fitted.similarity(*held_out, standardize=held_out[0])
        np.testing.assert_allclose(similarity, expected, atol=1e-6)


class TestInvalidCollection:
    @pytest.mark.parametrize(
        ("standardize", "message"),
        [("yes", "True, False or a collection of images .* not 'yes'"),
         (0.5, "True, False or a collection of images .* not 0.5"),
         (None, "True, False or a collection of images .* not None"),
         ({0: 1, 1: 2}.values(), "True, False or a collection of images .* not dict_values"),
         ([], "collection of 0 images, .* at least 2"),
         (np.ones((1, 32)), "collection of 1 images, .* at least 2"),
         (np.ones((5, 32)), "images that differ"),
         (np.full((5, 32), np.nan), "images that differ"),
         (np.ones((5, 3)), "X has 3 features, but CCAAligner is expecting 32")],
    )  # fmt: skip
    def test_invalid_collection_raises(self, fitted, held_out, standardize, message):
        with pytest.raises(ValueError, match=message):
            fitted.similarity(*held_out, standardize=standardize)

    def test_aligner_without_bank_raises(self, fitted, held_out):
        del fitted.bank_
        with pytest.raises(ValueError, match=r"this CCAAligner has not stored any.* fit the"):
            fitted.similarity(*held_out, standardize=True)
        message = r"this CLIPAligner has not stored any.* standardize=images\.$"
        with pytest.raises(ValueError, match=message):
            CLIPAligner().similarity([[0.0]], ["a cat"], standardize=True)


@pytest.fixture
def aligner(concepts):
    return CCAAligner(ridge=0.01).fit(concepts.image[:200], concepts.text[:200])


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(matrix, "TILE_BYTES", 17 * 4 * 100)


@pytest.mark.parametrize("form", [np.asarray, np.ndarray.tolist])
def test_tiles_equal_the_full_product(small_tiles, aligner, concepts, form):
    """For features, which are embedded tile by tile, and for images."""
    texts = aligner.transform_text(concepts.text[200:])
    X = concepts.image.copy()
    X[[3, 250]] = np.nan
    tiles = LogitTiles(aligner, np.arange(100), texts, 20.0, None)
    sizes = [len(tile.logits) for tile in tiles.iter_tiles(form(X))]
    assert max(sizes) == 17
    assert sum(sizes) == 300
    logits = tiles.collect(form(X))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, 20 * aligner.transform(X) @ texts.T, atol=1e-5)


@pytest.mark.parametrize("with_captions", [True, False])
def test_standardized_tiles_equal_the_full_matrix(small_tiles, aligner, concepts, with_captions):
    texts = aligner.transform_text(concepts.text[200:])
    bank = aligner.bank_ if with_captions else Bank.from_embeddings(aligner.bank_.image, None)
    image = aligner.transform(concepts.image)
    logits = LogitTiles(aligner, np.arange(100), texts, 20.0, bank).collect(concepts.image)
    np.testing.assert_allclose(
        logits, 20 * standardized(image @ texts.T, image, texts, bank), atol=2e-5
    )


def test_probabilities_equal_softmax():
    logits = (30 * np.random.default_rng(0).standard_normal((20, 7))).astype(np.float32)
    expected = softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(to_probabilities(logits), expected, rtol=1e-5, atol=1e-12)


def test_choose_texts_returns_best_unless_below_threshold_or_unreadable():
    logits = np.array([[0, 3, 3], [1, 1, 0.9], [np.nan] * 3, [5, 0, 0]], dtype=np.float32)
    assert choose_texts(logits.copy(), None).tolist() == [1, 0, UNREADABLE, 0]
    assert choose_texts(logits.copy(), 0.45).tolist() == [1, UNKNOWN, UNREADABLE, 0]


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_texts_equal_a_stable_sort(k):
    logits = np.random.default_rng(0).integers(0, 5, (50, 7)).astype(np.float32)
    logits[4] = np.nan
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    proba = np.take_along_axis(softmax(logits, axis=1), expected, axis=1)
    codes, probabilities = choose_top_texts(logits.copy(), k)
    np.testing.assert_allclose(probabilities, proba, rtol=1e-5)
    assert (codes[4] == UNREADABLE).all()
    readable = np.arange(50) != 4
    np.testing.assert_array_equal(codes[readable], expected[readable])


def test_bank_of_files_follows_their_contents(captioned_images, tmp_path):
    """The paths stay the same if other images are copied over the files."""
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]

    def compare(images):
        for image, path in zip(images, paths, strict=True):
            shutil.copy(image, path)
        return ZeroShotClassifier(["a cat", "food"], standardize=paths).predict_proba(paths[:1])

    first = compare(captioned_images.images[:4])
    second = compare([captioned_images.images[0], *captioned_images.images[10:13]])
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(compare(captioned_images.images[:4]), first)
