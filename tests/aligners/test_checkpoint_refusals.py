"""A training takes nothing for its own that is not: what is told, and what is refused."""

import os
import shutil

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_ape.aligners import _checkpoint as _training_file
from tests.aligners.kept_trainings import (
    X,
    Y,
    assert_same,
    every_epoch,
    killed,
    one_thread,
    script,
    steps,
    whole,
)

__all__ = ["every_epoch", "one_thread", "steps", "whole"]  # fixtures


@pytest.mark.usefixtures("every_epoch")
class TestRefusals:
    @pytest.fixture
    def unfinished(self, steps, tmp_path):
        """A killed training, and its file."""
        aligner = script.aligner("plain", checkpoint=tmp_path)
        killed(aligner, steps, 30)
        (file,) = tmp_path.glob("*.training.safetensors")
        return aligner, file

    def test_other_parameters_begin_at_the_beginning_and_say_so(self, unfinished):
        aligner, file = unfinished
        before = file.read_bytes()
        other = clone(aligner).set_params(learning_rate=0.002, depth=np.int64(3))
        with pytest.warns(UserWarning, match=r"depth=2 \(here 3\), learning_rate=0.001 \(here"):
            other.fit(X, Y)
        with pytest.warns(UserWarning, match="unfinished training with other pairs"):
            clone(aligner).fit(X, Y + 1)
        with pytest.warns(UserWarning, match="with other random_state"):
            clone(aligner).set_params(random_state=1).fit(X, Y)
        assert file.read_bytes() == before

    @pytest.mark.parametrize("where", [3, 5000, -100])
    def test_damage(self, where, unfinished):
        aligner, file = unfinished
        damaged = bytearray(file.read_bytes())
        damaged[where] ^= 255
        digit = bytearray(file.read_bytes())
        at = digit.index(b"valid_recall") + 20
        digit[at] = ord("7") if digit[at] != ord("7") else ord("6")
        for content in (
            bytes(digit),
            bytes(damaged),
            damaged[: len(damaged) // 2],
            b"",
            b"\x80\x04pickle",
        ):
            file.write_bytes(content)
            with pytest.raises(ValueError, match="Delete it to train from the beginning"):
                clone(aligner).fit(X, Y)
            assert file.read_bytes() == content

    def test_the_file_of_another_training(self, unfinished, tmp_path):
        aligner, file = unfinished
        other = clone(aligner).set_params(depth=1)
        with pytest.warns(UserWarning, match="depth=2"):
            other.fit(X, Y)
        (of_other,) = tmp_path.glob("*.trained.safetensors")
        shutil.copy(file, of_other)
        with pytest.raises(ValueError, match=r"belongs to another training: depth=2 \(here 1\)"):
            other.fit(X, Y)

    def test_another_format(self, unfinished, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(_training_file, "_FORMAT", 2)
        with pytest.raises(ValueError, match=r"has format 1, and this .* format 2. Delete it"):
            clone(aligner).fit(X, Y)

    def test_other_versions_are_told(self, unfinished, whole, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(_training_file, "_versions", lambda: {"torch": "99"})
        with pytest.warns(UserWarning, match="may differ in the last digits"):
            assert_same(clone(aligner).fit(X, Y), whole("plain"))

    def test_a_folder_of_other_things(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"contains thesis\.txt and no checkpoint"):
            script.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        assert os.listdir(tmp_path) == ["thesis.txt"]

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_place_that_cannot_be_written_to(self, place, steps, tmp_path):
        (tmp_path / "file").write_text("mine")
        counted = steps(None)
        with pytest.raises(OSError, match="Pass a"):
            script.aligner("plain", checkpoint=tmp_path / place).fit(X, Y)
        assert counted.n_done == 0

    def test_no_path(self):
        for checkpoint in (3, "", True):
            with pytest.raises(TypeError, match="checkpoint must be None or the path"):
                script.aligner("plain", checkpoint=checkpoint).fit(X, Y)
