"""Digest of everything that the embeddings of an aligner depend on."""

import copy
import pickle
import shutil

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, CLIPAligner, KernelAligner
from sklearn_ape.aligners.fitted_images import digest_embedding, digest_exactly
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder


class CountsCalls(TransformerMixin, BaseEstimator):
    """Transformer that counts calls in attributes that are not fitted."""

    def fit(self, X, y=None):
        self.n_calls = 0
        return self

    def transform(self, X):
        self.n_calls += 1
        self._last_shape = X.shape
        return X

    def __sklearn_is_fitted__(self):
        return True


@pytest.fixture
def pipeline(concepts):
    pipeline = make_pipeline(StandardScaler(), PCA(8, random_state=0), CCAAligner())
    return pipeline.fit(concepts.image, concepts.text)


@pytest.mark.parametrize(
    "parameters",
    [
        {"model_name": "efficientnet_lite1"},
        {"revision": "main"},
        {"pooling": "mean"},
        {"output": "logits"},
        {"crop": "pad"},
        {"views": 2},
        {"dtype": "bfloat16"},
    ],
)
def test_parameter_of_an_encoder_that_changes_features_changes_the_digest(parameters):
    pipeline = make_pipeline(TimmImageEncoder(), CCAAligner())
    before = digest_embedding(pipeline)
    pipeline[0].set_params(**parameters)
    assert digest_embedding(pipeline) != before


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": 3},
        {"cache": None},
        {"device": "cpu"},
        {"engine": "torch"},
        {"n_jobs": 2},
        {"on_error": "nan"},
        {"verbose": 1},
    ],
)
def test_runtime_option_of_an_encoder_does_not_change_the_digest(parameters):
    pipeline = make_pipeline(TimmImageEncoder(), CCAAligner())
    before = digest_embedding(pipeline)
    pipeline[0].set_params(**parameters)
    assert digest_embedding(pipeline) == before


class ScaledEncoder(TransformersTextEncoder):
    """Encoder of a user with its own parameter, which is not a dataclass."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def transform(self, X):
        return super().transform(X) * self.scale


def test_own_parameter_of_a_subclass_changes_the_digest():
    pipeline = make_pipeline(ScaledEncoder(), CCAAligner())
    before = digest_embedding(pipeline)
    pipeline[0].set_params(scale=2.0)
    assert digest_embedding(pipeline) != before


def test_engine_changes_the_digest_in_half_precision():
    pipeline = make_pipeline(TimmImageEncoder(dtype="bfloat16", engine="torch"), CCAAligner())
    before = digest_embedding(pipeline)
    pipeline[0].set_params(engine="openvino")
    assert digest_embedding(pipeline) != before


@pytest.mark.parametrize("side", ["image_encoder_", "text_encoder_"])
def test_encoders_of_a_fitted_aligner_change_the_digest(side, concepts):
    aligner = CCAAligner().fit(concepts.image, concepts.text)
    aligner.image_encoder_ = TimmImageEncoder()
    aligner.text_encoder_ = TransformersTextEncoder()
    before = digest_embedding(aligner)
    getattr(aligner, side).pooling = "cls"
    assert digest_embedding(aligner) != before


def test_a_folder_with_other_weights_changes_the_digest(tmp_path):
    folder = tmp_path / "model"
    for content in (b"one", b"other"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "weights").write_bytes(content)
        digest = digest_embedding(CLIPAligner(str(folder)))
        if content == b"one":
            first = digest
    assert digest != first


@pytest.mark.parametrize(
    "aligner",
    [
        CCAAligner(),
        KernelAligner(),
        ASIFAligner(),
        APEAligner(init=None, width=8, max_epochs=1, early_stopping=False, random_state=0),
    ],
)
def test_a_refit_on_other_pairs_changes_the_digest_and_an_equal_fit_does_not(aligner, concepts):
    aligner = clone(aligner).fit(concepts.image, concepts.text)
    before = digest_embedding(aligner)
    aligner.fit(concepts.image, concepts.text)
    assert digest_embedding(aligner) == before
    aligner.fit(concepts.image[:200], concepts.text[:200])
    assert digest_embedding(aligner) != before


def test_a_refit_or_a_parameter_of_a_step_changes_the_digest(pipeline, concepts):
    before = digest_embedding(pipeline)
    pipeline[0].fit(concepts.image[:50])
    refitted = digest_embedding(pipeline)
    assert refitted != before
    pipeline[0].with_mean = False
    assert digest_embedding(pipeline) != refitted
    pipeline[0].with_mean = True
    assert digest_embedding(pipeline) == refitted
    pipeline.set_params(pca=PCA(8).fit(concepts.image[:100]))
    assert digest_embedding(pipeline) != refitted


def test_an_array_changed_in_place_changes_the_digest(pipeline):
    before = digest_embedding(pipeline)
    pipeline[0].mean_[0] += 1e-9
    assert digest_embedding(pipeline) != before


def test_copies_and_wrappers_of_a_pipeline_have_the_digest_of_their_content(pipeline, concepts):
    expected = digest_embedding(pipeline)
    assert digest_embedding(copy.deepcopy(pipeline)) == expected
    assert digest_embedding(pickle.loads(pickle.dumps(pipeline))) == expected
    pipeline.set_params(verbose=True, memory="folder")
    assert digest_embedding(pipeline) == expected
    frozen = FrozenEstimator(pipeline)
    before = digest_embedding(frozen)
    pipeline[0].with_std = False
    assert digest_embedding(frozen) != before


def test_search_has_the_digest_of_its_best_estimator(pipeline, concepts):
    search = GridSearchCV(clone(pipeline), {"ccaaligner__ridge": [0.1, 1.0]}, cv=2)
    search.fit(concepts.image, concepts.text)
    before = digest_embedding(search)
    search.estimator.set_params(pca__n_components=3)
    search.cv_results_ = {}
    assert digest_embedding(search) == before
    search.best_estimator_.set_params(pca__n_components=3)
    assert digest_embedding(search) != before


def test_counters_of_a_step_do_not_change_the_digest(concepts):
    pipeline = make_pipeline(CountsCalls(), CCAAligner()).fit(concepts.image, concepts.text)
    before = digest_embedding(pipeline)
    pipeline.transform(concepts.image[:9])
    assert pipeline[0].n_calls > 1
    assert digest_embedding(pipeline) == before


def test_objects_that_cannot_be_pickled_are_compared_by_identity(concepts):
    pipeline = make_pipeline(FunctionTransformer(lambda X: 2 * X), StandardScaler(), CCAAligner())
    pipeline.fit(concepts.image, concepts.text)
    before = digest_embedding(pipeline)
    assert digest_embedding(pipeline) == before
    assert digest_exactly(pipeline) is None
    pipeline[1].fit(concepts.image[:20])  # other steps are still compared by value
    assert digest_embedding(pipeline) != before
    pipeline[1].fit(2 * concepts.image)
    pipeline[0].func = lambda X: 3 * X
    assert digest_embedding(pipeline) != before


def test_exact_digest_depends_on_values_and_dtype_of_arrays():
    X = np.arange(6.0).reshape(2, 3)
    assert digest_exactly(X) == digest_exactly(np.asfortranarray(X)) == digest_exactly(X.copy())
    others = [X.astype(np.float32), X.T.copy(), X + 1e-12, X.tolist(), X.astype(object)]
    assert len({digest_exactly(value) for value in [X, *others]}) == 6
