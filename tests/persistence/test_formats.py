"""Models that released formats wrote are read by this version, and answer as they did."""

import json
from pathlib import Path

import numpy as np
import pytest

from sklearn_ape import load_pretrained
from sklearn_ape.persistence import _format

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, name) for name in ("kernel", "cca", "asif", "ape", "ape_plain")],
)
def test_a_fixture_of_each_format(number, name):
    folder = FIXTURES / f"format_{number}"
    answers = json.loads((folder / "answers.json").read_text())
    X, y = (np.array(answers[side], dtype=np.float32) for side in ("image", "text"))
    expected = answers["models"][name]
    assert json.loads((folder / name / "config.json").read_text())["format"] == number
    model = load_pretrained(folder / name)
    assert type(model).__name__ == expected["class"]
    assert model.logit_scale_ == expected["logit_scale"]
    # Other processors round otherwise.
    for answer, wanted in (
        (model.transform(X), expected["image"]),
        (model.transform_text(y), expected["text"]),
        (model.similarity(X, y, standardize=True), expected["standardized"]),
    ):
        np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_there_is_a_fixture_of_every_format_and_a_way_up_from_it():
    assert (FIXTURES / f"format_{_format.FORMAT}").is_dir()
    assert set(_format._MIGRATIONS) == set(range(1, _format.FORMAT))


def test_older_formats_are_brought_up_step_by_step(monkeypatch):
    steps = {1: lambda c: {**c, "a": 1}, 2: lambda c: {**c, "b": c["a"] + 1}}
    monkeypatch.setattr(_format, "_MIGRATIONS", steps)
    monkeypatch.setattr(_format, "FORMAT", 3)
    old = {"library": "sklearn-ape", "format": 1}
    assert _format.migrated(old, "x") == {**old, "a": 1, "b": 2}
