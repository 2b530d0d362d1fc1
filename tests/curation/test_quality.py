"""pair_quality and drop_noisy: scores and reasons of noisy pairs."""

from typing import ClassVar

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sklearn_ape import CCAAligner
from sklearn_ape.curation import drop_noisy, pair_quality


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
    """Unrelated features agree at chance level."""
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


def test_invalid_parameters_raise(concepts):
    with pytest.raises(ValueError, match="300 rows and text_features has 299"):
        pair_quality(concepts.image, concepts.text[1:])
    with pytest.raises(ValueError, match="2 texts for 300 pairs"):
        pair_quality(concepts.image, concepts.text, ["a", "b"])
    with pytest.raises(ValueError, match="groups of near-duplicate images, got 1"):
        pair_quality(concepts.image, concepts.text, groups=np.zeros(300))
    with pytest.raises(ValueError, match="cv=3 needs at least 6 pairs"):
        pair_quality(concepts.image[:5], concepts.text[:5])
