"""Shared fixtures: real images and encoders, and generated features.

Fixtures import the package, because pytest-xdist reads this file also in the process that only
distributes the tests, before it starts the others.
"""

import gc
import multiprocessing
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# Tests that import OpenVINO themselves must not send usage data either.
sys.modules["openvino_telemetry"] = None
# A fork server that has imported the package starts each process seconds faster.
if "forkserver" in multiprocessing.get_all_start_methods():
    multiprocessing.set_forkserver_preload(["sklearn_ape.aligners", "sklearn_ape.encoders"])
ROOT = Path(__file__).parents[1]
# Files and folders whose tests run only in `make test-all`, not in `make test`.
EXHAUSTIVE = (
    "docs",
    "tests/aligners/test_distributed_training.py",
    "tests/app/test_browser.py",
    "tests/cli/test_docs.py",
    "tests/cli/test_processes.py",
    "tests/encoders/test_distributed_encoding.py",
    "tests/robustness/faults",
    "tests/robustness/test_checkpoint_kills.py",
)

# Names of each category of `captioned_images`.
LABELS = {
    "travel": ["a vehicle", "a building", "a landscape"],
    "animal": ["an animal", "a bird", "a plant"],
    "food": ["food", "a fruit", "a meal"],
}


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect tests without garbage collection, which takes seconds with so many modules.

    Their objects stay in memory, and later garbage collections ignore them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests in these paths, and all but every n-th sampled case, as exhaustive."""
    n_cases = Counter()
    for item in items:
        path = item.path.relative_to(ROOT).as_posix()
        sampled = item.get_closest_marker("sampled")
        is_exhaustive = f"{path}/".startswith(tuple(f"{name}/" for name in EXHAUSTIVE))
        if sampled is not None:
            test = item.nodeid.partition("[")[0]
            is_exhaustive |= n_cases[test] % sampled.args[0] != 0
            n_cases[test] += 1
        if is_exhaustive:
            item.add_marker("exhaustive")


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory):
    """Return the folder of a cache that the processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder / "shared" / "features"


@pytest.fixture
def shared_exports(feature_cache, monkeypatch):
    """Keep networks that encoders without a cache export where all tests of the run use them."""
    monkeypatch.setenv("SKLEARN_APE_DATA", str(feature_cache))


@pytest.fixture(scope="session")
def image_encoder(feature_cache):
    from sklearn_ape.encoders import TimmImageEncoder

    return TimmImageEncoder("efficientnet_lite0", cache=feature_cache)


@pytest.fixture(scope="session")
def text_encoder(feature_cache):
    from sklearn_ape.encoders import TransformersTextEncoder

    return TransformersTextEncoder("all-MiniLM-L6-v2", cache=feature_cache)


@pytest.fixture(scope="session")
def captioned_images():
    """Return 300 images of animals, food and vehicles with captions and categories."""
    from sklearn_ape.datasets import load_openmoji

    data = load_openmoji()
    wanted = {"Animals & Nature": "animal", "Food & Drink": "food", "Travel & Places": "travel"}
    rows = [i for i, category in enumerate(data.categories) if category in wanted]
    rows = np.random.default_rng(0).permutation(rows)[:300]
    return SimpleNamespace(
        images=[data.images[i] for i in rows],
        captions=[data.captions[i] for i in rows],
        categories=np.array([wanted[data.categories[i]] for i in rows]),
    )


@pytest.fixture(scope="session")
def features(captioned_images, image_encoder, text_encoder):
    """Return features of the captioned images and their captions."""
    return SimpleNamespace(
        image=image_encoder.transform(captioned_images.images),
        text=text_encoder.transform(captioned_images.captions),
    )


@pytest.fixture
def concepts():
    """Return features of both sides that are linear functions of common concepts."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((300, 8))
    return SimpleNamespace(
        image=(concepts @ rng.standard_normal((8, 32))).astype(np.float32),
        text=(concepts @ rng.standard_normal((8, 16))).astype(np.float32),
    )


@pytest.fixture
def numbered():
    """Return features that are sums of one vector per label, and labels that are numbers."""
    from sklearn.feature_extraction.text import HashingVectorizer

    from sklearn_ape import CCAAligner

    rng = np.random.default_rng(0)
    labels = {10: "a cat", 20: "a dog", 0: "a house", 1: "a tree"}
    Y = (rng.random((160, 4)) < [0.2, 0.5, 0.35, 0.6]).astype(int)
    X = Y @ rng.standard_normal((4, 12)) * 2 + 0.2 * rng.standard_normal((160, 12))
    X = X.astype(np.float32)
    texts = HashingVectorizer(n_features=32, analyzer="char")
    aligner = CCAAligner(text_encoder=texts)
    return SimpleNamespace(X=X, Y=Y, labels=labels, aligner=aligner)
