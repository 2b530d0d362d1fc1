"""Callbacks of scikit-learn 1.9 and later in aligners, classifiers, Pipelines and searches."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import APEAligner, CCAAligner, LiTAligner, ZeroShotClassifier
from sklearn_ape.encoders import TransformersTextEncoder
from tests.encoders.tiny_networks import TEXTS, text_folder

callback = pytest.importorskip("sklearn.callback")

N_EPOCHS = 3


class RecordPaths:
    """Callback that records the path of each finished task in nested estimators."""

    max_propagation_depth = None

    def __init__(self):
        self.seen = []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        names = []
        while context is not None:
            names.append(f"{context.estimator_name}:{context.task_name}")
            context = context.parent
        self.seen.append(" > ".join(reversed(names)))

    def epochs(self):
        return [path for path in self.seen if path.endswith(":epoch")]


class StopAt:
    """Callback that stops training after `n_epochs` epochs, or interrupts it like Ctrl-C."""

    def __init__(self, n_epochs, interrupts=False):
        self.n_epochs, self.interrupts = n_epochs, interrupts

    def setup(self, estimator, context):
        self.n_seen = 0

    def teardown(self, estimator, context):
        self.torn_down = True

    def on_fit_task_begin(self, estimator, context):
        if self.interrupts and context.task_name == "epoch" and self.n_seen == self.n_epochs:
            raise KeyboardInterrupt

    def on_fit_task_end(self, estimator, context):
        self.n_seen += context.task_name == "epoch"
        return context.task_name == "epoch" and self.n_seen >= self.n_epochs


def recall(estimator, X, y):
    return {"recall": estimator.score(X, y)}


def make_aligner(**parameters):
    defaults = {"width": 32, "max_epochs": N_EPOCHS, "batch_size": 64, "random_state": 0}
    return APEAligner(**(defaults | parameters))


def make_classifier():
    """Return a classifier of features with a Pipeline that ends in an APEAligner."""
    texts = HashingVectorizer(n_features=32, analyzer="char")
    return ZeroShotClassifier(
        aligner=make_pipeline(
            StandardScaler(), make_aligner(text_encoder=texts, early_stopping=False)
        )
    )


@pytest.fixture
def names():
    return np.array(["cat", "dog"])[np.random.default_rng(0).integers(0, 2, 300)]


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    folder = text_folder(tmp_path_factory.mktemp("text"))
    return LiTAligner(
        text_encoder=TransformersTextEncoder(folder), max_epochs=N_EPOCHS, random_state=0
    )


class TestEpochs:
    @pytest.mark.exhaustive
    def test_epochs_within_search_over_classifier_are_reported(self, concepts, names):
        seen = RecordPaths()
        search = GridSearchCV(make_classifier(), {"aligner__apealigner__depth": [1, 2]}, cv=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # scikit-learn warns of estimators without callbacks
            search.set_callbacks(seen).fit(concepts.image, names)
        assert len(seen.epochs()) == (2 * 2 + 1) * N_EPOCHS
        inside = "ZeroShotClassifier:fit > Pipeline:fit > APEAligner:fit > APEAligner:epoch"
        assert seen.epochs()[0] == f"GridSearchCV:fit > GridSearchCV:search > {inside}"
        assert seen.epochs()[-1] == f"GridSearchCV:fit > {inside}"
        pickle.loads(pickle.dumps(search))

    def test_epochs_of_lit_are_reported(self, concepts, lit):
        seen = RecordPaths()
        captions = [TEXTS[row % len(TEXTS)] for row in range(60)]
        fitted = clone(lit).set_callbacks(seen).fit(concepts.image[:60], captions)
        assert len(seen.epochs()) == fitted.n_epochs_ == N_EPOCHS
        pickle.loads(pickle.dumps(fitted))

    def test_epochs_within_pipeline_with_encoder_are_reported(
        self, captioned_images, image_encoder
    ):
        """Encoders accept callbacks, so scikit-learn does not warn about them."""
        seen = RecordPaths()
        pipeline = make_pipeline(image_encoder, CCAAligner()).set_callbacks(seen)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipeline.fit(captioned_images.images[:12], np.random.default_rng(0).random((12, 3)))
        assert "Pipeline:fit > TimmImageEncoder:fit" in seen.seen
        assert "Pipeline:fit > CCAAligner:fit" in seen.seen

    def test_progress_bars_show_epochs(self, concepts, names, capsys):
        search = GridSearchCV(make_classifier(), {"aligner__apealigner__depth": [1, 2]}, cv=2)
        bars = callback.ProgressBar(max_propagation_depth=None)
        search.set_callbacks(bars).fit(concepts.image, names)
        out = capsys.readouterr().out
        assert "GridSearchCV" in out
        assert "APEAligner" in out
        pickle.loads(pickle.dumps(search))


class TestScores:
    @pytest.mark.parametrize("init", [None, "kernel", "auto"])
    def test_scores_of_epoch_use_heads_at_its_end(self, concepts, init):
        """The last score equals that of the fitted aligner; scoring does not change heads."""
        monitor = callback.ScoringMonitor(scoring=recall)
        image, text = concepts.image, concepts.text
        watched = (
            make_aligner(init=init, early_stopping=False).set_callbacks(monitor).fit(image, text)
        )
        rows = monitor.get_logs().data
        assert [row["task_name"] for row in rows] == ["fit"] + ["epoch"] * N_EPOCHS
        assert rows[-1]["recall"] == rows[0]["recall"] == watched.score(image, text)
        plain = make_aligner(init=init, early_stopping=False).fit(image, text)
        assert watched.fingerprint_ == plain.fingerprint_
        if init is None:
            assert len({row["recall"] for row in rows}) > 1

    def test_scores_of_lit_are_reported(self, concepts, lit):
        monitor = callback.ScoringMonitor(scoring=recall)
        captions = [TEXTS[row % len(TEXTS)] for row in range(60)]
        watched = clone(lit).set_callbacks(monitor).fit(concepts.image[:60], captions)
        rows = monitor.get_logs().data
        assert len(rows) == 1 + N_EPOCHS
        assert rows[0]["recall"] == watched.score(concepts.image[:60], captions)


class TestStopping:
    def test_callback_stops_training(self, concepts):
        with pytest.warns(ConvergenceWarning, match="stopped after 2 of 9 epochs"):
            fitted = (
                make_aligner(max_epochs=9)
                .set_callbacks(StopAt(2))
                .fit(concepts.image, concepts.text)
            )
        assert fitted.n_epochs_ == 2

    def test_ctrl_c_keeps_best_epoch_and_ends_all_bars(self, concepts, names):
        stop = StopAt(2, interrupts=True)
        stop.on_fit_task_end = lambda estimator, context: setattr(
            stop, "n_seen", stop.n_seen + (context.task_name == "epoch")
        )
        aligner = make_aligner(max_epochs=9).set_callbacks(stop, callback.ProgressBar())
        with pytest.warns(UserWarning, match="stopped after 2 of 9 epochs"):
            aligner.fit(concepts.image, concepts.text)
        assert stop.torn_down
        assert aligner.set_callbacks().transform(concepts.image).shape[0] == 300
        assert not hasattr(aligner, "_callback_fit_ctx")

    def test_ctrl_c_in_first_epoch_of_inner_aligner_is_raised(self, concepts, names):
        """No fitted state and no callback context remain."""
        classifier = make_classifier()
        classifier.aligner[-1].set_callbacks(StopAt(0, interrupts=True))
        classifier.set_callbacks(callback.ProgressBar(max_propagation_depth=None))
        with pytest.raises(KeyboardInterrupt):
            classifier.fit(concepts.image, names)
        assert not hasattr(classifier, "_callback_fit_ctx")
        pickle.loads(pickle.dumps(classifier.set_callbacks(RecordPaths())))
        assert not hasattr(classifier, "aligner_")


@pytest.mark.exhaustive
def test_fit_without_callbacks_works_in_older_scikit_learn():
    """Without support in scikit-learn, the replacement does nothing, and fits are the same."""
    code = (
        "import sys, numpy as np\n"
        "import sklearn.pipeline, sklearn.model_selection\n"
        "sys.modules['sklearn.callback'] = None\n"
        "from sklearn_ape import APEAligner, CCAAligner, ZeroShotClassifier\n"
        "from sklearn.feature_extraction.text import HashingVectorizer\n"
        "rng = np.random.default_rng(0); X, Y = rng.standard_normal((2, 80, 9))\n"
        "aligner = APEAligner(width=32, max_epochs=2, random_state=0).fit(X, Y)\n"
        "assert not hasattr(aligner, 'set_callbacks')\n"
        "texts = HashingVectorizer(n_features=16, analyzer='char')\n"
        "names = ['cat', 'dog'] * 40\n"
        "ZeroShotClassifier(aligner=CCAAligner(text_encoder=texts)).fit(X, names).predict(X)\n"
        "print(aligner.fingerprint_)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    image, text = np.random.default_rng(0).standard_normal((2, 80, 9))
    here = APEAligner(width=32, max_epochs=2, random_state=0).fit(image, text)
    assert done.stdout.strip() == here.fingerprint_
