"""Every example runs as a user would run it, and prints what its text promises."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))
PROMISED = {
    "plot_01_align_and_classify": ["recall@10", "accuracy on", "weighted avg"],
    "plot_02_search_over_depth": ["images encoded:", "<- best", "    6  "],
    "plot_03_without_pairs": [
        "from the training set of the starter model",
        "with standardize=X",
        "%,",
    ],
    "plot_04_own_images": ["same captions: True", "'unknown']", "broken.png"],
    "plot_05_choose_an_aligner": ["ASIFAligner ", "95% interval"],
    "plot_06_training_history": ["selected epoch", "recall@1"],
    "plot_07_noisy_captions": ["wrong, is", "25% dropped by score", "right pairs only"],
    "plot_08_prompts": ["several descriptions", "drawing ", "points"],
    "plot_09_calibration_and_rejection": ["temperature", "calibration error", "classified"],
    "plot_10_search_in_both_directions": ["of the first five", "after adding 100"],
    "plot_11_free_pairs_from_a_classifier": ["1000 classes", "captioned and head pairs"],
    "plot_12_confusion_and_map": [" predicted as "],
    "plot_13_features_in_files": ["untouched: True", "float16, from files", "CC12M"],
    "plot_14_save_and_share": ["model.safetensors", "config.json", "and threshold 0.5"],
    "plot_15_search_with_optuna": ["ridge", "of 15 trials", "searched"],
}


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Figures are drawn into memory, and none stays open."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    runpy.run_path(str(path))
    out = capsys.readouterr().out
    for text in PROMISED.get(path.stem, ()):
        assert text in out


def test_every_example_is_checked():
    """An example whose output nobody looks at could print nonsense."""
    assert {path.stem for path in EXAMPLES} == set(PROMISED)
