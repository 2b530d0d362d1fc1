"""Hostile files: read in a child process, then most in one batch of an encoder."""

from __future__ import annotations

import contextlib
import sys
import tempfile

from .rows import Row


def measure(examples: int) -> list[Row]:
    """Read the corpus, with more cuts and flips the more examples are asked for."""
    from tests.robustness.hostile.corpus import batch_outcomes, corpus, outcomes

    more = min(examples // 50, 400)
    with tempfile.TemporaryDirectory() as folder:
        done = outcomes(folder, more)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        cases = corpus(folder, more)
        together = batch_outcomes([case for case in corpus(folder + "/batch") if not case.large])
    for outcome in [*done, *together]:
        if outcome.kind not in ("right", "error"):
            print(f"{outcome.kind}: {outcome.name}: {outcome.message}", file=sys.stderr)
    slowest = max(done, key=lambda outcome: outcome.seconds)
    largest = max(done, key=lambda outcome: outcome.mebibytes)
    print(f"slowest: {slowest.name}, {slowest.seconds:.2f} s")
    print(f"most memory: {largest.name}, {largest.mebibytes:.0f} MiB")
    kinds = [outcome.kind for outcome in done]
    return [
        Row.of("hostile", "files, read one by one", kinds, len(cases)),
        Row.of(
            "hostile", "files, one batch of an encoder", [o.kind for o in together], len(together)
        ),
    ]
