"""Faults: kills at random moments, full and locked disks, the clock, other processes."""

from __future__ import annotations

import sys
from collections import Counter

from .rows import Row

_GROUPS = {
    "full": "full disks",
    "locked": "read-only and closed folders, files and disks",
    "clock": "clock set back, files of any time",
    "shared": "4 processes on one cache, rounds of reading and writing",
    "versions": "caches of other versions",
}
# Of what the suite does, for each 2,000 examples.
_AMOUNT = {"killing": 22, "full": 3, "locked": 1, "clock": 10, "shared": 30, "versions": 1}


def measure(examples: int) -> list[Row]:
    """Make all faults; by default over 200 kills, and one minute of four processes."""
    from tests.robustness.faults.runner import outcomes

    more = examples / 2000
    amounts = {group: max(1.0, more * amount) for group, amount in _AMOUNT.items()}
    done = outcomes(amounts)
    kinds: dict[str, list] = {}
    for outcome in done:
        if outcome.group in _GROUPS:
            kinds.setdefault(_GROUPS[outcome.group], []).append(outcome)
        else:
            kinds.setdefault(f"kills: {outcome.name.split(', after ')[0]}", []).append(outcome)
    for name, some in kinds.items():
        stages = Counter(outcome.stage for outcome in some if outcome.stage).most_common()
        if stages:
            print(f"{name}: when {', '.join(f'{stage} {n}' for stage, n in stages)}")
    counts = {name: _counted(some) for name, some in kinds.items()}
    return [Row.of("faults", name, found, found.total()) for name, found in counts.items()]


def _counted(done: list) -> Counter[str]:
    counts: Counter[str] = Counter()
    for outcome in done:
        counts[outcome.kind] += outcome.count
        if outcome.kind not in ("right", "error"):
            print(f"{outcome.kind}: {outcome.name}: {outcome.message}", file=sys.stderr)
    return counts
