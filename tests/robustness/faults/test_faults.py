"""Kills and other faults: no wrong results, no lost data and no hangs.

`python -m benchmarks.reliability faults` runs many more cases of the same groups.
"""

import os
from collections import Counter

import pytest

from tests.robustness.faults.runner import outcomes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills child processes")

# Minimum number of cases per group.
GROUPS = {"killing": 9, "full": 12, "locked": 50, "clock": 20, "shared": 5, "versions": 42}


@pytest.fixture(scope="module")
def outcomes_of_groups():
    """Return the outcomes of all cases, which run in one process and its children."""
    return outcomes(dict.fromkeys(GROUPS, 1))


def test_all_groups_are_completed(outcomes_of_groups):
    """The runner reports a crash or hang of its own under another group."""
    assert [outcome for outcome in outcomes_of_groups if outcome.group not in GROUPS] == []


@pytest.mark.parametrize("group", GROUPS)
def test_results_are_correct_or_errors(group, outcomes_of_groups):
    """Each case gives a correct result or a clear error, and the next run is correct."""
    outcomes_of_groups = [outcome for outcome in outcomes_of_groups if outcome.group == group]
    assert [
        outcome for outcome in outcomes_of_groups if outcome.kind not in ("right", "error")
    ] == []
    assert len(outcomes_of_groups) >= GROUPS[group]
    kinds = Counter(outcome.kind for outcome in outcomes_of_groups)
    assert kinds["right"] > 0
    if group in ("full", "locked", "versions"):  # cases in which errors are expected
        assert kinds["error"] > len(outcomes_of_groups) // 10
