"""So many examples of what Hypothesis makes up, the same ones each time."""

import warnings
from collections import Counter

from hypothesis import HealthCheck, given, settings


def run(examples, check, **strategies):
    """Check so many examples and count what `check` returns."""
    found = Counter()
    given_them = given(**strategies)(lambda **values: found.update(check(**values)))
    quiet = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet(given_them)()
    return found
