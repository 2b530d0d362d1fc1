"""Locations of warnings: the line of the user's code that caused them."""

import doctest
import inspect
import re
import runpy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import Callback

import sklearn_ape
from sklearn_ape import (
    APEAligner,
    CCAAligner,
    CrossModalRetriever,
    KernelAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.utils.messages import warn

SOURCES = Path(sklearn_ape.__file__).parent


def test_no_module_sets_stacklevel():
    found = [
        f"{path.relative_to(SOURCES)}: {match[0]}"
        for path in SOURCES.rglob("*.py")
        for match in re.finditer(r"stacklevel\s*=|warnings\.warn\(", path.read_text("utf-8"))
    ]
    assert found == [], "use sklearn_ape.utils.messages.warn"


def add_nan_rows(X):
    """Return features in which two rows are NaN, as for images that failed to encode."""
    X = X.copy()
    X[[0, 2]] = np.nan
    return X


@pytest.fixture
def data(concepts):
    return concepts.image, concepts.text


@pytest.fixture
def model(data):
    return CCAAligner().fit(*data)


@pytest.fixture(scope="module")
def labelled_features():
    """Return an aligner with a text encoder, image features and labels."""
    rng = np.random.default_rng(0)
    y = ["cat", "dog", "house"] * 20
    X = np.eye(3)[[0, 1, 2] * 20] + 0.1 * rng.standard_normal((60, 3))
    return CCAAligner(text_encoder=TransformersTextEncoder()).fit(X, y), X, y


def equal_images(data, *rest):
    CCAAligner().fit(np.ones_like(data[0]), data[1])


def equal_images_in_pipeline(data, *rest):
    make_pipeline(FunctionTransformer(), CCAAligner()).fit(np.ones_like(data[0]), data[1])


def nearly_equal_features(data, *rest):
    KernelAligner().fit(1e6 + data[0], data[1])


def nearly_equal_features_in_search(data, *rest):
    GridSearchCV(CCAAligner(), {"ridge": [0.1, 1.0]}, cv=2).fit(1e6 + data[0], data[1])


def nearly_equal_features_in_score(data, *rest):
    cross_val_score(make_pipeline(CCAAligner()), 1e6 + data[0], data[1], cv=2)


def nan_pairs(data, *rest):
    CCAAligner().fit(add_nan_rows(data[0]), data[1])


def nan_pairs_in_score(data, model, *rest):
    model.score(add_nan_rows(data[0]), data[1])


def unreadable_image(*rest):
    TimmImageEncoder(on_error="nan").transform(["none.png"])


def unreadable_image_in_pipeline(data, model, *rest):
    features = FrozenEstimator(CCAAligner().fit(np.eye(1280)[:9], data[1][:9]))
    make_pipeline(TimmImageEncoder(on_error="nan"), features).transform(["none.png"])


def nan_rows_in_index(data, model, *rest):
    CrossModalRetriever(model).fit(add_nan_rows(data[0]))


def nan_rows_added_to_index(data, model, *rest):
    CrossModalRetriever(model).fit(data[0]).add(add_nan_rows(data[0]))


def nan_query(data, model, *rest):
    CrossModalRetriever(model).fit(data[0]).search(add_nan_rows(data[0])[:3])


def queries_like_paths(data, model, labelled, *rest):
    CrossModalRetriever(labelled[0]).fit(labelled[1]).search(["cat.png"])


def items_that_cannot_be_saved(data, model, labelled, folder):
    y = [(row, "a") for row in range(len(data[0]))]
    CrossModalRetriever(model).fit(data[0], y).save_pretrained(folder / "model")


def single_class(data, model, labelled, *rest):
    ZeroShotClassifier(["cat"], aligner=labelled[0]).predict(labelled[1])


def single_class_in_predict_top_k(data, model, labelled, *rest):
    ZeroShotClassifier(["cat"], aligner=labelled[0]).predict_top_k(labelled[1], k=1)


def equal_embeddings_of_labels(data, model, labelled, *rest):
    ZeroShotClassifier(["Lynx", "lynx"], aligner=labelled[0]).predict_proba(labelled[1])


def labels_of_y_that_are_not_classes(data, model, labelled, *rest):
    ZeroShotClassifier(["cat", "dog"], aligner=labelled[0]).score(labelled[1], labelled[2])


def nan_rows_in_classifier(data, model, labelled, *rest):
    ZeroShotClassifier(["cat", "dog"], aligner=labelled[0]).predict(add_nan_rows(labelled[1]))


def nan_rows_in_multilabel_classifier(data, model, labelled, *rest):
    MultiLabelZeroShotClassifier(["cat", "dog"], aligner=labelled[0]).predict(
        add_nan_rows(labelled[1])
    )


def labels_in_a_column(data, model, labelled, *rest):
    X, y = labelled[1], np.array(labelled[2])[:, None]
    ZeroShotClassifier(["cat", "dog", "house"], aligner=labelled[0]).fit(X, y)


def interrupted_training(data, *rest):
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    aligner = APEAligner(init=None, width=8, max_epochs=9, early_stopping=False)
    aligner.set_params(callbacks=[Stop()]).fit(*data)


def locked_checkpoint(data, model, labelled, folder):
    aligner = APEAligner(init=None, width=8, max_epochs=1, random_state=0, checkpoint=folder)
    clone(aligner).fit(*data)
    (finished,) = folder.glob("*.trained.safetensors")
    lock = finished.name.replace(".trained.", ".training.")
    with FileLock(folder / f".{lock}.lock"):
        aligner.fit(*data)


def damaged_cache(data, model, labelled, folder):
    TransformersTextEncoder(cache=folder).transform(["a heron"])
    for file in folder.iterdir():
        file.write_bytes(b"damaged" * 1000)
    TransformersTextEncoder(cache=folder).transform(["a heron"])


CASES = [
    (equal_images, "All images have the same features"),
    (equal_images_in_pipeline, "All images have the same features"),
    (nearly_equal_features, "too small for float32"),
    (nearly_equal_features_in_search, "too small for float32"),
    (nearly_equal_features_in_score, "too small for float32"),
    (nan_pairs, "left out (2 of "),
    (nan_pairs_in_score, "left out (2 of "),
    (unreadable_image, "1 image cannot be encoded"),
    (unreadable_image_in_pipeline, "1 image cannot be encoded"),
    (nan_rows_in_index, "could not be read"),
    (nan_rows_added_to_index, "could not be read"),
    (nan_query, "could not be read"),
    (queries_like_paths, "look like paths"),
    (items_that_cannot_be_saved, "not saved"),
    (single_class, "only one class"),
    (single_class_in_predict_top_k, "only one class"),
    (equal_embeddings_of_labels, "same embedding"),
    (labels_of_y_that_are_not_classes, "count as errors"),
    (nan_rows_in_classifier, "could not be read"),
    (nan_rows_in_multilabel_classifier, "could not be read"),
    (labels_in_a_column, "when a 1d array was expected. Pass np.ravel(y)."),
    (interrupted_training, "stopped after 1 of 9 epochs"),
    (locked_checkpoint, "without checkpoints"),
    (damaged_cache, "feature cache"),
]


@pytest.mark.parametrize(("cause", "match"), CASES, ids=[cause.__name__ for cause, _ in CASES])
def test_warning_points_to_line_that_caused_it(
    cause, match, data, model, labelled_features, tmp_path
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cause(data, model, labelled_features, tmp_path)
    found = [warning for warning in caught if match in str(warning.message)]
    lines, start = inspect.getsourcelines(cause)
    for warning in found:
        assert warning.filename == __file__
        assert start < warning.lineno < start + len(lines)
    assert found


def warn_in(namespace, filename):
    source = "ZeroShotClassifier(['cat'], aligner=aligner).predict(X)\n"
    exec(compile(source, filename, "exec"), namespace)


@pytest.fixture
def namespace(labelled_features):
    aligner, X, _ = labelled_features
    return {"ZeroShotClassifier": ZeroShotClassifier, "aligner": aligner, "X": X}


@pytest.mark.parametrize("filename", ["<stdin>", "<string>", "/tmp/ipykernel_7/123.py"])
def test_warning_in_code_without_file_points_to_code(filename, namespace):
    with pytest.warns(UserWarning, match="only one class") as caught:
        warn_in(namespace, filename)
    assert caught[0].filename == filename


def test_warning_in_doctest_of_package_points_to_doctest(namespace):
    """The code of a doctest has the globals, and thus the name, of the module."""
    source = ">>> ZeroShotClassifier(['cat'], aligner=aligner).predict(X).shape\n(60,)\n"
    namespace["__name__"] = "sklearn_ape.zero_shot"
    test = doctest.DocTestParser().get_doctest(source, namespace, "example", None, 0)
    with pytest.warns(UserWarning, match="only one class") as caught:
        assert doctest.DocTestRunner().run(test).failed == 0
    assert caught[0].filename == "<doctest example[0]>"


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_warning_in_threads_points_to_the_caller(labelled_features):
    aligner, X, _ = labelled_features
    classifier = ZeroShotClassifier(["cat"], aligner=aligner)
    with pytest.warns(UserWarning, match="only one class") as caught:
        in_thread(lambda: classifier.predict(X))
    assert caught[0].filename == __file__
    with (
        pytest.warns(UserWarning, match="only one class") as caught,
        ThreadPoolExecutor(1) as pool,  # no frame of the thread is in this file
    ):
        pool.submit(classifier.predict, X).result()
    assert not caught[0].filename.startswith(str(SOURCES))


def test_warning_is_shown_once_per_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("again")
        warn("again", RuntimeWarning)
    assert [warning.category for warning in caught] == [UserWarning, RuntimeWarning]


def test_warning_shows_source_line(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import numpy as np\n"
        "from sklearn_ape import CCAAligner\n"
        "y = np.random.default_rng(0).random((9, 3))\n"
        "CCAAligner().fit(np.ones((9, 3)), y)  # mine\n"
    )
    with pytest.warns(UserWarning, match="All images have the same features") as caught:
        runpy.run_path(str(script), run_name="__main__")
    shown = warnings.formatwarning(
        caught[0].message, caught[0].category, caught[0].filename, caught[0].lineno
    )
    assert shown.startswith(f"{script}:4: UserWarning: All images have the same features")
    assert shown.endswith("CCAAligner().fit(np.ones((9, 3)), y)  # mine\n")
