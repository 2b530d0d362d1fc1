"""Memory, and time by number of rows, each measured in a separate process.

    python -m benchmarks.memory                 # all parts
    python -m benchmarks.memory training        # one part
    python -m benchmarks.memory --quick         # little data, to try it

Results are written to docs/results/memory.csv.
"""

import sys

from benchmarks._results import COMPARISON_COLUMNS, make_results_parser, run_parts

PARTS = ("training", "zero_shot", "store")

if __name__ == "__main__":
    failures = run_parts(
        "memory", PARTS, COMPARISON_COLUMNS, make_results_parser("memory", __doc__, PARTS)
    )
    # A missed target is reported, not an error: timings of a shared machine vary.
    print("", *failures, sep="\n", file=sys.stderr)
