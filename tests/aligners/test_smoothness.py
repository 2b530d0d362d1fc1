"""The kernel that `gamma="auto"` chooses on held-out pairs."""

import numpy as np
import pytest

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners import _kernel_maps

N_PAIRS = 6000


@pytest.fixture(scope="module")
def smooth():
    """Images that depend smoothly on texts, with much noise."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal((N_PAIRS, 64)).astype(np.float32)
    image = text @ rng.standard_normal((64, 32)) + 8 * rng.standard_normal((N_PAIRS, 32))
    return image.astype(np.float32), text


@pytest.fixture(scope="module")
def clustered():
    """Images of clusters of texts. Nearby clusters have unrelated images."""
    rng = np.random.default_rng(0)
    centers, images = rng.standard_normal((300, 4)), rng.standard_normal((300, 32))
    cluster = rng.integers(0, 300, N_PAIRS)
    text = centers[cluster] + 0.02 * rng.standard_normal((N_PAIRS, 4))
    image = images[cluster] + 0.3 * rng.standard_normal((N_PAIRS, 32))
    return image.astype(np.float32), text.astype(np.float32)


def fit(pairs, **options):
    return KernelAligner(max_anchors=400, **options).fit(*pairs)


def test_wide_kernel_is_chosen_for_a_smooth_relation(smooth):
    chosen, narrow = fit(smooth), fit(smooth, gamma="scale")
    assert chosen.gamma_ == pytest.approx(narrow.gamma_ / 4, rel=0.05)
    same = fit(smooth, gamma=chosen.gamma_, ridge=2 * chosen.ridge)
    np.testing.assert_array_equal(
        same.transform_text(smooth[1][:9]), chosen.transform_text(smooth[1][:9])
    )


@pytest.mark.exhaustive
def test_wide_kernel_is_better_where_it_is_chosen(smooth):
    train = tuple(features[:5500] for features in smooth)
    test = tuple(features[5500:] for features in smooth)
    assert fit(train).score(*test) > fit(train, gamma="scale").score(*test)


def test_narrow_kernel_is_kept_for_clusters(clustered):
    assert fit(clustered).fingerprint_ == fit(clustered, gamma="scale").fingerprint_


def test_few_pairs_are_not_compared(smooth):
    few = tuple(features[:1000] for features in smooth)
    assert fit(few).fingerprint_ == fit(few, gamma="scale").fingerprint_


@pytest.mark.sampled(2)
@pytest.mark.parametrize("init", ["kernel", "auto"])
def test_training_starts_from_the_chosen_kernel(init, clustered, monkeypatch):
    monkeypatch.setattr(_kernel_maps, "_MIN_RELATIVE_GAIN", -1.0)  # the wide kernel is chosen
    monkeypatch.setattr(_kernel_maps, "_N_COMPARED_PAIRS", 1000)
    clustered = tuple(features[:1500] for features in clustered)
    few = {"max_epochs": 1, "learning_rate": 1e-9, "width": 8, "depth": 2, "device": "cpu"}
    aligner = APEAligner(init=init, random_state=0, **few).fit(*clustered)
    assert aligner.best_epoch_ == 0
    narrow = fit(clustered, gamma="scale")
    gamma = float(aligner.module_.text_head.base.gamma)
    assert gamma == pytest.approx(narrow.gamma_ / 4, rel=0.05)
