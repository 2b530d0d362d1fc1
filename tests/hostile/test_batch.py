"""All hostile items in one batch of a real encoder: the good ones lose nothing by the bad ones."""

from collections import Counter

import pytest
from hostile.batch import batch_outcomes
from hostile.harness import corpus


@pytest.mark.filterwarnings("ignore")
def test_good_ones_are_as_if_alone_and_errors_name_the_bad_ones(tmp_path, monkeypatch):
    """`errors_` names exactly the bad rows, which are NaN; the others are those of the image."""
    monkeypatch.chdir(tmp_path)
    cases = [case for case in corpus(str(tmp_path)) if not case.large]
    done = batch_outcomes(cases)
    assert [outcome for outcome in done if outcome.kind not in ("right", "error")] == []
    kinds = Counter(outcome.kind for outcome in done)
    assert kinds["right"] > 200
    assert kinds["error"] > 200
