"""Faults: kills at random times, full and locked disks, changed clocks, concurrent processes."""

from __future__ import annotations

import sys
from collections import Counter

from .._results import OutcomeCounts

_GROUPS = {
    "full": "full disks",
    "locked": "read-only and closed folders, files and disks",
    "clock": "clock set back, files with arbitrary times",
    "shared": "4 processes on one cache, rounds of reading and writing",
    "versions": "caches of other versions",
}
# Repetitions of each group per 2,000 examples, as multiples of what the tests do.
_REPETITIONS = {"killing": 22, "full": 3, "locked": 1, "clock": 10, "shared": 30, "versions": 1}


def measure(examples: int) -> list[OutcomeCounts]:
    """Inject all faults; by default more than 200 kills, and one minute of four processes."""
    from tests.robustness.faults.runner import outcomes

    factor = examples / 2000
    repetitions = {group: max(1.0, factor * n) for group, n in _REPETITIONS.items()}
    by_name: dict[str, list] = {}
    for outcome in outcomes(repetitions):
        if outcome.group in _GROUPS:
            by_name.setdefault(_GROUPS[outcome.group], []).append(outcome)
        else:
            by_name.setdefault(f"kills: {outcome.name.split(', after ')[0]}", []).append(outcome)
    rows = []
    for name, group in by_name.items():
        stages = Counter(outcome.stage for outcome in group if outcome.stage).most_common()
        if stages:
            print(f"{name}: during {', '.join(f'{stage} {n}' for stage, n in stages)}")
        counts = _count_kinds(group)
        rows.append(OutcomeCounts.count(name, counts, counts.total()))
    return rows


def _count_kinds(outcomes: list) -> Counter[str]:
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts[outcome.kind] += outcome.count
        if outcome.kind not in ("right", "error"):
            print(f"{outcome.kind}: {outcome.name}: {outcome.message}", file=sys.stderr)
    return counts
