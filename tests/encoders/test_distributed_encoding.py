"""Encoding and searches on a dask cluster, also when a worker dies."""

import os
import signal
import threading
import time

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_ape import CCAAligner
from sklearn_ape.encoders import EncodingError, TransformersTextEncoder

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here"),
    pytest.mark.filterwarnings("ignore"),
]

TEXTS = [
    f"{number} {animal}s and {number % 7} birds"
    for number in range(24)
    for animal in ("cat", "dog")
]


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2,
            processes=True,
            threads_per_worker=1,
            dashboard_address=None,
            worker_dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def encoder():
    return TransformersTextEncoder(cache=None, engine="torch")


@pytest.fixture(scope="module")
def truth(encoder):
    return encoder.transform(TEXTS)


def kill_a_worker(client, when):
    """Start and return a thread that kills one of two workers once `when` is true."""
    pids = client.run(os.getpid)

    def kill():
        deadline = time.monotonic() + 60
        while not when() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(next(iter(pids.values())), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_cluster_writes_identical_file(client, encoder, truth, tmp_path):
    """The file equals that of one process, and a second run only checks it."""
    path = tmp_path / "texts.npy"
    with joblib.parallel_config("dask"):
        features = encoder.encode_to(path, TEXTS, chunk_size=16)
        np.testing.assert_allclose(features, truth, atol=1e-6)
        encoder.encode_to(path, TEXTS, chunk_size=16)
    in_one = encoder.encode_to(tmp_path / "one.npy", TEXTS, chunk_size=16)
    np.testing.assert_allclose(features, in_one, atol=1e-6)


def test_worker_errors_name_rows(client, encoder, tmp_path):
    """Errors have rows of X, as in one process."""
    texts = [*TEXTS[:20], "", *TEXTS[20:30]]
    with joblib.parallel_config("dask"):
        with pytest.raises(EncodingError, match=r"row 20: .*is an empty text"):
            encoder.encode_to(tmp_path / "a.npy", texts, chunk_size=4)
        lenient = clone(encoder).set_params(on_error="nan")
        features = lenient.encode_to(tmp_path / "b.npy", texts, chunk_size=4)
    assert list(lenient.errors_) == [20]
    assert np.flatnonzero(np.isnan(features[:, 0])).tolist() == [20]


def test_killed_worker_loses_no_rows(client, encoder, truth, tmp_path):
    """Other workers encode the chunks of a killed worker."""
    path = tmp_path / "texts.npy"
    journal = tmp_path / "texts.npy.journal"
    killer = kill_a_worker(client, lambda: journal.exists() and journal.stat().st_size > 600)
    with joblib.parallel_config("dask"):
        features = encoder.encode_to(path, TEXTS, chunk_size=2)
    assert not killer.is_alive(), "no worker was killed"
    np.testing.assert_allclose(features, truth, atol=1e-6)
    client.wait_for_workers(2, timeout=60)


def search(encoder):
    model = make_pipeline(encoder, CCAAligner())
    return GridSearchCV(model, {"ccaaligner__ridge": [0.01, 0.1, 1.0]}, cv=2)


@pytest.mark.parametrize("is_killed", [False, True])
def test_grid_search_on_cluster_equals_local(client, encoder, truth, tmp_path, is_killed):
    """Scores equal those of one process, also when a worker dies."""
    y = truth @ np.random.default_rng(0).standard_normal((384, 16)).astype(np.float32)
    expected = search(clone(encoder).set_params(cache="memory")).fit(TEXTS, y).cv_results_
    cached = clone(encoder).set_params(cache=tmp_path)  # all workers share the cache
    # An array on one worker is lost with it, so `scatter` sends it to all workers.
    options = {}
    if is_killed:
        killer = kill_a_worker(client, (tmp_path / "features.sqlite").exists)
        options = {"scatter": [y]}
    with joblib.parallel_config("dask", **options):
        results = search(cached).fit(TEXTS, y).cv_results_
    if is_killed:
        assert not killer.is_alive(), "no worker was killed"
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(results[name], expected[name], atol=1e-6)
    assert np.ptp(expected["mean_test_score"]) > 0
