"""Measure speed against peers in the same run.

    python benchmarks/speed.py                  # all parts
    python benchmarks/speed.py encode search    # some
    python benchmarks/speed.py --quick          # a trial

Every row has a ratio to a peer. Needs the ``openvino``, ``onnx`` and ``starter`` extras, embetter,
sentence-transformers and Debian's openclipart-png and openclipart-svg. Written to
docs/results/speed.csv.
"""

from benchmarks._parts import main

PARTS = ("encode", "search", "training", "zero_shot", "store")

if __name__ == "__main__":
    main("speed", PARTS, __doc__)
