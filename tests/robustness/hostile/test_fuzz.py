"""Every entrance under inputs that Hypothesis makes up; benchmarks/reliability tries more."""

import pytest

from tests.robustness.hostile.fuzz import FUZZERS

_EXAMPLES = {
    "image bytes": 200,
    "captions": 12,
    "labels and templates": 12,
    "tables": 120,
    "folders": 60,
    "saved models, what they say": 150,
    "saved models, their bytes": 150,
}


@pytest.mark.parametrize("entrance", FUZZERS)
def test_right_or_refused(entrance):
    """What is made up is taken as it is meant or refused in words; both happen."""
    found = FUZZERS[entrance](_EXAMPLES[entrance])
    assert found["right"] > 0
    assert found["error"] > 0
