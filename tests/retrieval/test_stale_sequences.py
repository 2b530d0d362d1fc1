"""Random changes of an aligner: results equal those of a new fit, or an error is raised."""

import copy
import pickle
from collections import Counter
from typing import ClassVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from sklearn_ape import (
    ASIFAligner,
    CCAAligner,
    CrossModalRetriever,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)

rng = np.random.default_rng(0)
WORDS = ["ant", "bee", "cow", "doe", "elk", "fox", "gnu", "hen"]
Y = np.array(WORDS)[np.arange(64) % 8]
X = (np.eye(8)[np.arange(64) % 8] * 3 + rng.standard_normal((64, 8))).astype(np.float32)
SUBSETS = st.sampled_from([slice(0, 64), slice(0, 40), slice(16, 64)])
BATCHES = st.sampled_from([slice(0, 8), slice(8, 24), slice(30, 60)])
STALE = ("since this", "after fit")


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
        found = (self.pipeline, self.retriever, self.single, self.multi)
        found = copy.deepcopy(found) if is_deep else pickle.loads(pickle.dumps(found))
        self.pipeline, self.retriever, self.single, self.multi = found

    @rule(rows=SUBSETS)
    def replace_the_aligner(self, rows):
        other = new_pipeline(CCAAligner()).fit(X[rows], Y[rows])
        self.pipeline = other
        self.retriever.set_params(aligner=other)
        self.single.set_params(aligner=FrozenEstimator(other))
        self.multi.set_params(aligner=FrozenEstimator(other))

    @invariant()
    def answers_are_those_of_a_new_fit(self):
        if not hasattr(self, "rows"):
            return
        self.compare("search by text", self.retriever, lambda r: r.search(WORDS[:4], k=3))
        self.compare("search", self.retriever, lambda r: r.search(X[:4], k=3))
        self.compare("predict", self.single, lambda c: (c.decision_function(X[:9]),))
        self.compare("labels", self.multi, lambda c: (c.decision_function(X[:9]),))

    def compare(self, name, estimator, ask):
        try:
            found = ask(estimator)
        except ValueError as error:
            self.note_stale(name, error)
            return
        self.outcomes[f"{name} answers"] += 1
        fresh = type(estimator)(**estimator.get_params(deep=False))
        if isinstance(estimator, CrossModalRetriever):
            fresh.fit(X[self.rows])
        else:
            fresh.fit(X, Y if estimator is self.single else [[label] for label in Y])
        for one, other in zip(found[:1], ask(fresh)[:1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    def note_stale(self, name, error):
        assert any(part in str(error) for part in STALE), error
        self.outcomes[f"{name} is stale"] += 1


Sequences.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestSequences = Sequences.TestCase
