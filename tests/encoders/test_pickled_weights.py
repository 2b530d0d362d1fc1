"""Pickled weights in a model folder must not execute code."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.encoders.tiny_networks import encoders

NAMES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")


class Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return encoders(tmp_path_factory.mktemp("pickled"))


@pytest.mark.parametrize(
    "name",
    [
        "TimmImageEncoder",
        "TransformersImageEncoder",
        "TransformersTextEncoder",
        "OpenCLIPImageEncoder",
        "OpenCLIPTextEncoder",
    ],
)
def test_pickled_code_is_not_executed(name, folders, tmp_path):
    encoder = folders[name]
    folder = Path(encoder.model_name)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        path.unlink()
    marker = tmp_path / "ran"
    for file in NAMES:
        torch.save({"weight": Runs(marker)}, folder / file)
    item = "a cat" if "Text" in name else np.zeros((40, 40, 3), np.uint8)
    with pytest.raises((ValueError, OSError), match=folder.name):
        encoder.transform([item])
    assert not marker.exists()
