"""Hostile files: each is read in a child process, and most in one batch of an encoder."""

from __future__ import annotations

import contextlib
import sys
import tempfile

from .._results import OutcomeCounts


def measure(examples: int) -> list[OutcomeCounts]:
    """Read the corpus of hostile files, with one cut and one bit flip more per 50 examples."""
    from tests.robustness.hostile.corpus import batch_outcomes, corpus, outcomes

    n_more = min(examples // 50, 400)
    with tempfile.TemporaryDirectory() as folder:
        single = outcomes(folder, n_more)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        cases = corpus(folder, n_more)
        batch = batch_outcomes([case for case in corpus(folder + "/batch") if not case.large])
    for outcome in [*single, *batch]:
        if outcome.kind not in ("right", "error"):
            print(f"{outcome.kind}: {outcome.name}: {outcome.message}", file=sys.stderr)
    slowest = max(single, key=lambda outcome: outcome.seconds)
    largest = max(single, key=lambda outcome: outcome.mebibytes)
    print(f"slowest: {slowest.name}, {slowest.seconds:.2f} s")
    print(f"most memory: {largest.name}, {largest.mebibytes:.0f} MiB")
    return [
        OutcomeCounts.count(name, [outcome.kind for outcome in group], n_cases)
        for name, group, n_cases in (
            ("files, read one by one", single, len(cases)),
            ("files, one batch of an encoder", batch, len(batch)),
        )
    ]
