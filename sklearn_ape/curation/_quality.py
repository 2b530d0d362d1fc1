"""How well the caption of each pair fits its image."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GroupKFold
from sklearn.utils import check_random_state

from ..utils.validation import check_integer, check_number
from ._duplicates import find_near_duplicates
from ._validation import (
    caption_rows,
    check_groups,
    distinct,
    float_rows,
    joined_groups,
    normalize_known_rows,
    row_tiles,
)

_MOST_COMPARED = 2000  # captions that an agreement is a rank among
_SHARED_BY_MANY = 10  # unlike images from which on a caption says little about each


class PairQuality(NamedTuple):
    """Signals of `pair_quality`, each in [0, 1] with 1 for good, one entry a pair.

    Attributes
    ----------
    score : ndarray of shape (n_pairs,)
        Product of the two signals.
    agreement : ndarray of shape (n_pairs,)
        Share of the other captions that fit the image less, and of the other images that
        fit the caption less, in the eyes of an aligner that has not seen the pair. 0.5 is
        chance. Low for swapped captions and for made-up words.
    specificity : ndarray of shape (n_pairs,)
        1 for a caption of few images, less for one that many unlike images share.
    reason : ndarray of str, shape (n_pairs,)
        Name of the lowest signal; "unreadable" where a feature is NaN or zero, which scores 0.
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
    aligner: Any = None,
    groups: Any = None,
    cv: int = 3,
    random_state: int | np.random.RandomState | None = None,
) -> PairQuality:
    """Score noisy pairs by how well caption and image fit.

    Parameters
    ----------
    image_features : array-like of shape (n_pairs, n_image_features)
        Features of the images.
    text_features : array-like of shape (n_pairs, n_text_features)
        Features of the captions.
    captions : sequence of str of length n_pairs or None, default=None
        The captions, to tell which are the same. With None, equal features are.
    aligner : estimator or None, default=None
        Fitted on all folds but one, to judge the pairs of that one. None is `CCAAligner`.
    groups : array-like of shape (n_pairs,) or None, default=None
        Images that must not be judged by one another. None finds near-duplicates. Pairs of
        the same caption are kept together besides, where there are captions enough for that.
    cv : int, default=3
        Number of folds, at least 2.
    random_state : int, RandomState instance or None, default=None
        Deals groups to folds. Pass an int for reproducible output.

    Returns
    -------
    quality : PairQuality
        The score of each pair, the signals that it is made of, and the name of the lowest.

    Raises
    ------
    ValueError
        If the lengths differ, or there are too few pairs or groups for `cv` folds.

    See Also
    --------
    drop_noisy : Keep the pairs of high score.
    select_relevant : Choose pairs for given labels.

    Notes
    -----
    No signal is proof. A good pair of a rare subject, or in a language that the text encoder
    does not know, may score low; look at a few of the lowest before dropping many.

    References
    ----------
    .. [1] C. Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels",
       JAIR, 2021: labels are judged out of fold.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import pair_quality
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((200, 8))
    >>> image_features = concepts @ rng.standard_normal((8, 32))
    >>> text_features = concepts @ rng.standard_normal((8, 16))
    >>> text_features[[3, 7]] = text_features[[7, 3]]  # two captions change places
    >>> quality = pair_quality(image_features, text_features, random_state=0)
    >>> sorted(np.argsort(quality.agreement)[:2].tolist())
    [3, 7]
    """
    check_integer(cv, "cv", 2)
    image_features = float_rows(image_features, "image_features", look=True)
    text_features = float_rows(text_features, "text_features", look=True)
    image, image_known = normalize_known_rows(image_features, "image_features")
    text, text_known = normalize_known_rows(text_features, "text_features")
    if len(image) != len(text):
        raise ValueError(
            f"image_features has {len(image)} rows and text_features {len(text)}: each image "
            "needs its caption at the same place."
        )
    known = image_known & text_known
    if known.sum() < 2 * cv:
        raise ValueError(
            f"{known.sum()} pairs have features that are not all 0 or NaN: too few for cv={cv} "
            f"folds, which need at least {2 * cv}."
        )
    same_caption = _same(captions, text)
    alike = find_near_duplicates(image) if groups is None else check_groups(groups, len(image))
    rows = np.flatnonzero(known)
    signals = np.zeros((2, len(image)))
    signals[0, rows] = _agreement(
        image_features[rows],
        text_features[rows],
        alike[rows],
        same_caption[rows],
        aligner,
        cv,
        check_random_state(random_state),
    )
    signals[1, rows] = _specificity(same_caption[rows], alike[rows])
    reason = np.array(["agreement", "specificity"], dtype="U11")[signals.argmin(axis=0)]
    reason[~known] = "unreadable"
    return PairQuality(signals.prod(axis=0), signals[0], signals[1], reason)


def drop_noisy(
    quality: PairQuality, *, min_score: float | None = None, share: float | None = None
) -> np.ndarray:
    """Keep the pairs of high score.

    Parameters
    ----------
    quality : PairQuality
        What `pair_quality` returns.
    min_score : float or None, default=None
        Least score, in [0, 1], of the pairs to keep.
    share : float or None, default=None
        Share of all pairs, in [0, 1], to drop: those of the lowest scores.

    Returns
    -------
    indices : ndarray of int
        Rows to keep, in ascending order.

    Raises
    ------
    ValueError
        Unless one of `min_score` and `share` is given.

    See Also
    --------
    pair_quality : Scores the pairs.

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
        raise ValueError("Pass min_score or share (one of them) to say which pairs to drop.")
    if min_score is not None:
        return np.flatnonzero(quality.score >= min_score)
    n_dropped = round(share * len(quality.score))  # type: ignore[operator]
    return np.sort(np.argsort(quality.score, kind="stable")[n_dropped:])


def _same(captions: Any, text: np.ndarray) -> np.ndarray:
    """Return a number for each pair, equal for equal captions."""
    if captions is None:
        return distinct(row.tobytes() for row in text)
    checked = caption_rows(captions)
    if checked.texts is None or checked.n_rows != len(checked.texts):
        raise ValueError("captions must be one text a pair.")
    if checked.n_rows != len(text):
        raise ValueError(f"There are {checked.n_rows} captions for {len(text)} pairs.")
    return distinct(" ".join(caption.split()).casefold() for caption in checked.texts)


def _agreement(
    image: np.ndarray,
    text: np.ndarray,
    alike: np.ndarray,
    same_caption: np.ndarray,
    aligner: Any,
    cv: int,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Return out-of-fold ranks of each pair among others, as shares in [0, 1]."""
    joined = np.unique(joined_groups(alike, same_caption), return_inverse=True)[1]
    counts = np.bincount(joined)
    # Few captions, or chains of like images, can tie nearly everything together.
    if len(counts) < 2 * cv or counts.max() > len(image) / 2:
        joined = np.unique(alike, return_inverse=True)[1]
    n_groups = int(joined.max()) + 1
    if n_groups < cv:
        raise ValueError(
            f"The images form {n_groups} groups of near-duplicates: too few for cv={cv} folds. "
            "Lower cv, or pass groups of your own."
        )
    joined = rng.permutation(n_groups)[joined]
    if aligner is None:
        from ..aligners import CCAAligner

        aligner = CCAAligner()
    shares = np.empty(len(image))
    for train, judged in GroupKFold(cv).split(image, groups=joined):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of equal captions, which are expected
            fitted = clone(aligner).fit(image[train], text[train])
        images = np.asarray(fitted.transform(image[judged]))
        captions = np.asarray(fitted.transform_text(text[judged]))
        own = np.einsum("ij,ij->i", images, captions)
        others = rng.permutation(len(judged))[:_MOST_COMPARED]
        shares[judged] = (
            _share_below(images, captions[others], own)
            + _share_below(captions, images[others], own)
        ) / 2
    return shares


def _share_below(queries: np.ndarray, others: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Share of the others that a query is less similar to than to its own; half for equal ones."""
    shares = np.empty(len(queries))
    for tile in row_tiles(len(queries), len(others)):
        difference = own[tile, None] - queries[tile] @ others.T
        equal = np.abs(difference) < 1e-6
        shares[tile] = ((difference > 0) & ~equal).mean(axis=1) + equal.mean(axis=1) / 2
    return shares


def _specificity(same_caption: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """1 for a caption of up to so many unlike images, then falling with their number."""
    pairs = np.unique(np.column_stack([same_caption, alike]), axis=0)
    n_unlike = np.bincount(pairs[:, 0], minlength=int(same_caption.max()) + 1)
    return np.minimum(1, _SHARED_BY_MANY / np.maximum(n_unlike, 1))[same_caption]
