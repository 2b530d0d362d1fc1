"""Hundreds of hostile files: the right image or one clear error, in bounded time and memory."""

from collections import Counter

import pytest
from hostile.harness import outcomes


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What became of every case, each read in a child process."""
    return outcomes(str(tmp_path_factory.mktemp("hostile")))


def test_every_case_is_tried(done):
    """Nothing is lost on the way, and good images are among the cases as well as bad ones."""
    assert len(done) > 600
    assert len({outcome.name for outcome in done}) == len(done)
    kinds = Counter(outcome.kind for outcome in done)
    assert kinds["right"] > 200
    assert kinds["error"] > 200


@pytest.mark.parametrize("kind", ["crash", "hang", "greedy", "unclear", "wrong"])
def test_nothing_else_happens(done, kind):
    """No exception but ours, no dead process, no wrong pixels, no endless wait, no full memory."""
    assert [outcome for outcome in done if outcome.kind == kind] == []
