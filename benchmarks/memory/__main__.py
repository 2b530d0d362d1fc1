"""Measure memory, and time by number of rows, each in a process of its own.

    python benchmarks/memory.py                 # all parts
    python benchmarks/memory.py training        # one
    python benchmarks/memory.py --quick         # a trial

Written to docs/results/memory.csv.
"""

from benchmarks._parts import main

PARTS = ("training", "zero_shot", "store")

if __name__ == "__main__":
    main("memory", PARTS, __doc__)
