"""Scores identify images and captions by content, not by features."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sklearn_ape
from sklearn_ape import APEAligner, CCAAligner, CLIPAligner, KernelAligner
from sklearn_ape.inspection import RecallCurveDisplay
from sklearn_ape.metrics import retrieval_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*have the same features:UserWarning")


class CoarseEncoder(TransformerMixin, BaseEstimator):
    """Encoder whose features are the last digits of the file name."""

    def __init__(self, n_values=2):
        self.n_values = n_values

    def fit(self, X, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def transform(self, X):
        numbers = np.array([int(str(item)[-8:-4], 16) % self.n_values for item in X])
        return np.random.default_rng(0).standard_normal((self.n_values, 8))[numbers]


def aligner_of(image_encoder, text_encoder, captioned_images, rows=slice(0, 60)):
    aligner = CCAAligner(image_encoder=image_encoder, text_encoder=text_encoder)
    return aligner.fit(captioned_images.images[rows], captioned_images.captions[rows])


@pytest.fixture(scope="module")
def real(captioned_images, image_encoder, text_encoder):
    """Return an aligner that is fitted on the first 60 images."""
    return aligner_of(image_encoder, text_encoder, captioned_images)


class TestCollapsedEncoders:
    @pytest.mark.parametrize("n_values", [1, 2, 5])
    def test_image_encoder_with_few_values_scores_at_most_chance(
        self, captioned_images, real, text_encoder, n_values
    ):
        test = captioned_images.images[60:100], captioned_images.captions[60:100]
        coarse = aligner_of(CoarseEncoder(n_values), text_encoder, captioned_images)
        assert coarse.score(*test) <= 1 / 40
        assert real.score(*test) > coarse.score(*test)
        assert {way: len(ranks) for way, ranks in coarse.retrieval_ranks(*test).items()} == {
            "image_to_text": 40,
            "text_to_image": 40,
        }

    def test_grid_search_picks_the_better_image_encoder(
        self, captioned_images, image_encoder, text_encoder
    ):
        search = GridSearchCV(
            CCAAligner(text_encoder=text_encoder),
            {"image_encoder": [CoarseEncoder(), image_encoder]},
            cv=3,
        ).fit(captioned_images.images[:90], captioned_images.captions[:90])
        assert isinstance(search.best_params_["image_encoder"], type(image_encoder))

    def test_coarse_encoder_in_a_pipeline_scores_at_most_chance(
        self, captioned_images, text_encoder
    ):
        model = make_pipeline(CoarseEncoder(), CCAAligner(text_encoder=text_encoder))
        model.fit(captioned_images.images[:60], captioned_images.captions[:60])
        assert (
            model.score(captioned_images.images[60:100], captioned_images.captions[60:100])
            <= 1 / 40
        )

    @pytest.mark.parametrize("side", ["image", "text"])
    def test_constant_features_have_zero_recall(self, concepts, side):
        aligner = KernelAligner().fit(concepts.image[:200], concepts.text[:200])
        test = {"image": concepts.image[200:], "text": concepts.text[200:]}
        assert aligner.score(test["image"], test["text"]) > 0.3
        test[side] = np.ones_like(test[side])
        with pytest.warns(UserWarning, match="100 of the 100 rows of"):
            report = aligner.retrieval_report(test["image"], test["text"], ks=(1, 99))
        # A constant query ranks one image first, which is correct for one caption: chance.
        assert sorted(recall[1] for recall in report.values()) == [0, 0.01]
        assert min(recall[99] for recall in report.values()) == 0

    def test_recall_curve_counts_every_image(self, captioned_images, text_encoder):
        coarse = aligner_of(CoarseEncoder(), text_encoder, captioned_images)
        test = captioned_images.images[60:100], captioned_images.captions[60:100]
        curve = RecallCurveDisplay.from_estimator(coarse, *test, ks=[1]).recall
        assert max(recall[0] for recall in curve.values()) <= 1 / 40

    def test_validation_recall_of_early_stopping_counts_every_row(self):
        """Twenty rows share their features: a caption of one row is not a hit for the others."""
        rng = np.random.default_rng(0)
        concepts = np.repeat(rng.standard_normal((100, 8)), 20, axis=0)
        image = concepts @ rng.standard_normal((8, 16))
        text = concepts @ rng.standard_normal((8, 12)) + 1e-3 * rng.standard_normal((2000, 12))
        aligner = APEAligner(init="kernel", width=16, max_epochs=1, random_state=0)
        aligner.fit(image, text)
        groups = np.arange(2000) // 20
        report = aligner.retrieval_report(image, text, ks=(1,), groups=groups)
        assert min(recall[1] for recall in report.values()) > 0.9
        assert max(row["valid_recall"] for row in aligner.history_) < 0.3


class TestIdentity:
    def test_captions_and_their_features_score_the_same(self, features, text_encoder):
        twins = ["Cat", "cat", "CAT", "dog", "Dog", "DOG"]
        aligner = CCAAligner(text_encoder=text_encoder).fit(features.image[:6], twins)
        by_captions = aligner.score(features.image[:6], twins)
        by_features = aligner.score(features.image[:6], text_encoder.transform(twins))
        assert by_captions == by_features == 0

    def test_same_image_under_two_paths_is_one_item(self, captioned_images, real, tmp_path):
        copies = [shutil.copy(path, tmp_path / f"{i}.png") for i, path in
                  enumerate(captioned_images.images[:20])]  # fmt: skip
        captions = captioned_images.captions[:20]
        several = [[caption, f"a {caption}"] for caption in captions]
        one_row = real.retrieval_ranks(captioned_images.images[:20], several)
        two_rows = real.retrieval_ranks(
            [*captioned_images.images[:20], *copies],
            [*captions, *(f"a {text}" for text in captions)],
        )
        assert len(two_rows["image_to_text"]) == 20
        for way, ranks in one_row.items():
            assert sorted(ranks) == sorted(two_rows[way])

    def test_equal_rows_of_features_are_separate_images(self, concepts):
        aligner = CCAAligner().fit(concepts.image, concepts.text)
        repeated = np.repeat(concepts.image[:50], 2, axis=0)
        with pytest.warns(UserWarning, match="Pass groups"):
            ranks = aligner.retrieval_ranks(repeated, concepts.text[:100])
        assert len(ranks["image_to_text"]) == 100


class TestGroups:
    def test_groups_make_repeated_rows_one_image(self, concepts):
        """Equal to a plain count over 50 images with two captions each."""
        aligner = CCAAligner().fit(concepts.image, concepts.text)
        repeated = np.repeat(concepts.image[:50], 2, axis=0)
        text = concepts.text[:100]
        groups = np.repeat([f"{i}.jpg" for i in range(50)], 2)
        ranks = aligner.retrieval_ranks(repeated, text, groups=groups)
        pairs = np.column_stack([np.repeat(np.arange(50), 2), np.arange(100)])
        embeddings = aligner.transform(concepts.image[:50]), aligner.transform_text(text)
        np.testing.assert_array_equal(ranks["image_to_text"], retrieval_ranks(*embeddings, pairs))
        np.testing.assert_array_equal(
            ranks["text_to_image"], retrieval_ranks(*embeddings[::-1], pairs[:, ::-1])
        )
        report = aligner.retrieval_report(repeated, text, ks=(1,), groups=groups)
        expected = np.mean([recall[1] for recall in report.values()])
        assert aligner.score(repeated, text, groups=groups) == expected

    def test_images_and_captions_of_one_group_belong_together(self, concepts):
        aligner = CCAAligner().fit(concepts.image, concepts.text)
        image, text = concepts.image[:60], concepts.text[:60]
        groups = np.arange(60) % 6
        ranks = aligner.retrieval_ranks(image, text, groups=groups.tolist())
        similarity = aligner.similarity(image, text)
        same = groups[:, None] == groups[None]
        best = np.where(same, similarity, -np.inf).max(axis=1)
        expected = ((similarity >= best[:, None]) & ~same).sum(axis=1)
        np.testing.assert_array_equal(ranks["image_to_text"], expected)

    @pytest.mark.parametrize("n_values", [1, 3])
    def test_groups_do_not_help_a_collapsed_encoder(self, concepts, n_values):
        aligner = CCAAligner().fit(concepts.image, concepts.text)
        coarse = concepts.image[np.arange(100) % n_values]
        groups = np.arange(100) % 10
        assert aligner.score(coarse, concepts.text[:100], groups=groups) <= 0.1

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            (["a"] * 9, "groups has 9 entries for 10 rows"),
            ([*"abcdefghi", None], "groups has a missing value in row 9"),
            (np.r_[np.arange(9.0), np.nan], "groups has a missing value in row 9"),
            ("abcdefghij", "groups is a single group, not a sequence"),
            (np.ones((10, 2)), "groups must have one dimension"),
            ([{"file": 1}] * 10, "groups must have one dimension, and row 0 is"),
            ([("a", ["b"])] * 10, r"one dimension, and row 0 is \('a', \['b'\]\). Pass one"),
            (pd.DataFrame({"file": range(10)}), "groups is a table with the columns 'file'"),
        ],
    )
    def test_invalid_groups_raise(self, concepts, groups, message):
        aligner = CCAAligner().fit(concepts.image, concepts.text)
        with pytest.raises(ValueError, match=message):
            aligner.score(concepts.image[:10], concepts.text[:10], groups=groups)


class TestFittedImages:
    def test_images_are_recognized_by_content_after_saving(self, captioned_images, real, tmp_path):
        real.save_pretrained(tmp_path / "model")
        loaded = sklearn_ape.load_pretrained(tmp_path / "model")
        copy = shutil.copy(captioned_images.images[0], tmp_path / "copy.png")
        queries = [
            captioned_images.images[59],
            copy,
            captioned_images.images[60],
            captioned_images.images[61],
        ]
        for model in (real, loaded):
            assert model.was_fitted_on(queries).tolist() == [True, True, False, False]

    def test_dicts_of_hugging_face_datasets_are_recognized_by_content(
        self, captioned_images, real, tmp_path
    ):
        """They were identified by their position, so that new images were reported as known."""
        paths = [captioned_images.images[row] for row in (60, 0, 61)]
        dicts = [{"bytes": None, "path": str(path)} for path in paths]
        dicts += [{"bytes": Path(paths[1]).read_bytes(), "path": None}]
        assert real.was_fitted_on(dicts).tolist() == [False, True, False, True]

    def test_features_in_place_of_images_raise(self, real, features):
        """They would all be reported as new, and training images would remain in a test set."""
        with pytest.raises(ValueError, match="a sequence of images is expected"):
            real.was_fitted_on(features.image[:60])

    def test_rows_of_an_encoder_of_tables_are_compared_by_features(self):
        X = np.random.default_rng(0).standard_normal((40, 80)).astype(np.float32)
        aligner = CCAAligner(image_encoder=StandardScaler()).fit(X[:20], X[:20, :30])
        np.testing.assert_array_equal(aligner.was_fitted_on(X), np.arange(40) < 20)
        assert not aligner.was_fitted_on(X[20:].tolist()).any()

    def test_features_are_recognized_after_saving(self, features, tmp_path):
        CCAAligner().fit(features.image[:50], features.text[:50]).save_pretrained(tmp_path / "a")
        loaded = sklearn_ape.load_pretrained(tmp_path / "a")
        np.testing.assert_array_equal(
            loaded.was_fitted_on(features.image[:100]), np.arange(100) < 50
        )

    def test_features_are_recognized_despite_rounding(
        self, features, text_encoder, captioned_images
    ):
        aligner = CCAAligner(text_encoder=text_encoder)
        aligner.fit(features.image[:200], captioned_images.captions[:200])
        rounded = features.image * (1 + 1e-6 * np.random.default_rng(0).standard_normal(1280))
        is_fitted = aligner.was_fitted_on(rounded)
        assert is_fitted[:200].all()
        assert not is_fitted[200:].any()

    def test_few_features_are_compared_exactly(self, concepts):
        aligner = CCAAligner().fit(concepts.image[:200], concepts.text[:200])
        expected = np.arange(300) < 200
        np.testing.assert_array_equal(aligner.was_fitted_on(concepts.image), expected)

    def test_features_with_dominant_columns_are_distinguished(self):
        """In CLIP, the same few features are the largest for every image."""
        rng = np.random.default_rng(0)
        image = 5 * rng.standard_normal(64) + 0.5 * rng.standard_normal((2000, 64))
        aligner = CCAAligner(n_components=8).fit(image[:1000], rng.standard_normal((1000, 16)))
        is_fitted = aligner.was_fitted_on(image * (1 + 1e-6 * rng.standard_normal(64)))
        assert is_fitted[:1000].mean() > 0.99
        assert not is_fitted[1000:].any()

    def test_equal_features_are_ordered_by_column(self):
        """A choice by the processor made training images unknown to a model saved elsewhere."""
        X = np.stack([np.roll(np.arange(64) < 20, shift) for shift in range(64)]).astype(float)
        aligner = CCAAligner().fit(X, np.eye(64))
        assert aligner.was_fitted_on(X - 1e-6 * np.arange(64)).all()

    @pytest.mark.parametrize("is_pipeline", [False, True])
    def test_unreadable_images_are_not_training_images(
        self, is_pipeline, captioned_images, image_encoder, text_encoder, tmp_path
    ):
        X, queries = list(captioned_images.images[:20]), list(captioned_images.images[20:40])
        for images, content in ((X, "no image"), (queries, "other text")):
            images[5] = tmp_path / f"{content}.png"
            images[5].write_text(content)
        encoder = clone(image_encoder).set_params(on_error="nan")
        aligner = CCAAligner(text_encoder=text_encoder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of unreadable images
            if is_pipeline:
                X, queries = encoder.transform(X), encoder.transform(queries)
            else:
                aligner.set_params(image_encoder=encoder)
            aligner.fit(X, captioned_images.captions[:20])
            assert aligner.was_fitted_on(X).sum() == 19
            assert not aligner.was_fitted_on(queries).any()

    def test_invalid_images_raise(self, captioned_images, real):
        with pytest.raises(ValueError, match="X is a single image"):
            real.was_fitted_on(captioned_images.images[0])
        with pytest.raises(ValueError, match="X is empty"):
            real.was_fitted_on([])

    def test_refit_replaces_the_record(self, concepts):
        aligner = CCAAligner().fit(concepts.image[:100], concepts.text[:100])
        aligner.fit(concepts.image[100:], concepts.text[100:])
        assert not aligner.was_fitted_on(concepts.image[:100]).any()

    def test_record_is_none_without_a_fit(self):
        assert CLIPAligner("ViT-B-32").was_fitted_on(["a.jpg"]) is None


def test_constant_text_encoder_scores_at_most_chance(concepts):
    """All captions are unknown words, whose vectors of counts are zero."""
    words = [f"word{i}" for i in range(200)]
    aligner = CCAAligner(text_encoder=CountVectorizer()).fit(concepts.image[:200], words)
    unknown = [f"other{i}" for i in range(100)]
    assert aligner.score(concepts.image[200:], unknown) <= 1 / 100


def test_error_names_a_text_encoder_that_returns_equal_features(concepts):
    encoder = TfidfVectorizer(vocabulary=["unknown"])
    aligner = CCAAligner(text_encoder=encoder)
    with (
        pytest.warns(UserWarning, match="knows no term of 200 texts"),
        pytest.raises(
            ValueError, match="Pass different captions or classes, and check the text encoder"
        ),
    ):
        aligner.fit(concepts.image[:200], [f"word{i}" for i in range(200)])
