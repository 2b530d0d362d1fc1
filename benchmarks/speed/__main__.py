"""Speed compared with peers that are measured in the same run.

    python -m benchmarks.speed                  # all parts
    python -m benchmarks.speed encode search    # two parts
    python -m benchmarks.speed precision        # engines and precisions of all encoders
    python -m benchmarks.speed trainers libraries indexes  # peers of the same kind
    python -m benchmarks.speed --quick          # little data, to try it

Requires the ``openvino``, ``onnx`` and ``starter`` extras, embetter, sentence-transformers and
Debian's openclipart-png and openclipart-svg. The parts trainers, libraries and indexes need the
``starter`` and ``index`` extras and, to compare with it, sentence-transformers. indexes compares
with clip-retrieval's index if the variable BENCHMARK_AUTOFAISS names the interpreter of an
environment with autofaiss. Results are written to docs/results/speed.csv.
"""

import sys

from benchmarks._results import COMPARISON_COLUMNS, make_results_parser, run_parts

PARTS = (
    "encode", "precision", "search", "training", "kernel", "zero_shot", "store",
    "trainers", "libraries", "indexes",
)  # fmt: skip

if __name__ == "__main__":
    failures = run_parts(
        "speed", PARTS, COMPARISON_COLUMNS, make_results_parser("speed", __doc__, PARTS)
    )
    # A missed target is reported, not an error: timings of a shared machine vary.
    print("", *failures, sep="\n", file=sys.stderr)
