"""find_near_duplicates and drop_near_duplicates: right groups, whatever the tiles."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupKFold

from sklearn_ape.curation import _duplicates, drop_near_duplicates, find_near_duplicates


def test_tile_size_does_not_change_groups(monkeypatch):
    """Chains across tiles are followed: equal to connected components of the whole matrix."""
    rows = np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n_groups, truth = connected_components(unit @ unit.T >= 0.98, directed=False)
    monkeypatch.setattr(_duplicates, "_TILE_ROWS", 7)
    monkeypatch.setattr(_duplicates, "_TILE_COLUMNS", 11)
    groups = find_near_duplicates(rows, threshold=0.98)
    assert 1 < n_groups < 150
    assert len(set(zip(groups, truth, strict=True))) == n_groups == groups.max() + 1
    assert (np.diff(np.unique(groups, return_index=True)[1]) > 0).all()  # by appearance


def test_equal_rows_at_threshold_one():
    """Copies and multiples are duplicates even where their cosine rounds to less than 1."""
    rows = np.random.default_rng(0).random((20, 1280)).astype(np.float32)
    groups = find_near_duplicates(np.concatenate([rows, 3 * rows]), threshold=1.0)
    assert groups.tolist() == [*range(20), *range(20)]


def test_unreadable_images_have_groups_of_their_own():
    """Rows of NaN and of zeros stay alone, each in a group of its own."""
    rows = np.array([[1, 0], [np.nan, np.nan], [0, 0], [np.nan, np.nan], [0, 0], [2, 0]])
    assert find_near_duplicates(rows, threshold=-1).tolist() == [0, 1, 2, 3, 4, 0]


def test_rows_of_extreme_norm_are_grouped():
    """Direction counts, not length: tiny and huge features neither vanish nor overflow."""
    rows = np.array([[1e-30, 0], [1e30, 0], [0, 1e-30], [0, 1e30]], dtype=np.float32)
    assert find_near_duplicates(rows).tolist() == [0, 0, 1, 1]


def test_real_recoloured_images(captioned_images, features):
    """Real images: most stand alone, and the groups serve GroupKFold."""
    groups = find_near_duplicates(features.image)
    assert len(captioned_images.images) / 2 < groups.max() + 1 < len(captioned_images.images)
    for train, test in GroupKFold(3).split(features.image, groups=groups):
        cosines = features.image[train] @ features.image[test].T
        lengths = np.linalg.norm(features.image, axis=1)
        assert (cosines / np.outer(lengths[train], lengths[test])).max() < 0.97 + 1e-5


def test_drop_keeps_best_row_per_group():
    """Without scores the first; with scores the highest, and the first of equal ones."""
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
