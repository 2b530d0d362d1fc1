"""Groups of near-duplicate images, and scores of noisy pairs."""

from typing import ClassVar

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, LeaveOneOut, ShuffleSplit

from sklearn_ape import CCAAligner
from sklearn_ape.curation import (
    PairQuality,
    _quality,
    drop_near_duplicates,
    drop_noisy,
    find_near_duplicates,
    pair_quality,
    select_relevant,
)


def test_tile_size_does_not_change_groups(monkeypatch):
    """Groups are the connected components of the full matrix, also across tiles."""
    rows = np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n_groups, truth = connected_components(units @ units.T >= 0.98, directed=False)
    monkeypatch.setattr(_quality, "_TILE_ROWS", 7)
    monkeypatch.setattr(_quality, "_TILE_COLUMNS", 11)
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
    rows = np.array([[1, 0], [np.nan, np.nan], [0, 0], [np.nan, np.nan], [0, 0], [2, 0]])
    assert find_near_duplicates(rows, threshold=-1).tolist() == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize("features", [["a.png", "b.png"], [np.zeros((4, 4, 3), np.uint8)] * 2])
def test_images_instead_of_features_raise(features):
    with pytest.raises(ValueError, match="features holds images or texts"):
        find_near_duplicates(features)
    with pytest.raises(ValueError, match="features must be a sequence of rows of features"):
        find_near_duplicates(None)


def test_captions_instead_of_text_features_raise():
    """The advice was to encode them as images."""
    with pytest.raises(ValueError, match=r"text_features .* TransformersTextEncoder\(\)"):
        pair_quality(np.eye(4), ["a", "b", "c", "d"])


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
    scores = np.array([1, 2, 5, 2, 5])
    quality = PairQuality(scores, scores, scores, np.full(5, "agreement"))
    assert drop_near_duplicates(groups, scores=scores).tolist() == [1, 2]
    assert drop_near_duplicates(groups, scores=quality).tolist() == [1, 2]


@pytest.mark.parametrize(
    "groups",
    [
        [0, np.nan, np.nan],
        np.array([0, np.nan, np.nan]),
        ["a", None, None],
        pd.Series(["a", None, None], dtype="string"),
        pd.Series([0, None, None], dtype="Int64"),
        pl.Series([0, None, None]),
        pa.array([0, None, None]),
    ],
)
def test_missing_groups_raise(groups):
    """Rows without a group were one group, of which all but one row were dropped."""
    with pytest.raises(ValueError, match="groups has a missing value in row 1"):
        drop_near_duplicates(groups)
    with pytest.raises(ValueError, match="groups has a missing value in row 1"):
        select_relevant(["a cat", "cats", "cat"], ["cat"], groups=groups)


def test_groups_may_be_any_column():
    for groups in (["b", "a", "b"], pl.Series([5, 1, 5]), pa.array(["x", "y", "x"])):
        assert drop_near_duplicates(groups).tolist() == [0, 1]


def test_invalid_parameters_of_near_duplicates_raise():
    with pytest.raises(ValueError, match=r"threshold must be a number in \[-1, 1\], not 97"):
        find_near_duplicates(np.eye(2), threshold=97)
    with pytest.raises(ValueError, match="features contains infinity"):
        find_near_duplicates(np.array([[np.inf, 0.0]]))
    with pytest.raises(ValueError, match="one number per row, not"):
        drop_near_duplicates([0, 1], scores=[1.0])
    with pytest.raises(ValueError, match="row 1 is nan"):
        drop_near_duplicates([0, 1], scores=[1.0, np.nan])


def test_swapped_captions_have_low_agreement(concepts):
    """Pairs are scored out of fold, so a wrong pair does not raise its own score."""
    swapped = np.arange(30)
    text = concepts.text.copy()
    text[swapped] = np.roll(text[swapped], 1, axis=0)
    quality = pair_quality(concepts.image, text, random_state=0)
    is_swapped = np.isin(np.arange(300), swapped)
    assert roc_auc_score(is_swapped, -quality.agreement) > 0.95
    assert (quality.specificity == 1).all()
    assert set(quality.reason[is_swapped]) == {"agreement"}


class Recorder(CCAAligner):
    """Aligner that records the rows that it was fitted on and those that it scored."""

    folds: ClassVar[list] = []

    def fit(self, X, y):
        self.folds.append((set(X[:, 0].tolist()), set()))
        return super().fit(X, y)

    def transform(self, X):
        self.folds[-1][1].update(X[:, 0].tolist())
        return super().transform(X)


def test_pairs_are_scored_out_of_fold(concepts):
    """Near-duplicates of an image and other images of its caption are in the same fold."""
    groups = np.arange(300) // 2  # rows 0 and 1 are near-duplicates, and so on
    captions = [
        f"caption {(i + 1) // 2}" for i in range(300)
    ]  # rows 1 and 2 share a caption, and so on
    captions[10::10] = [
        f"own caption {i}" for i in range(10, 300, 10)
    ]  # which ends at every 10th row
    Recorder.folds.clear()
    pair_quality(
        concepts.image, concepts.text, captions, aligner=Recorder(), groups=groups, random_state=0
    )
    keys = concepts.image[:, 0].tolist()
    assert len(Recorder.folds) == 3
    assert sum(len(scored) for _, scored in Recorder.folds) == 300
    for fitted, scored in Recorder.folds:
        for row in range(299):
            linked = groups[row] == groups[row + 1] or captions[row] == captions[row + 1]
            assert not (linked and keys[row] in scored and keys[row + 1] in fitted)
            assert not (keys[row] in scored and keys[row] in fitted)


def test_cv_may_be_a_splitter_or_its_splits(concepts):
    """Splits number all pairs, also those that are unreadable and belong to no fold."""
    groups = np.arange(300) // 5
    splitter = GroupKFold(4)
    splits = list(splitter.split(concepts.image, groups=groups))
    image = concepts.image.copy()
    image[7] = np.nan
    keys = image[:, 0]
    scores = []
    for cv in (splitter, splits, iter(splits)):
        Recorder.folds.clear()
        data = {"groups": groups, "cv": cv, "random_state": 0}
        quality = pair_quality(image, concepts.text, aligner=Recorder(), **data)
        scores.append(quality.score.tolist())
        assert len(Recorder.folds) == 4
        for (fitted, scored), (train, test) in zip(Recorder.folds, splits, strict=True):
            assert fitted == set(np.delete(keys, [*test, 7]).tolist())
            assert scored == set(np.delete(keys, [*train, 7]).tolist())
    assert scores[0] == scores[1] == scores[2]
    assert quality.reason[7] == "unreadable"


def test_fold_without_readable_pairs_is_skipped(concepts):
    text = concepts.text[:20].copy()
    text[3] = 0
    quality = pair_quality(concepts.image[:20], text, cv=LeaveOneOut(), aligner=CCAAligner())
    assert quality.reason[3] == "unreadable"
    assert np.delete(quality.agreement, 3).tolist() == [0.5] * 19  # no other pair to compare with


def test_invalid_cv_of_quality_raises(concepts):
    for cv in ("3", None, 2.0):
        with pytest.raises(ValueError, match="cv must be an integer >= 2, a splitter"):
            pair_quality(concepts.image, concepts.text, cv=cv)
    with pytest.raises(ValueError, match="cv must be an integer >= 2, not 1"):
        pair_quality(concepts.image, concepts.text, cv=1)
    with pytest.raises(ValueError, match="do not contain each of 300 rows once"):
        pair_quality(concepts.image, concepts.text, cv=ShuffleSplit(3))


def test_swapped_captions_of_real_images_score_lower(captioned_images, features):
    """Of 300 real pairs one in five is swapped, and the scores detect them above chance."""
    swapped = np.arange(60)
    text = features.text.copy()
    text[swapped] = np.roll(text[swapped], 1, axis=0)
    quality = pair_quality(features.image, text, random_state=0)
    assert roc_auc_score(np.arange(300) < 60, -quality.score) > 0.65


def test_shared_caption_has_low_specificity(concepts):
    """Captions of many different images are not specific; near-duplicates count once."""
    captions = [f"image {i}" for i in range(300)]
    captions[:40] = ["Part of the Icon Collection"] * 40
    captions[40:80] = ["One drawing, 40 times"] * 40
    groups = np.arange(300)
    groups[40:80] = 40
    quality = pair_quality(concepts.image, concepts.text, captions, groups=groups, random_state=0)
    assert quality.specificity[:40] == pytest.approx(10 / 40)
    assert (quality.specificity[40:] == 1).all()
    assert quality.score == pytest.approx(quality.agreement * quality.specificity)


def test_random_pairs_have_agreement_one_half():
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((400, 16)), rng.standard_normal((400, 8))
    quality = pair_quality(image, text, random_state=0)
    assert quality.agreement.mean() == pytest.approx(0.5, abs=0.05)


def test_few_distinct_captions_give_finite_scores(concepts):
    """A few class names as captions cannot be separated, so folds separate only images."""
    captions = [f"class {i % 5}" for i in range(300)]
    text = np.repeat(concepts.text[None, :5], 60, axis=0).reshape(300, -1)
    quality = pair_quality(concepts.image, text, captions, random_state=0)
    assert np.isfinite(quality.score).all()


def test_unreadable_rows_score_zero(concepts):
    """Rows of NaN or zeros have a reason and do not make other scores NaN."""
    image, text = concepts.image.copy(), concepts.text.copy()
    image[3], text[5] = np.nan, 0
    quality = pair_quality(image, text, random_state=0)
    assert quality.score[[3, 5]].tolist() == [0, 0]
    assert quality.reason[[3, 5]].tolist() == ["unreadable"] * 2
    assert (np.delete(quality.score, [3, 5]) > 0).all()


def test_aligner_is_cloned_and_seed_repeats_scores(concepts):
    aligner = CCAAligner(n_components=4)
    first, second = (
        pair_quality(concepts.image, concepts.text, aligner=aligner, random_state=1)
        for _ in range(2)
    )
    assert not hasattr(aligner, "n_components_")
    assert first.score.tolist() == second.score.tolist()


def test_drop_noisy_keeps_pairs_with_high_scores(concepts):
    quality = pair_quality(concepts.image, concepts.text, random_state=0)
    assert len(drop_noisy(quality, share=0.1)) == 270
    rows = drop_noisy(quality, min_score=0.9)
    assert rows.tolist() == np.flatnonzero(quality.score >= 0.9).tolist()
    for parameters in ({}, {"min_score": 0.5, "share": 0.5}):
        with pytest.raises(ValueError, match="Pass one of them"):
            drop_noisy(quality, **parameters)
    with pytest.raises(ValueError, match=r"share must be None or a number in \[0, 1\], not 20"):
        drop_noisy(quality, share=20)
    with pytest.raises(ValueError, match="quality must be the output of pair_quality"):
        drop_noisy(quality.score, share=0.1)


def test_invalid_parameters_of_quality_raise(concepts):
    with pytest.raises(ValueError, match="300 rows and text_features has 299"):
        pair_quality(concepts.image, concepts.text[1:])
    with pytest.raises(ValueError, match="2 texts for 300 pairs"):
        pair_quality(concepts.image, concepts.text, ["a", "b"])
    with pytest.raises(ValueError, match="groups of near-duplicate images, got 1"):
        pair_quality(concepts.image, concepts.text, groups=np.zeros(300))
    with pytest.raises(ValueError, match="cv=3 needs at least 6 pairs"):
        pair_quality(concepts.image[:5], concepts.text[:5])


def test_best_agreement_is_one():
    """A pair is not its own rival."""
    concepts = np.random.default_rng(0).standard_normal((200, 12))
    assert pair_quality(concepts, concepts).agreement.max() == 1


def test_pairs_of_equal_captions_are_not_rivals():
    """A caption of half of the images matches each of them as well as its own."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [150, 100, 50])
    concepts = rng.standard_normal((3, 16))[label]
    image = concepts + 0.7 * rng.standard_normal((300, 16))
    quality = pair_quality(image, concepts, random_state=0)
    assert quality.agreement.mean() > 0.95
    assert quality.agreement[:150].mean() > 0.95
