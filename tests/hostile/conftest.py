"""Makes the corpus importable, for the child processes that read it as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
