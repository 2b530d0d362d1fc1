"""Coverage of 95 % confidence intervals.

    python -m benchmarks.studies.intervals [n_samples]

Prints how often intervals contain the true mean, for the percentile bootstrap and for the
intervals of `sklearn_ape.metrics`. The coverage for proportions is exact, a sum over all numbers
of hits; for other values and for pairs it is simulated.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import binom

from sklearn_ape.metrics import bootstrap_interval, paired_difference

from .._results import make_parser

SIZES = (10, 20, 100, 1000)
PROPORTIONS = (0.01, 0.05, 0.3, 0.5, 0.95)
LEVELS = (0.025, 0.975)
# Probabilities that only the first model is right, and only the second.
DISAGREEMENTS = ((0.02, 0.0), (0.05, 0.05), (0.05, 0.02), (0.2, 0.05), (0.4, 0.1))


def compute_coverage(n: int, proportion: float) -> tuple[float, float]:
    """Return the exact coverage of both intervals for n hits with a true proportion."""
    bootstrap_coverage = coverage = 0.0
    for n_hits in range(n + 1):
        probability = binom.pmf(n_hits, n, proportion)
        if probability < 1e-9:
            continue
        low, high = binom.ppf(LEVELS, n, n_hits / n) / n
        interval = bootstrap_interval(np.arange(n) < n_hits)
        bootstrap_coverage += probability * (low <= proportion <= high)
        coverage += probability * (interval.low <= proportion <= interval.high)
    return bootstrap_coverage, coverage


def make_distributions(rng: np.random.Generator) -> dict:
    """Return a sampler and the true mean of each distribution of values other than hits."""
    ranks = np.arange(1, 10_000)
    return {
        "uniform": (lambda n: rng.random(n), 0.5),
        "means of 5 hits of 0.05": (lambda n: rng.binomial(5, 0.05, n) / 5, 0.05),
        "means of 5 hits of 0.95 in groups": (
            lambda n: rng.binomial(5, rng.beta(2.85, 0.15, n)) / 5,
            0.95,
        ),
        "reciprocal ranks": (
            lambda n: 1 / rng.geometric(0.3, n),
            float(np.sum(0.3 * 0.7 ** (ranks - 1) / ranks)),
        ),
        "exponential": (lambda n: rng.exponential(size=n), 1.0),
        "ranks with a long tail": (lambda n: rng.lognormal(size=n), float(np.exp(0.5))),
    }


def simulate_means(draw, mean: float, n: int, n_samples: int, rng) -> tuple[float, float]:
    """Return the coverage of both intervals for means of simulated samples."""
    hits = np.zeros(2)
    for seed in range(n_samples):
        values = draw(n)
        means = values[rng.integers(n, size=(1000, n))].mean(axis=1)
        interval = bootstrap_interval(values, n_resamples=1000, random_state=seed)
        for column, (low, high) in enumerate((np.quantile(means, LEVELS), interval[1:])):
            hits[column] += low <= mean <= high
    return tuple(hits / n_samples)


def simulate_differences(
    n: int, probabilities: tuple[float, float], n_samples: int, rng
) -> tuple[float, float]:
    """Return the coverage of both intervals for simulated differences of hits."""
    mean, hits = probabilities[0] - probabilities[1], np.zeros(2)
    for counts in rng.multinomial(n, [*probabilities, 1 - sum(probabilities)], size=n_samples):
        means = rng.multinomial(n, counts / n, size=1000) @ np.array([1, -1, 0]) / n
        first = np.arange(n) < counts[0]
        second = np.arange(n) >= n - counts[1]
        interval = paired_difference(first, second)
        for column, (low, high) in enumerate((np.quantile(means, LEVELS), interval[1:])):
            hits[column] += low - 1e-12 <= mean <= high + 1e-12
    return tuple(hits / n_samples)


def main() -> None:
    """Print the three tables."""
    parser = make_parser("studies.intervals", __doc__)
    parser.add_argument("n_samples", nargs="?", type=int, default=1000)
    n_samples = parser.parse_args().n_samples
    rng = np.random.default_rng(0)
    print(f"{'values':36} {'n':>5} {'bootstrap':>9} {'metrics':>9}")

    def show(name: str, n: int, coverage: tuple[float, float]) -> None:
        print(f"{name:36} {n:5} {coverage[0]:9.1%} {coverage[1]:9.1%}", flush=True)

    for proportion in PROPORTIONS:
        for n in SIZES:
            show(f"hits of {proportion}", n, compute_coverage(n, proportion))
    for probabilities in DISAGREEMENTS:
        for n in SIZES:
            coverage = simulate_differences(n, probabilities, n_samples, rng)
            show(f"difference of hits {probabilities}", n, coverage)
    for name, (draw, mean) in make_distributions(rng).items():
        for n in SIZES[:3]:
            show(name, n, simulate_means(draw, mean, n, n_samples, rng))


if __name__ == "__main__":
    main()
