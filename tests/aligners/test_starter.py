"""Starter model: classification without a fit, size of the file, and its format."""

import copy
import hashlib
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn import config_context
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import sklearn_ape
from benchmarks.build_starter import pack_starter
from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.aligners.starter import STARTER_FOLDER, load_starter, unpack_starter
from sklearn_ape.datasets import load_openmoji, load_tuxpaint_stamps
from sklearn_ape.persistence.files import write_tensors

MODEL = STARTER_FOLDER / "model.safetensors"


@pytest.fixture(scope="module")
def named():
    data = load_openmoji()
    names = ["dog", "pizza", "bicycle", "umbrella", "banana", "airplane", "sunflower", "guitar"]
    return [data.images[data.captions.index(name)] for name in names], names


def test_classifier_without_aligner_or_fit(named):
    images, names = named
    classifier = ZeroShotClassifier(names)
    assert classifier.score(images, names) >= 0.75
    assert classifier.predict_proba(images).shape == (8, 8)


@pytest.mark.exhaustive
@pytest.mark.skipif(
    not Path("/usr/share/tuxpaint/stamps").is_dir(),
    reason="the Debian package tuxpaint-stamps-default is not installed",
)
def test_broad_terms_match_unseen_images():
    """Users try these terms first; accuracy is 79 %, and was 51 % without them in training."""
    words = {
        "animals": "an animal",
        "food": "food",
        "plants": "a plant",
        "vehicles": "a vehicle",
        "clothes": "clothing",
        "hobbies/music": "a musical instrument",
        "town/houses": "a building",
        "household/tools": "a tool",
    }
    images, y = [], []
    for image in load_tuxpaint_stamps().images[::3]:
        for folder, word in words.items():
            if f"/stamps/{folder}/" in image:
                images.append(image)
                y.append(word)
    y = np.array(y)
    hits = ZeroShotClassifier(list(words.values()), templates="none").predict(images) == y
    assert hits.mean() >= 0.7


def test_load_starter_is_public(named):
    """An error message recommends `load_starter()`."""
    images, names = named
    public = sklearn_ape.load_starter()
    assert public is load_starter()
    assert public.similarity(images[:2], names).shape == (2, 8)


def test_starter_is_loaded_once_and_not_pickled(named):
    images, names = named
    assert load_starter() is load_starter()
    classifier = ZeroShotClassifier(names)
    classifier.predict(images[:1])
    pickled = pickle.dumps(classifier)
    assert len(pickled) < 10_000
    np.testing.assert_array_equal(
        pickle.loads(pickled).predict(images), classifier.predict(images)
    )


def test_features_instead_of_images_raise():
    with pytest.raises(ValueError, match="images"):
        ZeroShotClassifier(["cat", "dog"]).predict(np.zeros((2, 1280), dtype=np.float32))


def test_file_is_small_and_matches_the_card():
    assert MODEL.stat().st_size <= 24e6
    card = (STARTER_FOLDER / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() in card
    for phrase in ("CC-BY-SA-4.0", "Apache-2.0", "public domain", "build_starter"):
        assert phrase in card


def test_starter_has_not_seen_openmoji():
    """The demo and the documentation test it on OpenMoji."""
    assert not load_starter().was_fitted_on(load_openmoji().images).any()


@pytest.fixture
def blend(concepts):
    params = {"depth": 2, "width": 32, "early_stopping": False, "max_epochs": 2}
    return APEAligner(**params, random_state=0).fit(concepts.image, concepts.text)


class TestFile:
    def test_packing_hardly_changes_embeddings(self, blend, concepts, tmp_path):
        """8-bit storage changes cosines by at most 0.01."""
        before = blend.transform(concepts.image), blend.transform_text(concepts.text)
        rounded = copy.deepcopy(blend)
        pack_starter(rounded, tmp_path / "model.safetensors")
        unpacked = unpack_starter(tmp_path / "model.safetensors")
        after = unpacked.transform(concepts.image), unpacked.transform_text(concepts.text)
        for old, new in zip(before, after, strict=True):
            assert (old * new).sum(axis=1).min() > 0.99
        assert unpacked.fingerprint_ == rounded.fingerprint_ != blend.fingerprint_
        assert unpacked.logit_scale_ == blend.logit_scale_

    def test_packing_again_changes_nothing(self, blend, tmp_path):
        """Rounded values are exact multiples of their scales."""
        pack_starter(copy.deepcopy(blend), tmp_path / "first.safetensors")
        pack_starter(
            unpack_starter(tmp_path / "first.safetensors"), tmp_path / "second.safetensors"
        )
        first, second = (
            load_file(tmp_path / f"{name}.safetensors") for name in ("first", "second")
        )
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name])

    def test_matrices_are_stored_as_integers(self, blend, tmp_path):
        """In single precision, the bank alone would make the file 2.3 MB larger."""
        pack_starter(copy.deepcopy(blend), tmp_path / "model.safetensors")
        stored = load_file(tmp_path / "model.safetensors")
        types = {name: values.dtype for name, values in stored.items() if values.ndim == 2}
        assert "aligner.bank.image.dense" in types
        assert set(types.values()) == {np.dtype(np.int8)}

    def test_other_format_raises(self, tmp_path):
        path = tmp_path / "model.safetensors"
        write_tensors(path, load_file(MODEL), json.dumps({"format": 99}))
        with pytest.raises(ValueError, match="format 99"):
            unpack_starter(path)


class TestSharedObject:
    def test_fit_raises(self, named):
        """Steps of a Pipeline are fitted in place, which would change all other estimators."""
        images, names = named
        starter = load_starter()
        for step in (starter, make_pipeline(starter, LogisticRegression())):
            with pytest.raises(ValueError, match=r"Use FrozenEstimator\(load_starter"):
                step.fit(images, names)
        assert starter.n_components_ == 640

    def test_frozen_step_has_the_same_embeddings(self, named):
        images, names = named
        pipeline = make_pipeline(FrozenEstimator(load_starter()), LogisticRegression())
        assert pipeline.fit(images, names).score(images, names) == 1
        np.testing.assert_array_equal(
            pipeline[:-1].transform(images), load_starter().transform(images)
        )

    def test_pandas_output_does_not_change_results(self, named):
        images, names = named
        expected = ZeroShotClassifier(names).predict_proba(images)
        with config_context(transform_output="pandas"), warnings.catch_warnings():
            warnings.simplefilter("error")
            actual = ZeroShotClassifier(names).predict_proba(images)
        np.testing.assert_array_equal(actual, expected)
