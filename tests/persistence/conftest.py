"""Saved models that several tests read."""

import numpy as np
import pytest
from sklearn.base import clone

from tests.persistence.answers import ALIGNERS


@pytest.fixture(scope="package")
def saved(tmp_path_factory):
    """One small model of each kind, in folders."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((60, 5)), rng.standard_normal((60, 4))
    parent = tmp_path_factory.mktemp("models")
    for name in ("kernel", "cca", "asif", "ape-plain", "ape-residual-of-kernel"):
        aligner = clone(ALIGNERS[name])
        if "n_components" in aligner.get_params():
            aligner.set_params(n_components=None)
        aligner.fit(image, text).save_pretrained(parent / name)
    return parent
