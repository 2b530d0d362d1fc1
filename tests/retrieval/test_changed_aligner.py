"""Retrievers whose aligner or parameters changed after `fit`."""

import copy
import pickle
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CrossModalRetriever,
    FewShotClassifier,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
    load_pretrained,
)

STALE = "aligner was changed since this CrossModalRetriever was fitted"


@pytest.fixture
def pipeline(concepts):
    pipeline = make_pipeline(StandardScaler(), PCA(8, random_state=0), CCAAligner())
    return pipeline.fit(concepts.image, concepts.text)


@pytest.fixture
def retriever(pipeline, concepts):
    return CrossModalRetriever(pipeline).fit(concepts.image)


def assert_raises(retriever, image, text, folder, match=STALE):
    for call in (
        lambda: retriever.search(text, modality="text"),
        lambda: retriever.search(image),
        lambda: retriever.kneighbors(image),
        lambda: retriever.add(image),
        lambda: retriever.save_pretrained(folder),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def changes():
    def refit_a_step(pipeline, data):
        pipeline[0].fit(data.image[:20])

    def refit_the_aligner(pipeline, data):
        pipeline[-1].fit(pipeline[:-1].transform(data.image[:90]), data.text[:90])

    def refit_all(pipeline, data):
        pipeline.fit(data.image[:90], data.text[:90])

    def set_an_attribute(pipeline, data):
        pipeline[0].with_mean = False

    def set_a_parameter(pipeline, data):
        pipeline.set_params(standardscaler__with_std=False)

    def replace_a_step(pipeline, data):
        pipeline.set_params(standardscaler="passthrough")

    return [
        refit_a_step,
        refit_the_aligner,
        refit_all,
        set_an_attribute,
        set_a_parameter,
        replace_a_step,
    ]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_changed_aligner_raises_until_the_next_fit(
    change, retriever, pipeline, concepts, tmp_path
):
    change(pipeline, concepts)
    image, text = concepts.image[:5], concepts.text[:5]
    assert_raises(retriever, image, text, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    retriever.fit(concepts.image)
    fresh = CrossModalRetriever(pipeline).fit(concepts.image)
    np.testing.assert_array_equal(retriever.search(image).indices, fresh.search(image).indices)


@pytest.mark.parametrize("cls", [ZeroShotClassifier, FewShotClassifier])
def test_classifier_is_not_saved_with_another_aligner(cls, concepts, tmp_path):
    """The loaded model predicted with the new aligner and what was learned with the old one."""
    aligner = CCAAligner(text_encoder=HashingVectorizer(n_features=8, analyzer="char"))
    captions = [f"caption {number % 7}" for number in range(60)]
    aligner.fit(concepts.image[:60], captions)
    classifier = cls(["a", "b"], aligner=aligner).fit(concepts.image[:4], ["a", "b", "a", "b"])
    aligner.fit(concepts.image[60:120], captions)
    with pytest.raises(ValueError, match="aligner was changed since"):
        classifier.save_pretrained(tmp_path / "model")


def test_restoring_a_parameter_makes_the_retriever_current(retriever, concepts):
    expected = retriever.search(concepts.image[:3])
    retriever.set_params(aligner__standardscaler__with_mean=False)
    with pytest.raises(ValueError, match="restore the parameter"):
        retriever.search(concepts.image[:3])
    retriever.set_params(aligner__standardscaler__with_mean=True)
    np.testing.assert_array_equal(retriever.search(concepts.image[:3]).scores, expected.scores)


def test_options_that_do_not_change_embeddings_may_be_set_after_fit(retriever, concepts):
    retriever.set_params(aligner__verbose=True, aligner__memory="folder")
    retriever.search(concepts.image[:3])


@pytest.fixture(scope="module")
def text_aligner(features, captioned_images, text_encoder):
    """Return an aligner of features of images and of captions."""
    return CCAAligner(text_encoder=text_encoder).fit(features.image, captioned_images.captions)


@pytest.mark.parametrize(
    "parameters", [{"crop": "pad"}, {"views": 2}, {"pooling": "mean"}, {"dtype": "bfloat16"}]
)
def test_changed_image_encoder_raises(parameters, image_encoder, text_aligner, captioned_images):
    pipeline = make_pipeline(copy.copy(image_encoder), text_aligner)
    images = captioned_images.images[:4]
    retriever = CrossModalRetriever(pipeline).fit(images)
    pipeline[0].set_params(n_jobs=1, batch_size=2, on_error="nan", verbose=0, engine="torch")
    assert retriever.search(images[:1], k=1, modality="image").indices == [[0]]
    pipeline[0].set_params(**parameters)
    with pytest.raises(ValueError, match=STALE):
        retriever.search(images[:1], k=1, modality="image")
    with pytest.raises(ValueError, match=STALE):
        retriever.search(["a cat"])


def test_changed_encoders_of_a_fitted_aligner_raise(real_aligner, captioned_images, tmp_path):
    aligner = copy.deepcopy(real_aligner)
    images = captioned_images.images[:4]
    retriever = CrossModalRetriever(aligner).fit(images)
    # The parameter is the encoder of the next fit of the aligner, which uses a clone.
    aligner.image_encoder.crop = "pad"
    assert retriever.search(images[:1], k=1, modality="image").indices == [[0]]
    aligner.text_encoder_.max_length = 3
    assert_raises(retriever, images, ["a cat"], tmp_path / "model")


@pytest.mark.parametrize(
    "make_copy",
    [copy.copy, copy.deepcopy, lambda retriever: pickle.loads(pickle.dumps(retriever))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_current_if_the_retriever_is(make_copy, retriever, concepts):
    copied = make_copy(retriever)
    copied.search(concepts.image[:1])
    retriever.aligner[0].with_mean = False
    stale = make_copy(retriever)
    with pytest.raises(ValueError, match=STALE):
        stale.search(concepts.image[:1])
    retriever.aligner[0].with_mean = True
    copied.aligner[0].with_std = False
    with pytest.raises(ValueError, match=STALE):
        copied.search(concepts.image[:1])


def test_loaded_retriever_detects_changes(concepts, tmp_path):
    aligner = CCAAligner().fit(concepts.image, concepts.text)
    CrossModalRetriever(aligner).fit(concepts.image).save_pretrained(tmp_path / "model")
    loaded = load_pretrained(tmp_path / "model")
    loaded.search(concepts.image[:1])
    loaded.aligner_.fit(concepts.image[:90], concepts.text[:90])
    with pytest.raises(ValueError, match=STALE):
        loaded.search(concepts.image[:1])


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"index": "faiss"}, "index='faiss' was set after fit"),
        ({"dtype": "float16"}, "dtype='float16' was set after fit"),
        ({"aligner": None}, "aligner=None was set after fit"),
        ({"aligner": CCAAligner()}, r"aligner=CCAAligner\(\.\.\.\) was set after fit"),
    ],
)
def test_fit_parameter_set_after_fit_raises(parameters, match, retriever, concepts, tmp_path):
    before = retriever.get_params(deep=False)
    retriever.set_params(**parameters)
    image, text = concepts.image[:5], concepts.text[:5]
    assert_raises(retriever, image, text, tmp_path / "model", match)
    retriever.set_params(**{name: before[name] for name in parameters})
    retriever.search(image)


def test_standardize_may_be_set_after_fit(retriever, pipeline, concepts):
    retriever.set_params(standardize=True)
    result = retriever.search(concepts.text[:3], modality="text")
    fresh = CrossModalRetriever(pipeline, standardize=True).fit(concepts.image)
    expected = fresh.search(concepts.text[:3], modality="text")
    np.testing.assert_array_equal(result.scores, expected.scores)


def test_parameters_of_training_set_after_fit_do_not_matter(concepts):
    aligner = APEAligner(init=None, width=8, max_epochs=1, early_stopping=False, random_state=0)
    retriever = CrossModalRetriever(aligner.fit(concepts.image, concepts.text))
    retriever.fit(concepts.image)
    retriever.set_params(aligner__max_epochs=50, aligner__width=99)
    retriever.search(concepts.image[:1])


rng = np.random.default_rng(0)
WORDS = ["ant", "bee", "cow", "doe", "elk", "fox", "gnu", "hen"]
Y = np.array(WORDS)[np.arange(64) % 8]
X = (np.eye(8)[np.arange(64) % 8] * 3 + rng.standard_normal((64, 8))).astype(np.float32)
SUBSETS = st.sampled_from([slice(0, 64), slice(0, 40), slice(16, 64)])
BATCHES = st.sampled_from([slice(0, 8), slice(8, 24), slice(30, 60)])
STALE_MESSAGE = ("since this", "after fit")


def twice(X):
    return 2 * X


def plus_one(X):
    return X + 1


def new_pipeline(aligner):
    words = HashingVectorizer(n_features=32, analyzer="char", ngram_range=(1, 2))
    aligner = aligner.set_params(text_encoder=words)
    pipeline = make_pipeline(FunctionTransformer(twice), StandardScaler(), Normalizer(), aligner)
    return pipeline.fit(X, Y)


class Sequences(RuleBasedStateMachine):
    """A retriever and two classifiers with the same Pipeline, to which random changes are made."""

    outcomes: ClassVar = Counter()

    @initialize(aligner=st.sampled_from([CCAAligner(), ASIFAligner(k=5)]), rows=BATCHES)
    def begin(self, aligner, rows):
        self.pipeline = new_pipeline(copy.deepcopy(aligner))
        self.retriever = CrossModalRetriever(self.pipeline)
        frozen = FrozenEstimator(self.pipeline)
        self.single = ZeroShotClassifier(WORDS, aligner=frozen)
        self.multi = MultiLabelZeroShotClassifier(WORDS, aligner=frozen)
        self.fit_retriever(rows)
        self.fit_classifiers()

    @rule(rows=BATCHES)
    def fit_retriever(self, rows):
        self.retriever.fit(X[rows])
        self.rows = list(range(64))[rows]

    @rule()
    def fit_classifiers(self):
        self.single.fit(X, Y)
        self.multi.fit(X, [[label] for label in Y])

    @rule(rows=BATCHES)
    def add(self, rows):
        try:
            self.retriever.add(X[rows])
        except ValueError as error:
            self.note_stale("add", error)
        else:
            self.rows += list(range(64))[rows]

    @rule(
        change=st.sampled_from(
            [
                {"standardscaler__with_mean": False},
                {"standardscaler__with_mean": True},
                {"standardscaler__with_std": False},
                {"standardscaler__with_std": True},
                {"functiontransformer__func": plus_one},
                {"functiontransformer__func": twice},
                {"normalizer__norm": "l1"},
                {"normalizer__norm": "l2"},
                {"verbose": False, "memory": None},
            ]
        )
    )
    def set_a_parameter_of_a_step(self, change):
        self.pipeline.set_params(**change)

    @rule(size=st.sampled_from([2, 32]))
    def set_an_attribute_of_the_text_encoder(self, size):
        self.pipeline[-1].text_encoder_.ngram_range = (1, size)

    @rule(rows=SUBSETS)
    def refit_a_step(self, rows):
        self.pipeline[1].fit(twice(X[rows]))

    @rule(rows=SUBSETS)
    def refit_the_pipeline(self, rows):
        self.pipeline.fit(X[rows], Y[rows])

    @rule(
        change=st.sampled_from(
            [
                {"dtype": "float16"},
                {"dtype": "float32"},
                {"standardize": True},
                {"standardize": False},
                {"standardize": X[:20]},
            ]
        )
    )
    def set_a_parameter_of_the_retriever(self, change):
        self.retriever.set_params(**change)

    @rule(is_deep=st.booleans())
    def copy_all(self, is_deep):
        objects = (self.pipeline, self.retriever, self.single, self.multi)
        objects = copy.deepcopy(objects) if is_deep else pickle.loads(pickle.dumps(objects))
        self.pipeline, self.retriever, self.single, self.multi = objects

    @rule(rows=SUBSETS)
    def replace_the_aligner(self, rows):
        other = new_pipeline(CCAAligner()).fit(X[rows], Y[rows])
        self.pipeline = other
        self.retriever.set_params(aligner=other)
        self.single.set_params(aligner=FrozenEstimator(other))
        self.multi.set_params(aligner=FrozenEstimator(other))

    @invariant()
    def results_equal_those_of_a_new_fit(self):
        if not hasattr(self, "rows"):
            return
        self.compare("search by text", self.retriever, lambda r: r.search(WORDS[:4], k=3))
        self.compare("search", self.retriever, lambda r: r.search(X[:4], k=3))
        self.compare("predict", self.single, lambda c: (c.decision_function(X[:9]),))
        self.compare("labels", self.multi, lambda c: (c.decision_function(X[:9]),))

    def compare(self, name, estimator, call):
        try:
            result = call(estimator)
        except ValueError as error:
            self.note_stale(name, error)
            return
        self.outcomes[f"{name} answers"] += 1
        fresh = type(estimator)(**estimator.get_params(deep=False))
        if isinstance(estimator, CrossModalRetriever):
            fresh.fit(X[self.rows])
        else:
            fresh.fit(X, Y if estimator is self.single else [[label] for label in Y])
        for actual, expected in zip(result[:1], call(fresh)[:1], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

    def note_stale(self, name, error):
        assert any(part in str(error) for part in STALE_MESSAGE), error
        self.outcomes[f"{name} is stale"] += 1


Sequences.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestSequences = pytest.mark.exhaustive(Sequences.TestCase)
