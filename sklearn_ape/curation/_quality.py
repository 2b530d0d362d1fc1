"""Quality of image–caption pairs."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GroupKFold
from sklearn.utils import check_random_state

from ..aligners.cca import CCAAligner
from ..training.data import group_pairs
from ..utils.validation import check_integer, check_number
from ._duplicates import find_near_duplicates
from ._validation import (
    as_float_features,
    check_captions,
    check_groups,
    label_codes,
    normalize_valid_rows,
    row_tiles,
)

# Maximum number of other pairs, drawn at random, among which a pair is ranked.
_MAX_RIVALS = 2000
# The specificity of a caption decreases when it has more distinct images than this.
_MAX_SHARED_IMAGES = 10


class PairQuality(NamedTuple):
    """Quality of each pair, as returned by `pair_quality`; values are in [0, 1], and 1 is best.

    Attributes
    ----------
    score : ndarray of shape (n_pairs,)
        Product of agreement and specificity.
    agreement : ndarray of shape (n_pairs,)
        Fraction of other captions that match the image less, averaged with the fraction of other
        images that match the caption less, according to an aligner that was not trained on the
        pair. 0.5 is chance level. The value is low for swapped or meaningless captions.
    specificity : ndarray of shape (n_pairs,)
        1 for captions of few images, and lower for captions that many distinct images share.
    reason : ndarray of str, shape (n_pairs,)
        "agreement" or "specificity", whichever is lower, or "unreadable" if a feature is NaN or
        zero, with the score 0.
    """

    score: np.ndarray
    agreement: np.ndarray
    specificity: np.ndarray
    reason: np.ndarray


def pair_quality(
    image_features: Any,
    text_features: Any,
    captions: Any = None,
    *,
    aligner: BaseEstimator | None = None,
    groups: Any = None,
    cv: int = 3,
    random_state: int | np.random.RandomState | None = None,
) -> PairQuality:
    """Score noisy pairs by how well caption and image match.

    Parameters
    ----------
    image_features, text_features : array-like of shape (n_pairs, n_features)
        Features of the images and of the captions.
    captions : sequence of str of length n_pairs or None, default=None
        Captions, which are used to find equal captions. With None, equal features are used.
    aligner : estimator or None, default=None
        Aligner that is fitted on all folds but one and scores the pairs of that fold. None uses
        `CCAAligner`.
    groups : array-like of shape (n_pairs,) or None, default=None
        Groups of images that must be in the same fold. None uses groups of near-duplicates.
        Pairs of the same caption are in the same fold as well, if there are enough captions.
    cv : int, default=3
        Number of folds, at least 2.
    random_state : int, RandomState instance or None, default=None
        Assigns groups to folds. Pass an int for reproducible results.

    Returns
    -------
    quality : PairQuality
        Score of each pair, its two factors, and the name of the lower one.

    Raises
    ------
    ValueError
        If lengths differ, or there are too few pairs or groups for `cv` folds.

    See Also
    --------
    drop_noisy : Select the pairs with high scores.
    select_relevant : Select pairs that match labels.

    Notes
    -----
    Pairs of a rare subject, or with a caption in a language that the text encoder was not trained
    on, can have low scores. Inspect some of the pairs with the lowest scores before you drop many.

    References
    ----------
    .. [1] C. Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels",
       JAIR, 2021, which scores labels out of fold.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import pair_quality
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((200, 8))
    >>> image_features = concepts @ rng.standard_normal((8, 32))
    >>> text_features = concepts @ rng.standard_normal((8, 16))
    >>> text_features[[3, 7]] = text_features[[7, 3]]  # swap two captions
    >>> quality = pair_quality(image_features, text_features, random_state=0)
    >>> sorted(np.argsort(quality.agreement)[:2].tolist())
    [3, 7]
    """
    check_integer(cv, "cv", 2)
    image_features = as_float_features(image_features, "image_features", check_conditioning=True)
    text_features = as_float_features(text_features, "text_features", check_conditioning=True)
    image, image_valid = normalize_valid_rows(image_features, "image_features")
    text, text_valid = normalize_valid_rows(text_features, "text_features")
    if len(image) != len(text):
        raise ValueError(
            f"image_features has {len(image)} rows and text_features has {len(text)}. Pass one "
            "row per pair for both."
        )
    is_valid = image_valid & text_valid
    if is_valid.sum() < 2 * cv:
        raise ValueError(
            f"cv={cv} needs at least {2 * cv} pairs with features that are not all 0 or NaN, got "
            f"{is_valid.sum()}. Pass more pairs, or a smaller cv."
        )
    same_caption = _encode_captions(captions, text)[is_valid]
    duplicates = (
        find_near_duplicates(image) if groups is None else check_groups(groups, len(image))
    )[is_valid]
    features = image_features[is_valid], text_features[is_valid]
    rng = check_random_state(random_state)
    agreement = _compute_agreement(*features, duplicates, same_caption, aligner, cv, rng)
    signals = np.zeros((2, len(image)))
    signals[:, is_valid] = agreement, _compute_specificity(same_caption, duplicates)
    reason = np.array(["agreement", "specificity"], dtype="U11")[signals.argmin(axis=0)]
    reason[~is_valid] = "unreadable"
    return PairQuality(signals.prod(axis=0), signals[0], signals[1], reason)


def drop_noisy(
    quality: PairQuality, *, min_score: float | None = None, share: float | None = None
) -> np.ndarray:
    """Select the pairs with high scores.

    Parameters
    ----------
    quality : PairQuality
        Output of `pair_quality`.
    min_score : float or None, default=None
        Minimum score of the selected pairs, in [0, 1].
    share : float or None, default=None
        Fraction of all pairs to drop, in [0, 1]. The pairs with the lowest scores are dropped.

    Returns
    -------
    indices : ndarray of int
        Rows to keep, in ascending order.

    Raises
    ------
    ValueError
        Unless exactly one of `min_score` and `share` is passed.

    See Also
    --------
    pair_quality : Compute the scores.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import PairQuality, drop_noisy
    >>> score = np.array([0.9, 0.1, 0.8, 0.4])
    >>> quality = PairQuality(score, score, score, np.full(4, "agreement"))
    >>> drop_noisy(quality, min_score=0.5), drop_noisy(quality, share=0.25)
    (array([0, 2]), array([0, 2, 3]))
    """
    check_number(min_score, "min_score", 0, 1, closed="both", optional=True)
    check_number(share, "share", 0, 1, closed="both", optional=True)
    if (min_score is None) == (share is None):
        raise ValueError("min_score or share is needed, and not both. Pass one of them.")
    if min_score is not None:
        return np.flatnonzero(quality.score >= min_score)
    n_dropped = round(share * len(quality.score))  # type: ignore[operator]
    return np.sort(np.argsort(quality.score, kind="stable")[n_dropped:])


def _encode_captions(captions: Any, text: np.ndarray) -> np.ndarray:
    if captions is None:
        return label_codes(row.tobytes() for row in text)
    captions = check_captions(captions)
    if captions.texts is None or captions.n_rows != len(captions.texts):
        raise ValueError("captions must be one text per pair.")
    if captions.n_rows != len(text):
        raise ValueError(
            f"captions has {captions.n_rows} texts for {len(text)} pairs. Pass one caption per "
            "pair."
        )
    return label_codes(" ".join(caption.split()).casefold() for caption in captions.texts)


def _compute_agreement(
    image: np.ndarray,
    text: np.ndarray,
    duplicates: np.ndarray,
    same_caption: np.ndarray,
    aligner: BaseEstimator | None,
    cv: int,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Return the out-of-fold rank of each pair among rivals, as a fraction in [0, 1]."""
    # Join pairs that share an image or a caption.
    groups = group_pairs(np.column_stack([duplicates, same_caption]))
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(groups)
    # With few captions, or long chains of similar images, a group can have most of the pairs.
    if len(counts) < 2 * cv or counts.max() > len(image) / 2:
        groups = np.unique(duplicates, return_inverse=True)[1]
    n_groups = int(groups.max()) + 1
    if n_groups < cv:
        raise ValueError(
            f"cv={cv} needs at least {cv} groups of near-duplicate images, got {n_groups}. Pass a "
            "smaller cv, or pass groups."
        )
    groups = rng.permutation(n_groups)[groups]
    if aligner is None:
        aligner = CCAAligner()
    fractions = np.empty(len(image))
    for train, test in GroupKFold(cv).split(image, groups=groups):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # equal captions are expected
            fitted = clone(aligner).fit(image[train], text[train])
        images = np.asarray(fitted.transform(image[test]))
        captions = np.asarray(fitted.transform_text(text[test]))
        pair_similarity = np.einsum("ij,ij->i", images, captions)
        rivals = rng.permutation(len(test))[:_MAX_RIVALS]
        by_image = _compute_fraction_below(images, captions[rivals], pair_similarity)
        by_caption = _compute_fraction_below(captions, images[rivals], pair_similarity)
        fractions[test] = (by_image + by_caption) / 2
    return fractions


def _compute_fraction_below(
    queries: np.ndarray, rivals: np.ndarray, pair_similarity: np.ndarray
) -> np.ndarray:
    """Return the fraction of rivals that are less similar than the pair; ties count half."""
    fractions = np.empty(len(queries))
    for tile in row_tiles(len(queries), len(rivals)):
        difference = pair_similarity[tile, None] - queries[tile] @ rivals.T
        is_tie = np.abs(difference) < 1e-6  # up to rounding
        is_below = (difference > 0) & ~is_tie
        fractions[tile] = is_below.mean(axis=1) + is_tie.mean(axis=1) / 2
    return fractions


def _compute_specificity(same_caption: np.ndarray, duplicates: np.ndarray) -> np.ndarray:
    """Return 1 for captions of few distinct images, decreasing with their number."""
    pairs = np.unique(np.column_stack([same_caption, duplicates]), axis=0)
    n_images = np.bincount(pairs[:, 0], minlength=int(same_caption.max()) + 1)
    return np.minimum(1, _MAX_SHARED_IMAGES / np.maximum(n_images, 1))[same_caption]
