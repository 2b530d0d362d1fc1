"""Errors that a user can act on are one message; others are reported as bugs, with their place."""

import pytest
import torch
from typer.testing import CliRunner

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.cli import app
from sklearn_ape.cli._console import say


@pytest.fixture
def failing(few, run, monkeypatch):
    """Run classify with a classifier that raises an error, and return what it says."""

    def invoke(error):
        def predict_proba(*arguments):
            raise error

        monkeypatch.setattr(ZeroShotClassifier, "predict_proba", predict_proba)
        return run("classify", few, "--labels", "cat,dog", "--quiet", code=1)

    return invoke


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FloatingPointError("The loss is nan. Lower learning_rate."), "Lower learning_rate."),
        (ValueError("labels repeat"), "labels repeat"),
        (OSError(28, "No space left on device", "a\x1b.npy"), r"'a\x1b.npy': No space left"),
        (torch.OutOfMemoryError("CUDA out of memory"), "The memory of the device is full"),
        (ValueError("red\x1b[31m\rback\u202e"), r"red\x1b[31m\rback\u202e"),
    ],
    ids=["diverged", "value", "system", "device", "controls"],
)
def test_errors_of_users_are_one_message(failing, error, message):
    assert failing(error).stderr.splitlines()[-1].startswith("sklearn-ape: ")
    assert message in failing(error).stderr


def test_a_bug_shows_its_place_and_no_control_characters(monkeypatch):
    def label_names(*arguments):
        raise TypeError("red\x1b[31m")

    monkeypatch.setattr("sklearn_ape.cli.classify.label_names", label_names)
    result = CliRunner().invoke(app, ["classify", ".", "--labels", "a,b"])
    assert result.exit_code == 1
    assert "in label_names" in result.stderr
    assert "This is a bug" in result.stderr.splitlines()[-1]
    assert r"red\x1b[31m" in result.stderr


def test_messages_keep_their_line_ends(capsys):
    say("two\nlines\tand\x07")
    assert capsys.readouterr().err == "two\nlines\\tand\\x07\n"
