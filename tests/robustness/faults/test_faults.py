"""Kills and other faults, a few of each kind: nothing wrong, nothing lost, nothing hangs.

`python -m benchmarks.reliability faults` makes the same, many times as many.
"""

import os
from collections import Counter

import pytest

from tests.robustness.faults.runner import outcomes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes of its own")

# Group, and how many cases it has at least.
GROUPS = {"killing": 9, "full": 12, "locked": 50, "clock": 20, "shared": 5, "versions": 42}


@pytest.fixture(scope="module")
def done():
    """What became of every case, all made in one process and its children."""
    return outcomes(dict.fromkeys(GROUPS, 1))


def test_nothing_else_ends_them(done):
    """All groups were gone through."""
    assert [outcome for outcome in done if outcome.group not in GROUPS] == []


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_wrong_or_lost(group, done):
    """Right, or one clear error, every time; and what a next run does is right."""
    done = [outcome for outcome in done if outcome.group == group]
    assert [outcome for outcome in done if outcome.kind not in ("right", "error")] == []
    assert len(done) >= GROUPS[group]
    kinds = Counter(outcome.kind for outcome in done)
    assert kinds["right"] > 0
    if group in ("full", "locked", "versions"):  # where some must have been refused
        assert kinds["error"] > len(done) // 10
