"""Common tests of aligners that take images and captions instead of features."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CLIPAligner,
    KernelAligner,
    LiTAligner,
    ZeroShotClassifier,
    aligners,
)
from tests.encoders import tiny_networks as tiny

IMAGES = list(np.random.default_rng(0).integers(0, 256, size=(12, 40, 50, 3), dtype=np.uint8))
CAPTIONS = ["a cat", "the dog", "cat on a mat", "mat", "dog runs", "the cat runs"] * 2
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
# Texts have nearly equal features in an untrained network. A kernel amplifies the differences, and
# with them rounding errors, which depend on the batch.
MAGNIFIED = {"atol": 1e-2}
TRAINED = {"max_epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def unfitted(tmp_path_factory):
    encoders = tiny.encoders(tmp_path_factory.mktemp("encoders"))
    both = {
        "image_encoder": encoders["TimmImageEncoder"],
        "text_encoder": encoders["TransformersTextEncoder"],
    }
    return {
        "APEAligner": APEAligner(**both, width=16, **TRAINED),
        "ASIFAligner": ASIFAligner(**both, k=5),
        "CCAAligner": CCAAligner(**both),
        "CLIPAligner": CLIPAligner(encoders["OpenCLIPImageEncoder"].model_name, cache=None),
        "KernelAligner": KernelAligner(**both),
        "LiTAligner": LiTAligner(**both, **TRAINED),
    }


@pytest.fixture(scope="module")
def fitted(unfitted):
    return {name: clone(one).fit(IMAGES, CAPTIONS) for name, one in unfitted.items()}


@pytest.fixture(params=[name for name in aligners.__all__ if name.endswith("Aligner")])
def name(request):
    return request.param


@pytest.fixture
def aligner(name, fitted):
    return fitted[name]


@pytest.mark.sampled(2)
def test_fit_is_idempotent_and_keeps_parameters(name, unfitted, aligner):
    again = clone(unfitted[name])
    before = repr(again.get_params())
    for _ in range(2):
        assert again.fit(IMAGES, CAPTIONS) is again
        np.testing.assert_allclose(again.transform(IMAGES), aligner.transform(IMAGES), **CLOSE)
    assert repr(again.get_params()) == before


def test_embeddings_do_not_depend_on_batch_or_order(name, aligner):
    whole = aligner.transform(IMAGES)
    np.testing.assert_allclose(aligner.transform(IMAGES[::-1])[::-1], whole, **CLOSE)
    alone = np.concatenate([aligner.transform([image]) for image in IMAGES[:4]])
    np.testing.assert_allclose(alone, whole[:4], **CLOSE)
    texts = aligner.transform_text(CAPTIONS)
    close = MAGNIFIED if name in ("APEAligner", "KernelAligner") else CLOSE
    np.testing.assert_allclose(aligner.transform_text(CAPTIONS[::-1])[::-1], texts, **close)
    np.testing.assert_allclose(aligner.transform_text(CAPTIONS[2:3]), texts[2:3], **close)


def test_pickle_keeps_embeddings_and_column_names(aligner):
    back = pickle.loads(pickle.dumps(aligner))
    expected = aligner.transform(IMAGES)
    np.testing.assert_allclose(back.transform(IMAGES), expected, **CLOSE)
    frame = back.set_output(transform="pandas").transform(IMAGES)
    assert frame.columns.tolist() == aligner.get_feature_names_out().tolist()
    np.testing.assert_allclose(frame.to_numpy(), expected, **CLOSE)


@pytest.mark.sampled(3)
def test_containers_of_images_and_captions_give_equal_fits(name, unfitted, aligner):
    expected = aligner.similarity(IMAGES, CAPTIONS)
    images = [tuple(IMAGES), np.stack(IMAGES), pd.Series(IMAGES, index=[5] * 12)]
    captions = [tuple(CAPTIONS), np.array(CAPTIONS, dtype=object), pd.Series(CAPTIONS)]
    captions += [pl.Series(CAPTIONS), pa.array(CAPTIONS)]
    for some in images:
        np.testing.assert_allclose(aligner.similarity(some, CAPTIONS), expected, **CLOSE)
    for some in captions:
        np.testing.assert_allclose(aligner.similarity(IMAGES, some), expected, **CLOSE)
    other = clone(unfitted[name]).fit(np.stack(IMAGES), pd.Series(CAPTIONS, index=[3] * 12))
    np.testing.assert_allclose(other.similarity(IMAGES, CAPTIONS), expected, **CLOSE)


@pytest.mark.sampled(3)
def test_threads_give_equal_predictions(aligner):
    """A fitted aligner and a classifier can be used from several threads."""
    expected = aligner.similarity(IMAGES, CAPTIONS)
    classifier = ZeroShotClassifier(["cat", "dog", "mat"], aligner=aligner)
    labels = classifier.predict(IMAGES)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(aligner.similarity, IMAGES, CAPTIONS) for _ in range(6)]
        named = [pool.submit(classifier.predict, IMAGES) for _ in range(6)]
        for job in jobs:
            np.testing.assert_allclose(job.result(), expected, **CLOSE)
        for job in named:
            np.testing.assert_array_equal(job.result(), labels)
