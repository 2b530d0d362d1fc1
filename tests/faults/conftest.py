"""Makes the faults importable, for the child processes that make them as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
