"""Every example runs as a user would run it, and prints what its text promises."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))
PROMISED = {
    "plot_1_align_and_classify": ["recall@10", "accuracy on", "weighted avg"],
    "plot_2_search_over_depth": ["pictures encoded:", "<- best", "    6  "],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    runpy.run_path(str(path))
    out = capsys.readouterr().out
    for text in PROMISED[path.stem]:
        assert text in out
