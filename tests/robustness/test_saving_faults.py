"""Killed, failing and concurrent saves keep a complete model and all other files."""

import errno
import os
import random
import time
import warnings

import numpy as np
import pytest
from safetensors import SafetensorError

from sklearn_ape import KernelAligner, load_pretrained
from sklearn_ape.persistence.files import read_model, write_model
from tests.robustness.child_processes import fork, kill

KILLS = 20


def written(folder, number, n=20_000):
    """Write a model whose every part says its number."""
    config = {"library": "sklearn-ape", "format": 1, "version": "0", "number": number}
    write_model(folder, config, {"a": np.full(n, number, np.int32)}, f"card {number}")


def whole(folder):
    """Return the number of a model, once all of its parts agree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, tensors = read_model(folder)
    (number,) = set(tensors["a"].tolist())
    assert config["number"] == number
    return number


@pytest.fixture
def fitted(concepts):
    return KernelAligner().fit(concepts.image, concepts.text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
class TestKills:
    @pytest.mark.exhaustive
    def test_at_random_moments(self, tmp_path):
        """Each time a later save than the last one seen, or that one itself."""
        folder = tmp_path / "model"
        written(folder, 0)
        rng = random.Random(0)
        seen = 0
        for number in range(KILLS):
            told, tell = os.pipe()

            def save_on_and_on(first=seen + 1, tell=tell):
                for number in range(first, first + 10**6):
                    written(folder, number)
                    os.write(tell, b".")

            child = fork(save_on_and_on)
            os.close(tell)
            os.read(told, 1)  # on a busy machine the first save may take long
            time.sleep(0.1 * rng.random())
            kill(child)
            os.close(told)
            assert whole(folder) > seen, number
            seen = whole(folder)
        written(folder, -1)
        assert whole(folder) == -1

    @pytest.mark.parametrize("step", range(4))
    def test_at_every_step_of_a_replacement(self, step, tmp_path, monkeypatch):
        folder = tmp_path / "model"
        written(folder, 0)
        replace, done = os.replace, []

        def replace_some(source, target):
            if len(done) == step:
                os._exit(9)
            done.append(target)
            replace(source, target)

        def save():
            monkeypatch.setattr(os, "replace", replace_some)
            written(folder, 1)

        os.waitpid(fork(save), 0)
        assert whole(folder) == (0 if step == 0 else 1)
        written(folder, 2)
        assert whole(folder) == 2

    def test_a_killed_first_save_leaves_no_half_model(self, tmp_path):
        for pause in (0.0, 0.001, 0.003, 0.01):
            folder = tmp_path / f"model{pause}"
            child = fork(lambda folder=folder: written(folder, 1, 10**6))
            time.sleep(pause)
            kill(child)
            assert not folder.exists() or whole(folder) == 1


class TestRefusals:
    def test_folder_with_other_files_raises(self, fitted, tmp_path):
        for name in ("thesis.txt", "config.json", "model.safetensors"):
            folder = tmp_path / name.replace(".", "-")
            folder.mkdir()
            (folder / name).write_text('{"model_type": "bert"}')
            with pytest.raises(FileExistsError, match="no model of sklearn-ape"):
                fitted.save_pretrained(folder)
            assert [path.name for path in folder.iterdir()] == [name]
            assert (folder / name).read_text() == '{"model_type": "bert"}'
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="is a file"):
            fitted.save_pretrained(tmp_path / "file")

    def test_other_files_in_a_model_folder_are_kept(self, fitted, tmp_path):
        folder = tmp_path / "model"
        (folder / ".git").mkdir(parents=True)  # a repository just cloned
        fitted.save_pretrained(folder)
        (folder / "LICENSE").write_text("mine")
        fitted.save_pretrained(folder)
        assert (folder / "LICENSE").read_text() == "mine"
        assert (folder / ".git").is_dir()
        assert load_pretrained(folder).fingerprint_ == fitted.fingerprint_

    @pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
    def test_all_files_have_the_same_permissions(self, fitted, tmp_path):
        """Whoever may read config.json may load the model; safetensors writes for its owner."""
        fitted.save_pretrained(tmp_path / "model")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
        assert len(modes) == 3
        assert len(set(modes.values())) == 1, modes

    @pytest.mark.parametrize("exists", [False, True])
    def test_full_disk_keeps_previous_model(self, exists, fitted, tmp_path, monkeypatch):
        folder = tmp_path / "model"
        if exists:
            fitted.save_pretrained(folder)
        before = sorted(tmp_path.rglob("*"))

        def full(path):
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr("sklearn_ape.persistence.files.sync", full)
        with pytest.raises(OSError, match="No space left"):
            fitted.save_pretrained(folder)
        assert sorted(tmp_path.rglob("*")) == before
        if exists:
            assert load_pretrained(folder).fingerprint_ == fitted.fingerprint_

    @pytest.mark.parametrize("told", ["(os error 28)", "IoError(Os { code: 28, kind: Full })"])
    def test_safetensors_error_becomes_oserror(self, told, fitted, tmp_path, monkeypatch):
        """It wraps the system's errors in one of its own, which no caller expects."""

        def full(*args, **options):
            raise SafetensorError(f"Error while serializing: I/O error: {told}")

        monkeypatch.setattr("safetensors.numpy.save_file", full)
        with pytest.raises(OSError, match="; the model is not saved") as raised:
            fitted.save_pretrained(tmp_path / "model")
        assert raised.value.errno == errno.ENOSPC
        assert raised.value.filename == str(tmp_path / "model")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("scores", [{"a": float("nan")}, {"a": "high"}, {1: 0.5}, [0.5]])
    def test_invalid_scores_raise(self, scores, fitted, tmp_path):
        with pytest.raises(ValueError, match="scores"):
            fitted.save_pretrained(tmp_path / "model", scores=scores)
        assert not list(tmp_path.iterdir())


def test_config_of_another_model_warns(fitted, concepts, tmp_path):
    """The tensors' own copy of the config is right; a user hears that the other was not used."""
    fitted.save_pretrained(tmp_path / "model")
    other = KernelAligner(ridge=1.0).fit(concepts.image, concepts.text)
    other.save_pretrained(tmp_path / "other")
    os.replace(tmp_path / "other" / "config.json", tmp_path / "model" / "config.json")
    with pytest.warns(UserWarning, match="does not belong to model.safetensors"):
        assert load_pretrained(tmp_path / "model").fingerprint_ == fitted.fingerprint_
    (tmp_path / "model" / "config.json").unlink()
    assert load_pretrained(tmp_path / "model").ridge == fitted.ridge
