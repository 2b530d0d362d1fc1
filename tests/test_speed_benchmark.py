"""Speed benchmarks: engines and precisions of an encoder, and the GPU program on a CPU."""

import math

import pytest

from benchmarks import gpu
from benchmarks.speed import precision


@pytest.mark.exhaustive
def test_precision_part_measures_rate_and_errors(monkeypatch):
    """Each configuration has a rate, and errors that are those of its precision."""
    pytest.importorskip("openvino")
    configurations = (precision.REFERENCE, ("openvino", "float32"))
    monkeypatch.setattr(precision, "CONFIGURATIONS", configurations)
    name = "all-MiniLM-L6-v2"
    monkeypatch.setattr(precision, "ENCODERS", {name: precision.ENCODERS[name]})
    rows = precision.measure(quick=True)
    suffixes = ("", ": largest 1 - cosine", ": mean 1 - cosine")
    assert [row.name for row in rows] == [
        f"{name}, {engine} {dtype}{suffix}"
        for engine, dtype in configurations
        for suffix in suffixes
    ]
    rates, largest, mean = (rows[start::3] for start in range(3))
    assert all(row.value > 0 and row.unit == "texts/s" for row in rates)
    assert [row.peer for row in rates] == ["torch float32"] * 2
    assert rates[0].ratio == 1
    assert abs(largest[0].value) < 1e-6
    assert mean[1].value <= largest[1].value < 1e-5


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", ["training", "loss", "kernel"])
def test_gpu_program_compares_with_a_peer(part):
    """Without a GPU, its parts that need no files run on the CPU."""
    rows = list(gpu.PARTS[part]("cpu", True))
    assert rows
    assert all(row.value > 0 and math.isfinite(row.ratio) for row in rows)
