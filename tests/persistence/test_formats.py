"""Loading of models, caches and feature files of every released format."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sklearn_ape import load_pretrained
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile
from sklearn_ape.persistence.files import FORMAT
from sklearn_ape.persistence.serialize import CLASSES
from tests.persistence import write_fixtures as written

FIXTURES = Path(__file__).parents[1] / "fixtures"
FORMATS = sorted(FIXTURES.glob("format_*"))
# Their weights have tens of megabytes or are in a separate folder.
NO_FIXTURE = {
    *("CLIPAligner", "LiTAligner", "OpenCLIPImageEncoder", "OpenCLIPTextEncoder"),
    *("SentenceTransformerEncoder", "SentenceTransformerImageEncoder"),
    "TransformersImageEncoder",
}


def models_in(file):
    return [
        pytest.param(folder, name, id=f"{folder.name}-{name}")
        for folder in FORMATS
        for name in json.loads((folder / file).read_text()).get("models", {})
    ]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def number_of(folder):
    return int(folder.name.removeprefix("format_"))


@pytest.mark.parametrize(("folder", "name"), models_in("answers.json"))
def test_aligner_of_each_format_gives_stored_results(folder, name):
    answers = json.loads((folder / "answers.json").read_text())
    X, y = (np.array(answers[side], dtype=np.float32) for side in ("image", "text"))
    expected = dict(answers["models"][name])
    assert config_of(folder / name)["format"] == number_of(folder)
    model = load_pretrained(folder / name)
    assert type(model).__name__ == expected.pop("class")
    for key, answer in written.answers_to_pairs(model, X, y).items():
        # Rounding depends on the processor.
        np.testing.assert_allclose(answer, expected[key], atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("folder", "name"), models_in("answers_with_words.json"))
def test_model_with_text_encoder_of_each_format_gives_stored_results(folder, name):
    answers = json.loads((folder / "answers_with_words.json").read_text())
    X = np.array(json.loads((folder / "answers.json").read_text())["image"], dtype=np.float32)
    expected = dict(answers["models"][name])
    assert config_of(folder / name)["format"] == number_of(folder)
    model = load_pretrained(folder / name)
    assert type(model).__name__ == expected.pop("class")
    results = written.answers_to_features(
        model, written.example_images() if name == "pipeline" else X
    )
    for key in ("proba", "scores"):
        if key in expected:  # rounding depends on the engine and the batch
            np.testing.assert_allclose(results.pop(key), expected.pop(key), atol=2e-3)
    assert results == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
class TestFeatures:
    """Cache folders and files of `encode_to` that were written in an older format."""

    def test_cache_of_every_format_is_read(self, folder, dtype, tmp_path):
        (tmp_path / "cache").mkdir()
        shutil.copy(folder / "features" / "features.sqlite", tmp_path / "cache")
        with DiskFeatureCache(tmp_path / "cache", dtype=dtype) as cache:
            results = cache.get_many([*written.ENTRIES, b"unknown"])
        assert results.keys() == written.ENTRIES.keys()
        for key, numbers in written.ENTRIES.items():
            np.testing.assert_array_equal(results[key], numbers.astype(dtype))

    def test_file_of_every_format_is_read(self, folder, dtype):
        path = folder / "features" / dtype / "whole.npy"
        with FeatureFile(path, "of an encoder", 5, 2, dtype) as file:
            file.resume()
            assert len(file.finished) == file.n_chunks
            np.testing.assert_array_equal(
                file.finish(), np.array(list(written.ENTRIES.values())).astype(dtype)
            )

    def test_unfinished_file_of_every_format_is_resumed(self, folder, dtype, tmp_path):
        shutil.copytree(folder / "features" / dtype, tmp_path / "features")
        rows = np.array(list(written.ENTRIES.values())).astype(dtype)
        path = tmp_path / "features" / "begun.npy"
        with FeatureFile(path, "of an encoder", 5, 2, dtype) as file:
            file.resume()
            assert sorted(file.finished) == [0, 1]
            file.write(2, rows[4:], "2", {})
            np.testing.assert_array_equal(file.finish(), rows)


def test_every_format_has_a_fixture():
    assert [number_of(folder) for folder in FORMATS] == list(range(1, FORMAT + 1))


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_every_serializable_class_is_in_a_fixture_except_large_ones(folder):
    texts = [path.read_text() for path in folder.glob("*/config.json")]
    missing = {name for name in CLASSES if not any(f'"{name}"' in text for text in texts)}
    assert missing == NO_FIXTURE


class TestFlatTrainingParameters:
    """Models saved before `loss_params` and `optimizer_params` existed."""

    def test_defaults_are_loaded_as_none(self):
        aligner = load_pretrained(FIXTURES / "format_1" / "ape")
        assert aligner.loss_params is None
        assert aligner.optimizer_params is None

    def test_other_values_are_loaded_as_keys(self, tmp_path):
        shutil.copytree(FIXTURES / "format_1" / "ape", tmp_path / "ape")
        config = config_of(tmp_path / "ape")
        config["model"]["params"].update(logit_scale=20.0, clip_norm=1.0, tile_size=None)
        (tmp_path / "ape" / "config.json").write_text(json.dumps(config))
        aligner = load_pretrained(tmp_path / "ape")
        assert aligner.loss_params == {"logit_scale": 20.0, "tile_size": None}
        assert aligner.optimizer_params == {"clip_norm": 1.0}
        aligner.save_pretrained(tmp_path / "again")
        again = load_pretrained(tmp_path / "again")
        assert again.get_params() == aligner.get_params()
        assert again.fingerprint_ == aligner.fingerprint_


def test_few_shot_model_without_features_can_be_corrected():
    """Models of earlier versions hold embeddings only."""
    folder = FIXTURES / "format_1"
    few = load_pretrained(folder / "few_shot")
    X = np.array(json.loads((folder / "answers.json").read_text())["image"], np.float32)
    before, n_examples = few.coef_.copy(), few.class_count_.sum()
    few.partial_fit(X[-1:], few.classes_[:1])
    assert few.coef_.shape == before.shape
    assert np.abs(few.coef_ - before).max() > 0
    assert few.class_count_.sum() == n_examples + 1
