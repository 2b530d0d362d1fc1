"""Killed and failing saves of models."""

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


def write_numbered_model(folder, number, n=20_000):
    """Write a model whose config, tensors and card contain the number."""
    config = {"library": "sklearn-ape", "format": 1, "version": "0", "number": number}
    write_model(folder, config, {"a": np.full(n, number, np.int32)}, f"card {number}")


def read_number(folder):
    """Return the number of a model after checking that its parts agree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, tensors = read_model(folder)
    (number,) = set(tensors["a"].tolist())
    assert config["number"] == number
    return number


@pytest.fixture
def fitted(concepts):
    return KernelAligner().fit(concepts.image, concepts.text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills child processes")
class TestKills:
    @pytest.mark.exhaustive
    def test_kill_at_random_moment_keeps_complete_model(self, tmp_path):
        """The model after a kill is the one of the last complete save or of the next one."""
        folder = tmp_path / "model"
        write_numbered_model(folder, 0)
        rng = random.Random(0)
        seen = 0
        for number in range(KILLS):
            reader, writer = os.pipe()

            def save_repeatedly(first=seen + 1, writer=writer):
                for number in range(first, first + 10**6):
                    write_numbered_model(folder, number)
                    os.write(writer, b".")

            child = fork(save_repeatedly)
            os.close(writer)
            os.read(reader, 1)  # the first save may be slow on a busy machine
            time.sleep(0.1 * rng.random())
            kill(child)
            os.close(reader)
            assert read_number(folder) > seen, number
            seen = read_number(folder)
        write_numbered_model(folder, -1)
        assert read_number(folder) == -1

    @pytest.mark.parametrize("step", range(4))
    def test_kill_at_any_step_of_replacement_keeps_complete_model(
        self, step, tmp_path, monkeypatch
    ):
        folder = tmp_path / "model"
        write_numbered_model(folder, 0)
        replace, done = os.replace, []

        def replace_until_step(source, target):
            if len(done) == step:
                os._exit(9)
            done.append(target)
            replace(source, target)

        def save():
            monkeypatch.setattr(os, "replace", replace_until_step)
            write_numbered_model(folder, 1)

        os.waitpid(fork(save), 0)
        assert read_number(folder) == (0 if step == 0 else 1)
        write_numbered_model(folder, 2)
        assert read_number(folder) == 2

    def test_killed_first_save_leaves_no_incomplete_model(self, tmp_path):
        for pause in (0.0, 0.001, 0.003, 0.01):
            folder = tmp_path / f"model{pause}"
            child = fork(lambda folder=folder: write_numbered_model(folder, 1, 10**6))
            time.sleep(pause)
            kill(child)
            assert not folder.exists() or read_number(folder) == 1


class TestErrors:
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

    def test_other_files_in_model_folder_are_kept(self, fitted, tmp_path):
        folder = tmp_path / "model"
        (folder / ".git").mkdir(parents=True)  # a new clone of a repository
        fitted.save_pretrained(folder)
        (folder / "LICENSE").write_text("mine")
        fitted.save_pretrained(folder)
        assert (folder / "LICENSE").read_text() == "mine"
        assert (folder / ".git").is_dir()
        assert load_pretrained(folder).fingerprint_ == fitted.fingerprint_

    def test_model_that_is_saved_meanwhile_is_replaced(self, tmp_path, monkeypatch):
        """As if the other model had been complete before: the last save wins."""
        rename = os.rename

        def rename_later(source, target):
            monkeypatch.undo()
            write_numbered_model(target, 1)
            rename(source, target)

        monkeypatch.setattr(os, "rename", rename_later)
        write_numbered_model(tmp_path / "model", 2)
        assert read_number(tmp_path / "model") == 2
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    @pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
    def test_all_files_have_same_permissions(self, fitted, tmp_path):
        """safetensors would create a file that only its owner can read."""
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

    @pytest.mark.parametrize("message", ["(os error 28)", "IoError(Os { code: 28, kind: Full })"])
    def test_safetensors_error_becomes_oserror(self, message, fitted, tmp_path, monkeypatch):
        """safetensors wraps system errors in its own exception, which callers do not expect."""

        def full(*args, **options):
            raise SafetensorError(f"Error while serializing: I/O error: {message}")

        monkeypatch.setattr("safetensors.numpy.save_file", full)
        with pytest.raises(OSError, match=r"saved\. It needs about [1-9].* Free") as raised:
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
    """The copy of the config in the tensor file is used, with a warning about config.json."""
    fitted.save_pretrained(tmp_path / "model")
    other = KernelAligner(ridge=1.0).fit(concepts.image, concepts.text)
    other.save_pretrained(tmp_path / "other")
    os.replace(tmp_path / "other" / "config.json", tmp_path / "model" / "config.json")
    with pytest.warns(UserWarning, match="does not belong to model.safetensors"):
        assert load_pretrained(tmp_path / "model").fingerprint_ == fitted.fingerprint_
    (tmp_path / "model" / "config.json").unlink()
    assert load_pretrained(tmp_path / "model").ridge == fitted.ridge
