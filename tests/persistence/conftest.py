"""Aligners of every kind, saved models, and comparisons of loaded with saved models."""

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, KernelAligner

ALIGNERS = {
    "cca": CCAAligner(n_components=5),
    "asif": ASIFAligner(k=20),
    "kernel": KernelAligner(n_components=6),
    "kernel-landmarks": KernelAligner(max_anchors=40),
    "ape-blend": APEAligner(width=16, max_epochs=2, early_stopping=False),
    "ape-residual-of-kernel": APEAligner(
        init="kernel", width=16, max_epochs=2, early_stopping=False
    ),
    "ape-start-kept": APEAligner(
        init="kernel", width=16, max_epochs=1, learning_rate=1e-9
    ),
    "ape-plain": APEAligner(init=None, width=16, depth=3, max_epochs=2),
    "ape-image-side": APEAligner(init=None, side="image", width=16, max_epochs=2, n_components=7),
    "ape-linear-start": APEAligner(init="linear", head="glu", width="2x", max_epochs=2),
    "ape-batchnorm": APEAligner(init=None, head="batchnorm_mlp", side="both", width=16),
    "ape-star": APEAligner(init=None, head="star", width=16, max_epochs=2),
    "ape-residual": APEAligner(init=None, head="residual", depth=5, width=16, max_epochs=2),
    "ape-skip": APEAligner(init=None, head="skip_mlp", depth=6, width=16, max_epochs=2),
    "ape-linear": APEAligner(init=None, head="linear", max_epochs=2),
}  # fmt: skip


def assert_same_embeddings(model, loaded, X, y):
    """Check that embeddings and similarities are bitwise identical."""
    for compute in (
        lambda m: m.transform(X),
        lambda m: m.transform_text(y),
        lambda m: m.similarity(X, y),
        lambda m: m.similarity(X, y, standardize=True),
        lambda m: m.similarity(X, y, standardize=X[:20]),
    ):
        np.testing.assert_array_equal(compute(loaded), compute(model))


def assert_same_attributes(model, loaded):
    """Check that fitted attributes exist, and are equal if their type can be compared."""
    assert vars(loaded).keys() == vars(model).keys()
    for name, value in vars(model).items():
        if name == "_fitted_images":
            for one, other in zip(getattr(loaded, name), value, strict=True):
                np.testing.assert_array_equal(one, other)
        elif isinstance(value, bool | int | float | str | list | tuple):
            if name != "bank_":
                assert getattr(loaded, name) == value, name
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(loaded, name), value)


@pytest.fixture(scope="package")
def saved(tmp_path_factory):
    """Return a folder with one small saved model of each kind."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((60, 5)), rng.standard_normal((60, 4))
    parent = tmp_path_factory.mktemp("models")
    for name in ("kernel", "cca", "asif", "ape-plain", "ape-blend", "ape-residual-of-kernel"):
        aligner = clone(ALIGNERS[name])
        if "n_components" in aligner.get_params():
            aligner.set_params(n_components=None)
        aligner.fit(image, text).save_pretrained(parent / name)
    return parent
