"""Estimators of the package in searches, ensembles and other tools of scikit-learn."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import CCAAligner, KernelAligner, ZeroShotClassifier, load_pretrained
from tests.conftest import LABELS


@pytest.fixture(scope="module")
def aligner(features, captioned_images, text_encoder):
    """Return an aligner that is fitted on the first 150 images."""
    return KernelAligner(text_encoder=text_encoder).fit(
        features.image[:150], captioned_images.captions[:150]
    )


@pytest.fixture
def frozen(aligner):
    return ZeroShotClassifier(LABELS, aligner=FrozenEstimator(aligner))


@pytest.fixture
def numbered_classifier(aligner):
    """Return a classifier whose labels are the indices of the sorted names."""
    names = {number: LABELS[label] for number, label in enumerate(sorted(LABELS))}
    return ZeroShotClassifier(names, aligner=FrozenEstimator(aligner))


@pytest.fixture
def unfitted(text_encoder):
    """Return a classifier that refits its aligner, which is fast."""
    return ZeroShotClassifier(LABELS, aligner=CCAAligner(text_encoder=text_encoder))


@pytest.fixture
def new(features, captioned_images):
    """Return images that the aligner was not fitted on."""
    return features.image[150:], captioned_images.categories[150:]


class TestSearches:
    @pytest.mark.exhaustive
    def test_grid_random_and_halving_searches_select_same_candidate(self, aligner, new):
        """The searches cover parameters of classifier and aligner, and no candidate fails."""
        classifier = ZeroShotClassifier(LABELS, aligner=FrozenEstimator(aligner))
        grid = {"templates": ["none", "simple"], "standardize": [False, True]}
        options = {"cv": 3, "error_score": "raise"}
        searches = [
            GridSearchCV(classifier, grid, **options),
            RandomizedSearchCV(classifier, grid, n_iter=4, random_state=0, **options),
            HalvingGridSearchCV(classifier, grid, random_state=0, min_resources=45, **options),
        ]
        scores = [search.fit(*new).best_score_ for search in searches]
        assert scores[0] == scores[1]
        assert min(scores) > 0.4

    def test_search_over_aligner_within_classifier_selects_best(
        self, unfitted, features, captioned_images
    ):
        search = GridSearchCV(
            unfitted, {"aligner__ridge": [0.1, 10.0]}, cv=2, error_score="raise"
        ).fit(features.image[:100, :256], captioned_images.categories[:100])
        assert search.best_score_ > 0.5
        assert search.best_estimator_.aligner_.ridge == search.best_params_["aligner__ridge"]

    @pytest.mark.exhaustive
    def test_learning_curves_and_permutation_scores_are_computed(
        self, frozen, unfitted, features, captioned_images, new
    ):
        X, y = features.image[:90], captioned_images.categories[:90]
        sizes, _, learned = learning_curve(unfitted, X, y, cv=2, train_sizes=[0.5, 1.0])
        assert sizes.tolist() == [22, 45]
        assert np.isfinite(learned).all()
        _, valid = validation_curve(
            unfitted, X, y, param_name="aligner__n_components", param_range=[1, 10], cv=2
        )
        assert valid[1].mean() > valid[0].mean()  # one component cannot separate three classes
        score, permuted, p = permutation_test_score(frozen, *new, cv=2, n_permutations=9)
        assert score > permuted.max()
        assert p == pytest.approx(0.1)


class TestEnsembles:
    def test_calibration_by_folds_keeps_frozen_aligner(self, frozen, new):
        """Each fold fits sigmoids on its held-out part and does not refit the aligner."""
        calibrated = CalibratedClassifierCV(frozen, method="sigmoid", cv=3).fit(*new)
        assert len(calibrated.calibrated_classifiers_) == 3
        assert log_loss(new[1], calibrated.predict_proba(new[0])) < np.log(3)

    @pytest.mark.exhaustive
    def test_calibration_by_folds_refits_unfitted_aligner(
        self, unfitted, features, captioned_images
    ):
        """With `ensemble=False`, scikit-learn would replace the labels by numbers."""
        calibrated = CalibratedClassifierCV(unfitted, method="sigmoid", cv=2, ensemble=True)
        calibrated.fit(features.image[:150], captioned_images.categories[:150])
        proba = calibrated.predict_proba(features.image[150:])
        assert log_loss(captioned_images.categories[150:], proba) < np.log(3)

    @pytest.mark.parametrize("voting", ["soft", "hard"])
    def test_voting_with_another_classifier_predicts(self, numbered_classifier, new, voting):
        """Labels are numbers from 0 because VotingClassifier encodes them so before it fits."""
        X, y = new[0], np.searchsorted(sorted(LABELS), new[1])
        linear = make_pipeline(StandardScaler(), LogisticRegression())
        voters = [("names", numbered_classifier), ("linear", linear)]
        vote = VotingClassifier(voters, voting=voting).fit(X[:100], y[:100])
        assert vote.score(X[100:], y[100:]) > 0.5
        if voting == "soft":
            mean = np.mean([one.predict_proba(X[100:]) for one in vote.estimators_], axis=0)
            np.testing.assert_allclose(vote.predict_proba(X[100:]), mean)

    def test_stacking_with_another_classifier_predicts(self, numbered_classifier, new):
        X, y = new[0], np.searchsorted(sorted(LABELS), new[1])
        stack = StackingClassifier(
            [("names", numbered_classifier)], final_estimator=LogisticRegression(), cv=3,
            stack_method="predict_proba", passthrough=False,
        )  # fmt: skip
        stack.fit(X[:100], y[:100])
        assert stack.score(X[100:], y[100:]) > 0.5


class TestColumns:
    def test_column_transformer_encodes_column_of_paths(
        self, captioned_images, image_encoder, features
    ):
        """The column is selected by a string, so that the encoder gets a Series."""
        frame = pd.DataFrame({"path": captioned_images.images[:40], "size": np.arange(40.0)})
        columns = ColumnTransformer(
            [("image", image_encoder, "path"), ("number", StandardScaler(), ["size"])]
        )
        found = columns.fit_transform(frame)
        assert found.shape == (40, 1281)
        np.testing.assert_allclose(found[:, :1280], features.image[:40], atol=1e-5)
        named = columns.set_output(transform="pandas").fit_transform(frame)
        assert named.columns[0] == "image__timmimageencoder0"
        assert named.columns[-1] == "number__size"
        wrong = ColumnTransformer([("image", image_encoder, ["path"])])
        with pytest.raises(ValueError, match="table with the columns 'path'"):
            wrong.fit_transform(frame)

    @pytest.mark.filterwarnings("ignore:1 image cannot be encoded")
    def test_column_with_missing_image_is_imputed(self, captioned_images, image_encoder):
        frame = pd.DataFrame({"path": [None, *captioned_images.images[1:40]]})
        encoder = make_pipeline(
            clone(image_encoder).set_params(on_error="nan"), SimpleImputer(strategy="mean")
        )
        columns = ColumnTransformer([("image", encoder, "path")])
        found = columns.fit_transform(frame)
        np.testing.assert_allclose(found[0], found[1:].mean(axis=0), atol=1e-4)

    def test_column_is_embedded_by_frozen_aligner(
        self, captioned_images, image_encoder, text_encoder
    ):
        """ColumnTransformer fits a clone of its transformers, except of frozen ones."""
        images, captions = captioned_images.images[:40], captioned_images.captions[:40]
        aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
        aligner.fit(images, captions)
        columns = ColumnTransformer([("image", FrozenEstimator(aligner), "path")])
        table = pd.DataFrame({"path": images})
        found = columns.fit_transform(table, np.arange(40) % 2)
        np.testing.assert_allclose(found, aligner.transform(images), atol=1e-5)
        names = columns.get_feature_names_out()
        assert names[0] == "image__kernelaligner0"
        frame = columns.set_output(transform="pandas").transform(table)
        assert frame.columns.tolist() == names.tolist()

    def test_feature_union_joins_two_encoders(self, captioned_images, image_encoder):
        other = clone(image_encoder).set_params(pooling="gem")
        union = FeatureUnion([("mean", image_encoder), ("gem", other)])
        found = union.fit_transform(captioned_images.images[:6])
        assert found.shape == (6, 2560)
        assert union.get_feature_names_out()[-1] == "gem__timmimageencoder1279"


class TestRecallAsScore:
    """Scores other than recall@1, which are functions because aligners have no `predict`."""

    def test_function_scores_pipeline(self, captioned_images, image_encoder, text_encoder):
        def recall_at_5(model, X, y):
            report = model[-1].retrieval_report(model[:-1].transform(X), y, ks=(1, 5))
            return report["image_to_text"][5]

        pipeline = make_pipeline(image_encoder, KernelAligner(text_encoder=text_encoder))
        data = captioned_images.images[:120], captioned_images.captions[:120]
        scoring = {"at_5": recall_at_5, "at_1": lambda model, X, y: model.score(X, y)}
        scores = cross_validate(pipeline, *data, cv=2, scoring=scoring, error_score="raise")
        assert (scores["test_at_5"] > scores["test_at_1"]).all()
        assert (scores["test_at_5"] > 3 * 5 / 60).all()  # several times chance


class TestSetOutput:
    def test_feature_files_are_arrays_under_any_set_output(
        self, captioned_images, image_encoder, tmp_path
    ):
        """`set_output` affects what `transform` returns, not what `encode_to` writes."""
        tables = clone(image_encoder).set_output(transform="pandas")
        found = tables.encode_to(tmp_path / "features.npy", captioned_images.images[:3])
        np.testing.assert_allclose(
            found, image_encoder.transform(captioned_images.images[:3]), atol=1e-5
        )

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_set_output_of_pipeline_names_columns_of_every_step(
        self, library, captioned_images, image_encoder
    ):
        """Column names are passed from the encoder through the aligner to the last step."""
        module = pytest.importorskip(library)
        aligner = CCAAligner(n_components=2)
        pipeline = make_pipeline(clone(image_encoder), aligner).set_output(transform=library)
        targets = np.random.default_rng(0).random((30, 4))
        found = pipeline.fit(captioned_images.images[:30], targets).transform(
            captioned_images.images[:30]
        )
        assert isinstance(found, module.DataFrame)
        assert list(found.columns) == ["ccaaligner0", "ccaaligner1"]
        assert pipeline.get_feature_names_out().tolist() == list(found.columns)
        assert pipeline[-1].feature_names_in_[-1] == "timmimageencoder1279"
        other = module.DataFrame({name: [0.0] for name in pipeline[-1].feature_names_in_[::-1]})
        with pytest.raises(ValueError, match="must be in the same order"):
            pipeline[-1].transform(other)

    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_columns_of_text_features_must_be_those_of_fit(self, library, concepts, tmp_path):
        """In another order, they would be taken for other features."""
        module = pytest.importorskip(library)
        names = [f"t{number}" for number in range(concepts.text.shape[1])]
        frame = module.DataFrame(dict(zip(names, concepts.text.T, strict=True)))
        aligner = CCAAligner().fit(concepts.image, frame)
        aligner.save_pretrained(tmp_path / "model")
        for fitted in (aligner, load_pretrained(tmp_path / "model")):
            assert fitted.score(concepts.image, frame) == fitted.score(
                concepts.image, concepts.text
            )
            for call in (fitted.transform_text, partial(fitted.score, concepts.image)):
                with pytest.raises(ValueError, match="columns of y must be those of fit"):
                    call(frame[names[::-1]])
                with pytest.raises(ValueError, match="unknown: 'other'"):
                    call(frame.rename(**{
                        ("columns" if library == "pandas" else "mapping"): {"t0": "other"}
                    }))  # fmt: skip

    def test_message_about_columns_holds_for_numbers(self, concepts):
        """The columns of a table of pandas are numbers by default."""
        frame = pd.DataFrame(concepts.text)
        aligner = CCAAligner().fit(concepts.image, frame)
        with pytest.raises(
            ValueError, match=r"Pass the columns 0, 1, 2, 3, 4, \.\.\. in this order"
        ):
            aligner.transform_text(frame[frame.columns[::-1]])

    def test_pyarrow_table_of_text_features_is_a_table(self, concepts):
        """It was read as a list of dicts."""
        pa = pytest.importorskip("pyarrow")
        names = [f"t{number}" for number in range(concepts.text.shape[1])]
        table = pa.table(dict(zip(names, concepts.text.T, strict=True)))
        aligner = CCAAligner().fit(concepts.image, table)
        plain = CCAAligner().fit(concepts.image, concepts.text)
        np.testing.assert_array_equal(
            aligner.transform_text(table), plain.transform_text(concepts.text)
        )
        with pytest.raises(ValueError, match="columns of y must be those of fit"):
            aligner.transform_text(table.select(names[::-1]))
        with pytest.raises(ValueError, match="y is a table with the columns 'caption'"):
            CCAAligner().fit(concepts.image, pa.table({"caption": ["a"] * len(concepts.image)}))
        with pytest.raises(ValueError, match="are features, convert them to numbers"):
            CCAAligner().fit(concepts.image, pd.DataFrame(concepts.text).astype(object))

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_classifier_takes_data_frames_of_features(
        self, library, features, captioned_images, unfitted
    ):
        module = pytest.importorskip(library)
        X, y = features.image[:60, :64], captioned_images.categories[:60]
        names = [f"f{number}" for number in range(64)]
        frame = module.DataFrame(dict(zip(names, X.T, strict=True)))
        fitted = unfitted.fit(frame, y)
        assert fitted.feature_names_in_.tolist() == names
        expected = clone(unfitted).fit(X, y).predict(X)
        np.testing.assert_array_equal(fitted.predict(frame), expected)
