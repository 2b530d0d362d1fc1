"""Counts of crashes, hangs, wrong answers and lost data under faults and hostile inputs.

    python -m benchmarks.reliability                   # all parts
    python -m benchmarks.reliability hostile           # one part
    python -m benchmarks.reliability --examples 20000  # more fuzzing (default: 2,000)

Results are written to docs/results/reliability.csv. The exit status is 1 if any case crashed,
hung, was answered wrongly or was lost.
"""

import sys

from benchmarks._results import OUTCOME_COLUMNS, make_results_parser, run_parts

PARTS = ("hostile", "fuzz", "numerics", "faults", "service")

if __name__ == "__main__":
    parser = make_results_parser("reliability", __doc__, PARTS)
    parser.add_argument(
        "--examples", type=int, help="examples per fuzzed input (default: 2000; quick: 100)"
    )
    failures = run_parts(
        "reliability",
        PARTS,
        OUTCOME_COLUMNS,
        parser,
        lambda options: options.examples or (100 if options.quick else 2000),
    )
    if failures:
        sys.exit("\n" + "\n".join(failures))
