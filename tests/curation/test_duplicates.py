"""find_near_duplicates and drop_near_duplicates: groups of near-duplicate images."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupKFold

from sklearn_ape.curation import _duplicates, drop_near_duplicates, find_near_duplicates


def test_tile_size_does_not_change_groups(monkeypatch):
    """Groups are the connected components of the full matrix, also across tiles."""
    rows = np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n_groups, truth = connected_components(units @ units.T >= 0.98, directed=False)
    monkeypatch.setattr(_duplicates, "_TILE_ROWS", 7)
    monkeypatch.setattr(_duplicates, "_TILE_COLUMNS", 11)
    groups = find_near_duplicates(rows, threshold=0.98)
    assert 1 < n_groups < 150
    assert len(set(zip(groups, truth, strict=True))) == n_groups == groups.max() + 1
    assert (
        np.diff(np.unique(groups, return_index=True)[1]) > 0
    ).all()  # groups are numbered in order of appearance


def test_equal_rows_are_duplicates_at_threshold_one():
    """Copies and multiples are duplicates even if their cosine is rounded to less than 1."""
    rows = np.random.default_rng(0).random((20, 1280)).astype(np.float32)
    groups = find_near_duplicates(np.concatenate([rows, 3 * rows]), threshold=1.0)
    assert groups.tolist() == [*range(20), *range(20)]


def test_unreadable_images_have_separate_groups():
    """Each row of NaN or zeros is a group."""
    rows = np.array([[1, 0], [np.nan, np.nan], [0, 0], [np.nan, np.nan], [0, 0], [2, 0]])
    assert find_near_duplicates(rows, threshold=-1).tolist() == [0, 1, 2, 3, 4, 0]


def test_rows_of_extreme_norm_are_grouped():
    """Cosines of very small and very large features do not underflow or overflow."""
    rows = np.array([[1e-30, 0], [1e30, 0], [0, 1e-30], [0, 1e30]], dtype=np.float32)
    assert find_near_duplicates(rows).tolist() == [0, 0, 1, 1]


def test_groups_of_real_images_separate_folds(captioned_images, features):
    """With the groups, GroupKFold has no near-duplicates in training and test folds."""
    groups = find_near_duplicates(features.image)
    assert len(captioned_images.images) / 2 < groups.max() + 1 < len(captioned_images.images)
    for train, test in GroupKFold(3).split(features.image, groups=groups):
        cosines = features.image[train] @ features.image[test].T
        norms = np.linalg.norm(features.image, axis=1)
        assert (cosines / np.outer(norms[train], norms[test])).max() < 0.97 + 1e-5


def test_drop_keeps_best_row_per_group():
    """The first row is kept, or the one with the highest score; ties keep the first."""
    groups = [3, 3, 8, 3, 8]
    assert drop_near_duplicates(groups).tolist() == [0, 2]
    assert drop_near_duplicates(groups, scores=[1, 2, 5, 2, 5]).tolist() == [1, 2]


def test_invalid_parameters_raise():
    with pytest.raises(ValueError, match=r"threshold must be a number in \[-1, 1\], not 97"):
        find_near_duplicates(np.eye(2), threshold=97)
    with pytest.raises(ValueError, match="features contains infinity"):
        find_near_duplicates(np.array([[np.inf, 0.0]]))
    with pytest.raises(ValueError, match="one number per row, not"):
        drop_near_duplicates([0, 1], scores=[1.0])
    with pytest.raises(ValueError, match="row 1 is nan"):
        drop_near_duplicates([0, 1], scores=[1.0, np.nan])
